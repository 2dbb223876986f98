"""Who asks, for the routes: the guard that reads the access token, and what the handlers of `/auth` need."""

from typing import Annotated

from fastapi import Depends
from fastapi.security import OAuth2PasswordBearer
from starlette.requests import Request

from backend import events
from backend.auth import statements
from backend.auth.caller import Caller, caller
from backend.auth.errors import ExpiredTokenError, InvalidTokenError, RevokedTokenError, UnauthorizedError
from backend.auth.service import Client, SignIn
from backend.database import Database
from backend.errors import WrongUserError

__all__ = ["Caller", "CallerDep", "ClientDep", "RevokedTokenError", "SignInDep", "caller"]

MAX_USER_AGENT_CHARACTERS = 400
_BEARER = b"bearer "


class AccessToken(OAuth2PasswordBearer):
    """The guard of every route that is somebody's: a bearer token in a header (RFC 6750 section 2.1)."""

    raises = (UnauthorizedError, InvalidTokenError, ExpiredTokenError, RevokedTokenError)

    def __call__(self, request: Request) -> Caller:  # type: ignore[override]  # a token is checked at once
        """Return who sent the token; raises `UnauthorizedError` and its kinds, and `WrongUserError`."""
        caller = _verified(request)
        events.identify(caller.user_id)
        if request.path_params.get("user_id", caller.user_id) != caller.user_id:
            raise WrongUserError
        return caller

    async def confirm(self, request: Request) -> None:
        """Raise `RevokedTokenError` if the caller's session is gone; a statement that refusals alone need."""
        database: Database = request.app.state.database
        if await database.one(statements.CONFIRM_CALLER, **_verified(request).values) is None:
            raise RevokedTokenError


def _verified(request: Request) -> Caller:
    sign_in: SignIn = request.app.state.sign_in
    return sign_in.access_tokens.verify(_bearer_token(request))


def _bearer_token(request: Request) -> str:
    sent = [value for name, value in request.scope["headers"] if name == b"authorization"]
    if not sent:
        raise UnauthorizedError(reason="missing")
    if len(sent) > 1:
        raise InvalidTokenError(reason="two_headers")
    if sent[0][:7].lower() != _BEARER or not (token := sent[0][7:].strip(b" ")):
        raise UnauthorizedError(reason="malformed")
    return str(token, "latin-1")


def get_sign_in(request: Request) -> SignIn:
    """Return what signing in needs; one per process."""
    return request.app.state.sign_in  # type: ignore[no-any-return]  # Starlette's state is untyped


def get_client(request: Request) -> Client:
    """Return where the request comes from; behind a proxy that Uvicorn trusts, the proxy's client."""
    user_agent = request.headers.get("user-agent")
    return Client(
        ip=request.client.host if request.client else None,
        user_agent=user_agent and user_agent[:MAX_USER_AGENT_CHARACTERS],
    )


CallerDep = Annotated[
    Caller, Depends(AccessToken(tokenUrl="auth/token", refreshUrl="auth/refresh", scheme_name="Bearer"))
]
ClientDep = Annotated[Client, Depends(get_client)]
SignInDep = Annotated[SignIn, Depends(get_sign_in)]
