"""The `/auth` routes: accounts, sign-in, sessions and the profile."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Form, Path
from pydantic import BeforeValidator
from starlette.responses import Response

from backend.auth import errors, schemas
from backend.auth.accounts import service
from backend.auth.cookies import SETS_COOKIE, CookieDep, CookieTokenDep, LeavingDep, SignInCookieDep
from backend.auth.dependencies import Caller, CallerDep, ContextDep, OwnAccountDep
from backend.auth.sessions import service as sessions
from backend.database import DatabaseError
from backend.web.bearer import UnauthorizedError
from backend.web.database import DatabaseDep
from backend.web.error_documentation import raises
from backend.web.error_responses import of_framework
from backend.web.errors import (
    TOKEN_ENDPOINT,
    MissingFieldsError,
    RateLimitedError,
    ServiceUnavailableError,
)
from backend.web.json_response import Answer
from backend.web.routing import Route, route_class


def _session_id(value: str) -> UUID:
    """Return the id of a session; raises `SessionNotFoundError` for text that is no UUID."""
    try:
        return UUID(value)
    except ValueError:
        raise errors.SessionNotFoundError from None


SessionId = Annotated[
    UUID,
    Path(description="One of your sessions", examples=["01a1f95c-de91-7602-9705-5b761cf48293"]),
    BeforeValidator(_session_id),
]

SIGN_IN_REFUSALS = (
    errors.AccountDisabledError,
    errors.EmailUnverifiedError,
    RateLimitedError,
    ServiceUnavailableError,
)
"""Errors of a sign-in with the right password, or before the password is checked."""
NO_TOKEN = schemas.Refresh()
"""A body without a token, if the cookie has it."""

router = APIRouter(prefix="/auth", tags=["auth"], route_class=Route)
token_router = APIRouter(prefix="/auth", tags=["auth"], route_class=route_class(TOKEN_ENDPOINT))


@router.post(
    "/register",
    status_code=201,
    response_model=schemas.Tokens,
    summary="Create an account and sign in",
    responses={
        201: SETS_COOKIE,
        202: {"description": "A link was mailed, because the email must be verified first"},
    },
)
@raises(errors.EmailTakenError, RateLimitedError, ServiceUnavailableError)
async def register(context: ContextDep, cookie: SignInCookieDep, data: schemas.Registration) -> Response:
    """Create an account with an email, a password and, if you like, a name, and sign it in at once.

    The email is checked for its form, stored normalised, and unique without regard to case. A password has
    8 to 128 characters of any kind. It is not one of the most common passwords and not the email.
    """
    tokens = await service.register(context, data)
    if tokens is None:
        return Response(status_code=202)
    return cookie.answer(tokens, 201) if data.uses_cookie else Answer(tokens, 201)


@router.post("/login", response_model=schemas.Tokens, summary="Sign in", responses={200: SETS_COOKIE})
@raises(errors.InvalidCredentialsError, *SIGN_IN_REFUSALS)
async def login(context: ContextDep, cookie: SignInCookieDep, data: schemas.Credentials) -> Answer:
    """Sign in with email and password.

    An unknown email and a wrong password get the same answer, in the same time.
    """
    tokens = await service.login(context, data)
    return cookie.answer(tokens) if data.uses_cookie else Answer(tokens)


@token_router.post(
    "/token", response_model=schemas.Tokens, summary="Sign in or refresh by an OAuth 2.0 grant"
)
@raises(errors.InvalidGrantError, errors.UnsupportedGrantTypeError, *SIGN_IN_REFUSALS)
async def token(context: ContextDep, data: Annotated[schemas.TokenGrant, Form()]) -> Answer:
    """Sign in with a form, as Swagger UI's Authorize does, or refresh, as OAuth libraries do.

    `grant_type` is `password` (the default), where `username` is the email, or `refresh_token`.
    Errors carry `error` and `error_description` (RFC 6749 section 5.2) beside the fields of all errors.
    """
    return Answer(await service.token(context, data))


@router.post(
    "/refresh", response_model=schemas.Tokens, summary="Refresh your tokens", responses={200: SETS_COOKIE}
)
@raises(errors.InvalidRefreshTokenError)
async def refresh(context: ContextDep, cookie: CookieTokenDep, data: schemas.Refresh = NO_TOKEN) -> Answer:
    """Spend a refresh token for new tokens.

    A token gets working tokens up to three times within ten seconds, because several tabs may send it.
    A later use means theft: the session ends, and the user has to sign in again.
    Without a token in the body, that of the session's cookie counts, and the new one goes into the cookie.
    """
    if cookie.token is not None:
        return cookie.answer(await sessions.refresh(context, cookie.token))
    if "refresh_token" not in data.model_fields_set:
        raise MissingFieldsError("refresh_token")
    return Answer(await sessions.refresh(context, data.refresh_token))


@router.post(
    "/logout",
    status_code=204,
    summary="Sign out",
    responses={204: SETS_COOKIE},
    openapi_extra={"security": [{"RefreshCookie": []}]},
)
@raises(errors.InvalidRefreshTokenError)
async def logout(database: DatabaseDep, cookie: CookieDep, leaving: LeavingDep) -> Response:
    """End this session now: every process refuses its access and refresh tokens from now on.

    Without an access token, or with one that has expired, the session of the cookie ends.
    The cookie is cleared in any case.
    """
    try:
        if isinstance(leaving, Caller):
            await sessions.logout(database, leaving)
        else:
            await sessions.end_by_refresh_token(database, leaving)
    except (UnauthorizedError, DatabaseError) as error:
        refusal = of_framework(error)
        refusal.headers |= cookie.clearing
        raise refusal from None
    return Response(status_code=204, headers=cookie.clearing)


@router.get("/sessions", response_model=list[schemas.SessionRead], summary="List your sessions")
async def list_sessions(database: DatabaseDep, caller: OwnAccountDep) -> Answer:
    """List where you are signed in, the last used first."""
    return Answer(await sessions.list_sessions(database, caller))


@router.delete("/sessions", status_code=204, summary="End your other sessions")
async def end_other_sessions(database: DatabaseDep, caller: OwnAccountDep) -> Response:
    """End all your sessions but this one, now."""
    await sessions.end_other_sessions(database, caller)
    return Response(status_code=204)


@router.delete("/sessions/{session_id}", status_code=204, summary="End a session")
@raises(errors.SessionNotFoundError)
async def end_session(database: DatabaseDep, caller: OwnAccountDep, session_id: SessionId) -> Response:
    """End one session of yours, now; this one as well, if you name it."""
    await sessions.end_session(database, caller, session_id)
    return Response(status_code=204)


@router.post(
    "/password", response_model=schemas.Tokens, summary="Change your password", responses={200: SETS_COOKIE}
)
@raises(errors.WrongPasswordError, RateLimitedError, ServiceUnavailableError)
async def change_password(
    context: ContextDep, caller: OwnAccountDep, cookie: CookieDep, data: schemas.PasswordChange
) -> Answer:
    """Change your password. Every other session of yours ends now; this one goes on with new tokens."""
    tokens, uses_cookie = await service.change_password(context, caller, data)
    return cookie.answer(tokens) if uses_cookie else Answer(tokens)


@router.get("/me", response_model=schemas.UserRead, summary="Read your profile")
async def read_profile(database: DatabaseDep, caller: CallerDep) -> Answer:
    """Return the user whose token this is."""
    return Answer(await service.read_profile(database, caller))


@router.patch("/me", response_model=schemas.UserRead, summary="Change your profile")
async def update_profile(database: DatabaseDep, caller: OwnAccountDep, data: schemas.ProfileUpdate) -> Answer:
    """Change your name; null clears it."""
    return Answer(await service.update_profile(database, caller, data))


@router.delete("/me", status_code=204, summary="Delete your account")
@raises(errors.WrongPasswordError, RateLimitedError, ServiceUnavailableError)
async def delete_account(
    context: ContextDep, caller: OwnAccountDep, data: schemas.PasswordConfirmation
) -> Response:
    """Delete your account, your sessions and your tasks, for good."""
    await service.delete_account(context, caller, data)
    return Response(status_code=204)
