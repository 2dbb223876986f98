"""Registering, signing in and out, and the profile: the work behind the `/auth` routes."""

import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from pydantic import ValidationError
from uuid_utils import compat

from backend import events
from backend.auth import passwords, statements, tokens
from backend.auth.caller import Caller
from backend.auth.errors import (
    EmailTakenError,
    InvalidCredentialsError,
    InvalidGrantError,
    RevokedTokenError,
    UnsupportedGrantTypeError,
)
from backend.auth.passwords import PasswordHasher
from backend.auth.schemas import Credentials, PasswordGrant, ProfileUpdate, Registration
from backend.auth.tokens import AccessTokens
from backend.database import Database, Row
from backend.errors import ServiceUnavailableError
from backend.events import Event
from backend.settings import Settings


@dataclass(frozen=True, slots=True)
class Client:
    """Where a sign-in comes from, as the list of sessions shows it."""

    ip: str | None
    user_agent: str | None


class SignIn:
    """What signing in needs besides the database: keys, hash threads, rules and lifetimes."""

    def __init__(self, settings: Settings) -> None:
        self.access_tokens = AccessTokens(settings)
        self.hasher = PasswordHasher(rounds=settings.bcrypt_rounds, processes=settings.workers)
        self.password_min_length = settings.password_min_length
        self.session_lifetime = timedelta(days=min(settings.session_days, settings.session_idle_days))


@dataclass(frozen=True, slots=True)
class _NewSession:
    id: UUID = field(default_factory=compat.uuid7)
    refresh_token: str = field(default_factory=tokens.new_refresh_token)

    def values(self, sign_in: SignIn, client: Client) -> dict[str, Any]:
        return {
            "session_id": self.id,
            "session_lifetime": sign_in.session_lifetime,
            "refresh_digest": tokens.digest(self.refresh_token),
            "user_agent": client.user_agent,
            "ip": client.ip,
        }

    def tokens(self, sign_in: SignIn, user: Row) -> dict[str, Any]:
        return {
            "access_token": sign_in.access_tokens.issue(user["id"], self.id),
            "token_type": "bearer",
            "expires_in": sign_in.access_tokens.lifetime,
            "refresh_token": self.refresh_token,
            "user": dict(user),
        }


def _email_key(email: str) -> str:
    """Return what is the same for the same email in any letter case (Unicode section 3.13, D145)."""
    return unicodedata.normalize("NFC", email.casefold())


async def register(database: Database, sign_in: SignIn, client: Client, data: Registration) -> dict[str, Any]:
    """Create an account and sign it in; raises `EmailTakenError`, `PasswordRefusedError` (R4-FR-003)."""
    passwords.check_rules(data.password, email=data.email, min_length=sign_in.password_min_length)
    email_key = _email_key(data.email)
    if await database.one(statements.FIND_ACCOUNT, email_key=email_key) is not None:
        raise EmailTakenError
    session = _NewSession()
    user = await database.one(
        statements.REGISTER,
        user_id=str(compat.uuid7()),
        email=data.email,
        email_key=email_key,
        name=data.name,
        password_hash=await sign_in.hasher.hash(data.password),
        **session.values(sign_in, client),
    )
    if user is None:
        raise EmailTakenError
    events.identify(user["id"])
    events.record(Event.REGISTERED, session_id=session.id)
    return session.tokens(sign_in, user)


async def login(database: Database, sign_in: SignIn, client: Client, data: Credentials) -> dict[str, Any]:
    """Sign in; raises `InvalidCredentialsError` after one hash, the email known or not (R4-FR-004)."""
    email_key = _email_key(data.email)
    account = await database.one(statements.FIND_ACCOUNT, email_key=email_key)
    stored = account["password_hash"] if account else None
    session, user = _NewSession(), None
    if await sign_in.hasher.verify(data.password, stored):
        user = await database.one(
            statements.SIGN_IN,
            password_hash=stored,
            email_key=email_key,
            **session.values(sign_in, client),
        )
    if user is None or stored is None:
        events.record(Event.LOGIN_FAILED, account_id=account["id"] if account else None)
        raise InvalidCredentialsError(reason="credentials")
    events.identify(user["id"])
    events.record(Event.LOGIN, session_id=session.id)
    await _upgrade_hash(database, sign_in, data.password, user["id"], stored)
    return session.tokens(sign_in, user)


async def _upgrade_hash(
    database: Database, sign_in: SignIn, password: str, user_id: str, stored: str
) -> None:
    """Store the password by today's scheme and cost, unless it has been changed meanwhile."""
    if not sign_in.hasher.is_outdated(stored):
        return
    with suppress(ServiceUnavailableError):  # the next login will do
        new_hash = await sign_in.hasher.hash(password)
        await database.one(statements.UPGRADE_HASH, user_id=user_id, old_hash=stored, new_hash=new_hash)


async def token(database: Database, sign_in: SignIn, client: Client, data: PasswordGrant) -> dict[str, Any]:
    """Sign in by the password grant; raises `InvalidGrantError`, `UnsupportedGrantTypeError`."""
    if data.grant_type != "password":
        raise UnsupportedGrantTypeError
    try:
        credentials = Credentials(email=data.username, password=data.password)
        return await login(database, sign_in, client, credentials)
    except ValidationError as error:
        events.record(Event.LOGIN_FAILED, account_id=None)
        raise InvalidGrantError from error
    except InvalidCredentialsError as error:
        raise InvalidGrantError from error


async def logout(database: Database, caller: Caller) -> None:
    """End the caller's session, for every process at once; raises `RevokedTokenError`."""
    ended = await database.one(statements.END_SESSION, session_id=caller.session_id, **caller.values)
    if ended is None:
        raise RevokedTokenError
    events.record(Event.LOGOUT, session_id=caller.session_id)


async def read_profile(database: Database, caller: Caller) -> dict[str, Any]:
    """Return the caller's user; raises `RevokedTokenError`."""
    return _own(await database.one(statements.READ_PROFILE, **caller.values))


async def update_profile(database: Database, caller: Caller, data: ProfileUpdate) -> dict[str, Any]:
    """Change the caller's name, or clear it; raises `RevokedTokenError`."""
    return _own(await database.one(statements.UPDATE_PROFILE, new_name=data.name, **caller.values))


def _own(row: Row | None) -> dict[str, Any]:
    if row is None:
        raise RevokedTokenError
    return dict(row)
