"""Sessions: sign-in begins them, refresh tokens extend them, and the user or a reused token ends them."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from uuid_utils import compat

from backend.auth.accounts.passwords import PasswordHasher
from backend.auth.caller import Caller
from backend.auth.errors import InvalidRefreshTokenError, RevokedTokenError, SessionNotFoundError
from backend.auth.mail.outbox import Outbox
from backend.auth.schemas import UserRead
from backend.auth.sessions import refresh_statements
from backend.auth.sessions import statements as session_statements
from backend.auth.sessions.sweep import Sweep
from backend.auth.tokens import opaque
from backend.auth.tokens.access import AccessTokens
from backend.database import Database, DatabaseError, Row
from backend.settings import Settings
from backend.telemetry import events
from backend.telemetry.events import Event
from backend.web.rate_limits import RateLimits, address_of


class SignIn:
    """The dependencies of sign-in except the database: keys, hash threads, rules, limits and lifetimes."""

    def __init__(self, settings: Settings) -> None:
        self.access_tokens = AccessTokens(settings)
        self.hasher = PasswordHasher(rounds=settings.bcrypt_rounds, processes=settings.workers)
        self.limits = RateLimits(settings)
        self.outbox = Outbox(settings)
        self.sweep = Sweep()
        self.highest_cost = 0
        """The highest cost of all stored hashes at the last query."""
        self.requires_verification = settings.email_verification == "required"
        self.password_min_length = settings.password_min_length
        self.lifetimes = {
            "session_life": timedelta(days=settings.session_days),
            "session_idle_life": timedelta(days=settings.session_idle_days),
        }


@dataclass(frozen=True, slots=True)
class Context:
    """The database, the process's `SignIn` and the client's traits: most functions on a request need them."""

    database: Database
    sign_in: SignIn
    ip: str | None
    user_agent: str | None

    @property
    def address(self) -> str:
        """The IPv4 address or the IPv6 network that rate limits count."""
        return address_of(self.ip)


class NewTokens:
    """A refresh token that is about to be stored, for a new or an existing session.

    `values` are the parameters of the statements that store it.
    """

    def __init__(self, context: Context, user_id: str, *, uses_cookie: bool = False) -> None:
        self._access_tokens = context.sign_in.access_tokens
        self._user_id, self.session_id = user_id, compat.uuid7()
        self._refresh_token = opaque.new_token(user_id)
        self.values: dict[str, Any] = {
            "user_id": user_id,
            "session_id": self.session_id,
            "refresh_digest": opaque.digest(self._refresh_token),
            "user_agent": context.user_agent,
            "ip": context.ip,
            "uses_cookie": uses_cookie,
            "address": context.address,
            **context.sign_in.lifetimes,
        }

    def issue(self, user: Row, session_id: UUID | None = None) -> dict[str, Any]:
        """Return the response that signs `user` in, to `session_id` or else to the new session."""
        return {
            "access_token": self._access_tokens.issue(self._user_id, session_id or self.session_id),
            "token_type": "bearer",
            "expires_in": self._access_tokens.lifetime,
            "refresh_token": self._refresh_token,
            "user": {name: user[name] for name in UserRead.model_fields},
        }


def own(row: Row | None) -> Row:
    """Return the row of a statement on the caller; raises `RevokedTokenError` if there is none."""
    if row is None:
        raise RevokedTokenError
    return row


async def refresh(context: Context, refresh_token: str) -> dict[str, Any]:
    """Spend a refresh token for new tokens; raises `InvalidRefreshTokenError` (RFC 9700 section 4.14).

    A token is valid for `USES_WITHIN_GRACE` uses within `REFRESH_GRACE`. A later use ends the session in a
    separate statement, which the error does not roll back.
    """
    database = context.database
    user_id = await _owner(database, refresh_token)
    spent, new = opaque.digest(refresh_token), NewTokens(context, user_id)
    user = await database.one(refresh_statements.REFRESH, spent_digest=spent, **new.values)
    if user is not None:
        events.identify(user_id)
        again = {"level": "WARNING", "within_grace": True} if user["within_grace"] else {}
        events.record(Event.REFRESHED, session_id=user["session_id"], **again)
        return new.issue(user, user["session_id"])
    reused = await database.one(refresh_statements.END_REUSED, user_id=user_id, spent_digest=spent)
    if reused is None:
        raise InvalidRefreshTokenError(reason="refresh_token")
    events.identify(user_id)
    events.record(Event.REFRESH_REUSED, session_id=reused["id"])
    raise InvalidRefreshTokenError(reason="refresh_reused")


async def _owner(database: Database, refresh_token: str) -> str:
    user_id = opaque.owner_of(refresh_token)
    if user_id == "":
        digest = opaque.digest(refresh_token)
        row = await database.one(refresh_statements.OWNER_OF_TOKEN, digest=digest)
        user_id = row["user_id"] if row else None
    if user_id is None:
        raise InvalidRefreshTokenError(reason="refresh_token")
    return user_id


async def list_sessions(database: Database, caller: Caller) -> list[dict[str, Any]]:
    """Return the caller's live sessions, most recently used first; raises `RevokedTokenError`."""
    rows = await database.all(session_statements.LIST_SESSIONS, **caller.values)
    if not rows:
        raise RevokedTokenError
    return [dict(row) for row in rows]


async def logout(database: Database, caller: Caller) -> None:
    """End the caller's session, for every process at once; raises `RevokedTokenError`."""
    ended = await database.one(session_statements.END_SESSION, session_id=caller.session_id, **caller.values)
    if own(ended)["id"] is None:
        raise RevokedTokenError
    events.record(Event.LOGOUT, session_id=caller.session_id)


async def end_by_refresh_token(database: Database, refresh_token: str) -> None:
    """End the session of a refresh token, spent or not; raises `InvalidRefreshTokenError`."""
    user_id = await _owner(database, refresh_token)
    ended = await database.one(
        refresh_statements.END_BY_REFRESH_TOKEN,
        user_id=user_id,
        spent_digest=opaque.digest(refresh_token),
    )
    if ended is None:
        raise InvalidRefreshTokenError(reason="refresh_token")
    events.identify(user_id)
    events.record(Event.LOGOUT, session_id=ended["id"])


async def end_session(database: Database, caller: Caller, session_id: UUID) -> None:
    """End one session of the caller's; raises `RevokedTokenError`, `SessionNotFoundError`."""
    ended = await database.one(session_statements.END_SESSION, session_id=session_id, **caller.values)
    if own(ended)["id"] is None:
        raise SessionNotFoundError
    events.record(Event.SESSION_REVOKED, session_id=session_id)


async def end_other_sessions(database: Database, caller: Caller) -> None:
    """End all sessions of the caller's but this one; raises `RevokedTokenError`."""
    _record_ended(own(await database.one(session_statements.END_OTHER_SESSIONS, **caller.values)))


async def end_oldest_sessions(database: Database, signed_in: Row) -> None:
    """End the user's sessions beyond `MAX_SESSIONS`. `signed_in` is the row of the sign-in before."""
    # From half the limit on, a sign-in counts again, because concurrent sign-ins do not see each other.
    if signed_in["count"] < session_statements.MAX_SESSIONS // 2:
        return
    with suppress(DatabaseError):  # the next sign-in tries again
        ended = await database.one(session_statements.END_OLDEST_SESSIONS, user_id=signed_in["id"])
        _record_ended(ended)


def _record_ended(ended: Row | None) -> None:
    if ended is not None and ended["count"]:
        events.record(Event.SESSION_REVOKED, count=ended["count"])
