"""FastAPI dependencies: the guards that check the access token, and the parameters of the `/auth` routes."""

from typing import Annotated
from urllib.parse import unquote

from fastapi import Depends
from fastapi.security import OAuth2PasswordBearer
from starlette.requests import Request

from backend.auth.accounts import statements
from backend.auth.caller import CALLER_ID, IS_LET_IN, Caller, caller
from backend.auth.errors import (
    ExpiredTokenError,
    ExternalAccountError,
    KeysUnavailableError,
    RevokedTokenError,
)
from backend.auth.models import LOCAL
from backend.auth.sessions.service import Context, own
from backend.database import Database
from backend.telemetry import events
from backend.web.bearer import InvalidTokenError, UnauthorizedError, bearer_token
from backend.web.error_documentation import raises
from backend.web.errors import AppError, DatabaseUnavailableError, OverloadedError, WrongUserError

__all__ = ["CALLER_ID", "IS_LET_IN", "Caller", "CallerDep", "RevokedTokenError", "caller", "own"]

MAX_USER_AGENT_CHARACTERS = 400


class AccessToken(OAuth2PasswordBearer):
    """Guards the routes that need a caller, by a bearer token in a header (RFC 6750 section 2.1)."""

    raises: tuple[type[AppError], ...] = (
        UnauthorizedError,
        InvalidTokenError,
        ExpiredTokenError,
        RevokedTokenError,
        KeysUnavailableError,
    )

    async def __call__(self, request: Request) -> Caller:  # type: ignore[override]  # more than the token
        """Return the token's caller; raises `UnauthorizedError` and its subclasses, and `WrongUserError`."""
        caller = await _authenticated(request)
        events.identify(caller.user_id)
        user_id = request.path_params.get("user_id")
        if user_id is not None and unquote(user_id) != caller.user_id:
            raise WrongUserError
        return caller

    async def confirm(self, request: Request) -> None:
        """Raise `RevokedTokenError` if the caller's session is gone; only errors cost this statement."""
        database: Database = request.app.state.database
        caller = await _authenticated(request)
        if await database.one(statements.CONFIRM_CALLER, **caller.values) is None:
            raise RevokedTokenError


class OwnAccount(AccessToken):
    """Guards the routes of users who registered here: they have a password, sessions and a profile."""

    raises = (*AccessToken.raises, ExternalAccountError)

    async def __call__(self, request: Request) -> Caller:  # type: ignore[override]  # more than the token
        """Return the token's caller; raises as `AccessToken` does, and `ExternalAccountError`."""
        caller = await super().__call__(request)
        if caller.issuer != LOCAL:
            raise ExternalAccountError
        return caller


async def _authenticated(request: Request) -> Caller:
    state = request.app.state
    caller: Caller = await state.authenticator.authenticate(state.database, bearer_token(request))
    return caller


@raises(DatabaseUnavailableError, OverloadedError)
async def get_context(request: Request) -> Context:
    """Return the context; behind a trusted proxy, its client is the proxy's."""
    state, user_agent = request.app.state, request.headers.get("user-agent")
    return Context(
        database=state.database,
        sign_in=state.sign_in,
        ip=request.client.host if request.client else None,
        user_agent=user_agent and user_agent[:MAX_USER_AGENT_CHARACTERS],
    )


scheme = {"tokenUrl": "auth/token", "refreshUrl": "auth/token", "scheme_name": "Bearer"}

CallerDep = Annotated[Caller, Depends(AccessToken(**scheme))]
OwnAccountDep = Annotated[Caller, Depends(OwnAccount(**scheme))]
ContextDep = Annotated[Context, Depends(get_context)]
