"""The database as a dependency of the routes."""

from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from backend.database import Database
from backend.web.error_documentation import raises
from backend.web.errors import DatabaseUnavailableError, OverloadedError


@raises(DatabaseUnavailableError, OverloadedError)
async def get_database(request: Request) -> Database:
    """Return the database; one per process."""
    return request.app.state.database  # type: ignore[no-any-return]  # Starlette's state is untyped


DatabaseDep = Annotated[Database, Depends(get_database)]
