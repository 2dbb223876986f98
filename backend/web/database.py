"""The database as a dependency of the routes."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from backend.database import Database
from backend.web.errors import DatabaseUnavailableError, OverloadedError


async def get_database(request: Request) -> Database:
    """Return the database; one per process."""
    return request.app.state.database  # type: ignore[no-any-return]  # Starlette's state is untyped


get_database.raises = (DatabaseUnavailableError, OverloadedError)  # type: ignore[attr-defined]  # documented by `Route`

DatabaseDep = Annotated[Database, Depends(get_database)]
