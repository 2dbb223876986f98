"""The `/auth` routes: accounts, sign-in, and the profile."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Form

from backend import errors
from backend.auth import service
from backend.auth.dependencies import CallerDep, ClientDep, SignInDep
from backend.auth.errors import (
    EmailTakenError,
    InvalidCredentialsError,
    InvalidGrantError,
    UnsupportedGrantTypeError,
)
from backend.auth.schemas import Credentials, PasswordGrant, ProfileUpdate, Registration, Tokens, UserRead
from backend.database.dependencies import DatabaseDep
from backend.errors import ServiceUnavailableError
from backend.routing import Route, raises, route_class

router = APIRouter(prefix="/auth", tags=["auth"], route_class=Route)
token_router = APIRouter(prefix="/auth", tags=["auth"], route_class=route_class(errors.TOKEN_ENDPOINT))


@router.post("/register", status_code=201, response_model=Tokens, summary="Create an account and sign in")
@raises(EmailTakenError, ServiceUnavailableError)
async def register(
    database: DatabaseDep, sign_in: SignInDep, client: ClientDep, data: Annotated[Registration, Body()]
) -> dict[str, Any]:
    """Create an account with an email, a password and, if you like, a name, and sign it in at once.

    The email is checked for its form, stored normalised, and unique without regard to case. A password has
    8 to 128 characters, whatever they are, is not one of the most common ones and not the email.
    """
    return await service.register(database, sign_in, client, data)


@router.post("/login", response_model=Tokens, summary="Sign in")
@raises(InvalidCredentialsError, ServiceUnavailableError)
async def login(
    database: DatabaseDep, sign_in: SignInDep, client: ClientDep, data: Annotated[Credentials, Body()]
) -> dict[str, Any]:
    """Sign in with email and password.

    An unknown email and a wrong password get the same answer, in the same time.
    """
    return await service.login(database, sign_in, client, data)


@token_router.post("/token", response_model=Tokens, summary="Sign in by the OAuth 2.0 password grant")
@raises(InvalidGrantError, UnsupportedGrantTypeError, ServiceUnavailableError)
async def token(
    database: DatabaseDep, sign_in: SignInDep, client: ClientDep, data: Annotated[PasswordGrant, Form()]
) -> dict[str, Any]:
    """Sign in with a form, as Swagger UI's Authorize does; `username` is the email (RFC 6749 section 4.3).

    Errors carry `error` and `error_description` (RFC 6749 section 5.2) beside the fields of any other.
    """
    return await service.token(database, sign_in, client, data)


@router.post("/logout", status_code=204, summary="Sign out")
async def logout(database: DatabaseDep, caller: CallerDep) -> None:
    """End this session now: its access and refresh tokens are refused from here on, by every process."""
    await service.logout(database, caller)


@router.get("/me", response_model=UserRead, summary="Read your profile")
async def read_profile(database: DatabaseDep, caller: CallerDep) -> dict[str, Any]:
    """Return the user whose token this is."""
    return await service.read_profile(database, caller)


@router.patch("/me", response_model=UserRead, summary="Change your profile")
async def update_profile(
    database: DatabaseDep, caller: CallerDep, data: Annotated[ProfileUpdate, Body()]
) -> dict[str, Any]:
    """Change your name; null clears it."""
    return await service.update_profile(database, caller, data)
