"""The `/auth` routes: accounts, sign-in, sessions and the profile."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Form, Path
from pydantic import BeforeValidator

from backend import errors
from backend.auth import service, sessions
from backend.auth.dependencies import CallerDep, ClientDep, OwnAccountDep, SignInDep
from backend.auth.errors import (
    EmailTakenError,
    InvalidCredentialsError,
    InvalidGrantError,
    InvalidRefreshTokenError,
    SessionNotFoundError,
    UnsupportedGrantTypeError,
    WrongPasswordError,
)
from backend.auth.schemas import (
    Credentials,
    PasswordChange,
    PasswordConfirmation,
    PasswordGrant,
    ProfileUpdate,
    Refresh,
    Registration,
    SessionRead,
    Tokens,
    UserRead,
)
from backend.database.dependencies import DatabaseDep
from backend.errors import RateLimitedError, ServiceUnavailableError
from backend.routing import Route, raises, route_class


def _session_id(value: str) -> UUID:
    """Return a session's id; any other text names no session."""
    try:
        return UUID(value)
    except ValueError:
        raise SessionNotFoundError from None


SessionId = Annotated[
    UUID,
    Path(description="One of your sessions", examples=["01a1f95c-de91-7602-9705-5b761cf48293"]),
    BeforeValidator(_session_id),
]

router = APIRouter(prefix="/auth", tags=["auth"], route_class=Route)
token_router = APIRouter(prefix="/auth", tags=["auth"], route_class=route_class(errors.TOKEN_ENDPOINT))


@router.post("/register", status_code=201, response_model=Tokens, summary="Create an account and sign in")
@raises(EmailTakenError, RateLimitedError, ServiceUnavailableError)
async def register(
    database: DatabaseDep, sign_in: SignInDep, client: ClientDep, data: Annotated[Registration, Body()]
) -> dict[str, Any]:
    """Create an account with an email, a password and, if you like, a name, and sign it in at once.

    The email is checked for its form, stored normalised, and unique without regard to case. A password has
    8 to 128 characters, whatever they are, is not one of the most common ones and not the email.
    """
    return await service.register(database, sign_in, client, data) or {}


@router.post("/login", response_model=Tokens, summary="Sign in")
@raises(InvalidCredentialsError, RateLimitedError, ServiceUnavailableError)
async def login(
    database: DatabaseDep, sign_in: SignInDep, client: ClientDep, data: Annotated[Credentials, Body()]
) -> dict[str, Any]:
    """Sign in with email and password.

    An unknown email and a wrong password get the same answer, in the same time.
    """
    return await service.login(database, sign_in, client, data)


@token_router.post("/token", response_model=Tokens, summary="Sign in by the OAuth 2.0 password grant")
@raises(InvalidGrantError, UnsupportedGrantTypeError, RateLimitedError, ServiceUnavailableError)
async def token(
    database: DatabaseDep, sign_in: SignInDep, client: ClientDep, data: Annotated[PasswordGrant, Form()]
) -> dict[str, Any]:
    """Sign in with a form, as Swagger UI's Authorize does; `username` is the email (RFC 6749 section 4.3).

    Errors carry `error` and `error_description` (RFC 6749 section 5.2) beside the fields of any other.
    """
    return await service.token(database, sign_in, client, data)


@router.post("/refresh", response_model=Tokens, summary="Refresh your tokens")
@raises(InvalidRefreshTokenError)
async def refresh(
    database: DatabaseDep, sign_in: SignInDep, client: ClientDep, data: Annotated[Refresh, Body()]
) -> dict[str, Any]:
    """Get new tokens for a refresh token, which is spent by it.

    The same token up to three times within ten seconds, as tabs may send it, gets a working pair each time.
    Used again later it was stolen: the session ends, and whoever holds its tokens has to sign in again.
    """
    return await sessions.refresh(database, sign_in, client, data)


@router.post("/logout", status_code=204, summary="Sign out")
async def logout(database: DatabaseDep, caller: OwnAccountDep) -> None:
    """End this session now: its access and refresh tokens are refused from here on, by every process."""
    await sessions.logout(database, caller)


@router.get("/sessions", response_model=list[SessionRead], summary="List your sessions")
async def list_sessions(database: DatabaseDep, caller: OwnAccountDep) -> list[dict[str, Any]]:
    """List where you are signed in, the last used first."""
    return await sessions.list_sessions(database, caller)


@router.delete("/sessions", status_code=204, summary="End your other sessions")
async def end_other_sessions(database: DatabaseDep, caller: OwnAccountDep) -> None:
    """End all your sessions but this one, now."""
    await sessions.end_other_sessions(database, caller)


@router.delete("/sessions/{session_id}", status_code=204, summary="End a session")
@raises(SessionNotFoundError)
async def end_session(database: DatabaseDep, caller: OwnAccountDep, session_id: SessionId) -> None:
    """End one session of yours, now; this one as well, if you name it."""
    await sessions.end_session(database, caller, session_id)


@router.post("/password", response_model=Tokens, summary="Change your password")
@raises(WrongPasswordError, RateLimitedError, ServiceUnavailableError)
async def change_password(
    database: DatabaseDep,
    sign_in: SignInDep,
    client: ClientDep,
    caller: OwnAccountDep,
    data: Annotated[PasswordChange, Body()],
) -> dict[str, Any]:
    """Change your password. Every other session of yours ends now; this one goes on with new tokens."""
    return await service.change_password(database, sign_in, client, caller, data)


@router.get("/me", response_model=UserRead, summary="Read your profile")
async def read_profile(database: DatabaseDep, caller: CallerDep) -> dict[str, Any]:
    """Return the user whose token this is."""
    return await service.read_profile(database, caller)


@router.patch("/me", response_model=UserRead, summary="Change your profile")
async def update_profile(
    database: DatabaseDep, caller: OwnAccountDep, data: Annotated[ProfileUpdate, Body()]
) -> dict[str, Any]:
    """Change your name; null clears it."""
    return await service.update_profile(database, caller, data)


@router.delete("/me", status_code=204, summary="Delete your account")
@raises(WrongPasswordError, RateLimitedError, ServiceUnavailableError)
async def delete_account(
    database: DatabaseDep,
    sign_in: SignInDep,
    client: ClientDep,
    caller: OwnAccountDep,
    data: Annotated[PasswordConfirmation, Body()],
) -> None:
    """Delete your account, your sessions and your tasks, for good."""
    await service.delete_account(database, sign_in, client, caller, data)
