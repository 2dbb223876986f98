"""Dependencies of the routes: the guard that checks the access token, and objects that `/auth` needs."""

from typing import Annotated

from fastapi import Depends
from fastapi.security import OAuth2PasswordBearer
from starlette.requests import Request

from backend import events
from backend.auth import statements
from backend.auth.caller import Caller, caller
from backend.auth.errors import (
    ExpiredTokenError,
    ExternalAccountError,
    InvalidTokenError,
    KeysUnavailableError,
    NotBearerError,
    RevokedTokenError,
    UnauthorizedError,
)
from backend.auth.models import LOCAL
from backend.auth.sessions import Client, SignIn
from backend.database import Database
from backend.errors import AppError, WrongUserError

__all__ = ["Caller", "CallerDep", "ClientDep", "RevokedTokenError", "SignInDep", "bearer_token", "caller"]

MAX_USER_AGENT_CHARACTERS = 400
_BEARER = b"bearer "


class AccessToken(OAuth2PasswordBearer):
    """Guards the routes that need a caller: a bearer token in a header (RFC 6750 section 2.1)."""

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
        if request.path_params.get("user_id", caller.user_id) != caller.user_id:
            raise WrongUserError
        return caller

    async def confirm(self, request: Request) -> None:
        """Raise `RevokedTokenError` if the caller's session is gone; costs a statement, on refusals alone."""
        database: Database = request.app.state.database
        caller = await _authenticated(request)
        if await database.one(statements.CONFIRM_CALLER, **caller.values) is None:
            raise RevokedTokenError


class OwnAccount(AccessToken):
    """Guards the routes of users who registered here: they have a password, sessions and a profile."""

    raises = (*AccessToken.raises, ExternalAccountError)

    async def __call__(self, request: Request) -> Caller:  # type: ignore[override]  # as above
        """Return the token's caller; raises as `AccessToken` does, and `ExternalAccountError`."""
        caller = await super().__call__(request)
        if caller.issuer != LOCAL:
            raise ExternalAccountError(reason="external_account")
        return caller


async def _authenticated(request: Request) -> Caller:
    state = request.app.state
    caller: Caller = await state.authenticator.authenticate(state.database, bearer_token(request))
    return caller


def bearer_token(request: Request) -> str:
    """Return the bearer token of the request (RFC 6750 section 2.1); raises `UnauthorizedError`."""
    sent = [value for name, value in request.scope["headers"] if name == b"authorization"]
    if not sent:
        raise UnauthorizedError(reason="missing")
    if len(sent) > 1:
        raise InvalidTokenError(reason="two_headers")
    if sent[0][:7].lower() != _BEARER or not (token := sent[0][7:].strip(b" ")):
        raise NotBearerError(reason="malformed")
    return str(token, "latin-1")


def get_sign_in(request: Request) -> SignIn:
    """Return the process's one `SignIn`."""
    return request.app.state.sign_in  # type: ignore[no-any-return]  # Starlette's state is untyped


def get_client(request: Request) -> Client:
    """Return the client's address and user agent; behind a proxy that Uvicorn trusts, those of its client."""
    user_agent = request.headers.get("user-agent")
    return Client(
        ip=request.client.host if request.client else None,
        user_agent=user_agent and user_agent[:MAX_USER_AGENT_CHARACTERS],
    )


_scheme = {"tokenUrl": "auth/token", "refreshUrl": "auth/refresh", "scheme_name": "Bearer"}

CallerDep = Annotated[Caller, Depends(AccessToken(**_scheme))]
OwnAccountDep = Annotated[Caller, Depends(OwnAccount(**_scheme))]
ClientDep = Annotated[Client, Depends(get_client)]
SignInDep = Annotated[SignIn, Depends(get_sign_in)]
