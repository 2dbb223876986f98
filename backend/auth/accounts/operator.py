"""What an operator does to accounts, past the routes; a running service sees it at the next request.

Each change writes its event to the log.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from loguru import logger
from pydantic import TypeAdapter, ValidationError

from backend.auth.accounts import operator_statements as statements
from backend.auth.accounts.passwords import PasswordHasher, check_rules
from backend.auth.accounts.service import add_user
from backend.auth.accounts.statements import FIND_EMAIL, LEAVE_EMAIL
from backend.auth.errors import EmailTakenError
from backend.auth.mail.outbox import PAGES
from backend.auth.mail.outbox_statements import NEW_TOKEN
from backend.auth.mail.sender import sender_for
from backend.auth.mail.statements import LOCK_USER, Kind
from backend.auth.models import LOCAL
from backend.auth.schemas import Email, email_key
from backend.auth.tokens import opaque
from backend.database import Database, Row, Statement, Transaction
from backend.settings import Settings
from backend.telemetry.events import Event, logged_id
from backend.web.errors import AppError

User = dict[str, Any]


class UserNotFoundError(AppError):
    """No user has this email or id."""

    status = 404
    code = "user_not_found"
    detail = "no user has this email or id"


class NoResetError(AppError):
    """The account is disabled, or its password is kept elsewhere."""

    status = 403
    code = "no_reset"
    detail = "a reset link needs an account of this service that is not disabled"


@dataclass(frozen=True, slots=True)
class NewUser:
    """An account to create; without a password its owner chooses one by a reset link."""

    email: str
    name: str | None
    password: str | None


async def list_users(database: Database, **filters: Any) -> list[User]:
    """Return the newest users within the filters `unverified`, `disabled`, `part` and `limit`."""
    part = email_key(filters.pop("part"))
    return [_shown(row) for row in await database.all(statements.LIST_USERS, part=part, **filters)]


async def find_user(database: Database, who: str) -> User:
    """Return the user with this id or email; raises `UserNotFoundError`."""
    return _shown(await _find(database, who))


async def create_user(database: Database, settings: Settings, new: NewUser) -> User:
    """Create an account; raises `EmailTakenError` or `PasswordRefusedError`."""
    if new.password is not None:
        check_rules(new.password, email=new.email, min_length=settings.password_min_length)
    hasher = PasswordHasher(rounds=settings.bcrypt_rounds)
    try:
        # A secret that nobody has seen stands for the password that the owner will choose.
        password_hash = await hasher.hash(new.password or opaque.new_token(), "")
    finally:
        hasher.close()
    async with database.transaction() as transaction:
        user_id = await add_user(transaction, new.email, new.name, password_hash)
    if user_id is None:
        raise EmailTakenError
    _log(Event.REGISTERED, user_id)
    return await find_user(database, user_id)


async def invite(database: Database, settings: Settings, user: User) -> str | None:
    """Mail a link to choose a password; return it instead where no mail can be sent."""
    sender = sender_for(settings)
    if sender is None:
        return await reset_link(database, settings, user["id"])
    link = await _reset_link(database, settings, user["id"], Kind.RESET)
    try:
        where = await sender.send(Kind.INVITATION, user["email"], link)
    except Exception as error:  # noqa: BLE001  # whatever the server says, a link can be handed over
        _log(
            Event.MAIL_FAILED, user["id"], "WARNING", kind=Kind.INVITATION.value, reason=type(error).__name__
        )
        return await reset_link(database, settings, user["id"])
    _log(Event.MAIL_SENT, user["id"], kind=Kind.INVITATION.value, **where)
    return None


async def reset_link(database: Database, settings: Settings, who: str) -> str:
    """Return a link that sets a new password, once and within 30 minutes, and verifies no address.

    Raises `UserNotFoundError` or `NoResetError`.
    """
    return await _reset_link(database, settings, who, Kind.RESET_BY_HAND)


async def _reset_link(database: Database, settings: Settings, who: str, purpose: Kind) -> str:
    user = await _find(database, who)
    if user["issuer"] != LOCAL or user["disabled_at"] is not None:
        raise NoResetError
    token = opaque.new_token()
    values = {"user_id": user["id"], "email_key": user["email_key"], "created_at": None}
    made = await database.one(NEW_TOKEN[purpose], digest=opaque.digest(token), **values)
    if made is None:
        raise NoResetError
    return f"{settings.pages_url}{PAGES[Kind.RESET]}#token={token}"


async def disable_user(database: Database, who: str) -> User:
    """Refuse the user everywhere from now on, and end all sessions; raises `UserNotFoundError`."""
    changed = await _change(database, who, statements.DISABLE_USER)
    _log(Event.ACCOUNT_DISABLED, changed["id"], sessions_ended=changed["count"])
    return await find_user(database, changed["id"])


async def enable_user(database: Database, who: str) -> User:
    """Let the user sign in again; raises `UserNotFoundError`."""
    changed = await _change(database, who, statements.ENABLE_USER)
    _log(Event.ACCOUNT_ENABLED, changed["id"])
    return await find_user(database, changed["id"])


async def sign_out_user(database: Database, who: str) -> User:
    """End all sessions of the user; raises `UserNotFoundError`."""
    changed = await _change(database, who, statements.SIGN_OUT_USER)
    _log(Event.SESSION_REVOKED, changed["id"], count=changed["count"])
    return await find_user(database, changed["id"])


async def delete_user(database: Database, who: str) -> User:
    """Delete the user, their sessions and their tasks; raises `UserNotFoundError`."""
    user = await find_user(database, who)
    async with _locked(database, user["id"]) as transaction:
        deleted = _there(await transaction.one(statements.DELETE_USER, user_id=user["id"]))
        if deleted["email_key"] is not None:
            await transaction.one(LEAVE_EMAIL, email_key=deleted["email_key"], user_id=user["id"])
    _log(Event.ACCOUNT_DELETED, user["id"])
    return user


async def _find(database: Database, who: str) -> Row:
    """Return the user with this id, else the one with this email; raises `UserNotFoundError`."""
    try:
        email = TypeAdapter(Email).validate_python(who)
    except ValidationError:
        email = who
    row = await database.one(statements.FIND_USER, user_id=who)
    if row is None:
        owner = await database.one(FIND_EMAIL, email_key=email_key(email))
        row = owner and await database.one(statements.FIND_USER, user_id=owner["user_id"])
    return _there(row)


async def _change(database: Database, who: str, change: Statement) -> Row:
    """Make one change to the user while no other changes them."""
    user_id = (await _find(database, who))["id"]
    async with _locked(database, user_id) as transaction:
        return _there(await transaction.one(change, user_id=user_id))


@asynccontextmanager
async def _locked(database: Database, user_id: str) -> AsyncIterator[Transaction]:
    async with database.transaction() as transaction:
        await transaction.one(LOCK_USER, user_id=user_id)
        yield transaction


def _there(row: Row | None) -> Row:
    if row is None:
        raise UserNotFoundError
    return row


def _shown(row: Row) -> User:
    return {name: row[name] for name in statements.FIELDS}


def _log(event: Event, user_id: str, level: str = "INFO", **fields: Any) -> None:
    """Write the line of an event that belongs to no request."""
    unknown = dict.fromkeys(("request_id", "ip", "method", "route", "status", "duration_ms"))
    logger.bind(**unknown, user_id=logged_id(user_id), **fields).log(level, event.value)
