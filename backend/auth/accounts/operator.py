"""Lists, creates and changes accounts for an operator. A running service obeys a change at its next request.

The argument `who` is an email or an id; the prefix `id:` marks an id. Each change logs its event.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import TypeAdapter, ValidationError

from backend.auth.accounts import operator_statements as statements
from backend.auth.accounts.passwords import PasswordHasher, check_rules
from backend.auth.accounts.service import add_user
from backend.auth.accounts.statements import FIND_EMAIL, LEAVE_EMAIL
from backend.auth.errors import EmailTakenError
from backend.auth.mail.outbox import PAGES
from backend.auth.mail.outbox_statements import RECIPIENT
from backend.auth.mail.sender import sender_for
from backend.auth.mail.statements import LOCK_USER, Kind
from backend.auth.schemas import Email, email_key
from backend.auth.tokens import opaque
from backend.database import Database, Row, Transaction
from backend.settings import Settings
from backend.telemetry.events import Event, write
from backend.web.errors import AppError

User = dict[str, Any]

CHANGES = {
    "disable": (statements.DISABLE_USER, Event.ACCOUNT_DISABLED),
    "enable": (statements.ENABLE_USER, Event.ACCOUNT_ENABLED),
    "sign-out": (statements.SIGN_OUT_USER, Event.SESSION_REVOKED),
}
"""A change's statement and event; the statement returns the `user_id` and the other fields of the event."""


class UserNotFoundError(AppError):
    """No user has this email or id."""

    detail = "no user has this email or id"


class AmbiguousUserError(AppError):
    """An external user's id is the email of another user."""

    detail = "one user has this email and another this id: name either as id:ID"


class NoResetError(AppError):
    """The account is disabled, or its password is kept elsewhere."""

    detail = "a reset link needs an account of this service that is not disabled"


async def list_users(database: Database, *, part: str, **filters: Any) -> list[User]:
    """Return the newest users with `part` in the email, within `unverified`, `disabled` and `limit`."""
    rows = await database.all(statements.LIST_USERS, part=email_key(part), **filters)
    return [_shown(row) for row in rows]


async def find_user(database: Database, who: str) -> User:
    """Return the user; raises `UserNotFoundError`, `AmbiguousUserError`."""
    return _shown(await _find(database, who))


async def create_user(
    database: Database, settings: Settings, *, email: str, name: str | None, password: str | None
) -> User:
    """Create an account; raises `EmailTakenError` or `PasswordRefusedError`.

    Without a password the owner chooses one by a reset link.
    """
    if password is not None:
        check_rules(password, email=email, min_length=settings.password_min_length)
    hasher = PasswordHasher(rounds=settings.bcrypt_rounds)
    try:
        password_hash = await hasher.hash(password or opaque.new_token(), "")
    finally:
        hasher.close()
    async with database.transaction() as transaction:
        user_id = await add_user(transaction, email, name, password_hash)
    if user_id is None:
        raise EmailTakenError
    write(Event.REGISTERED, user_id)
    return await find_user(database, f"id:{user_id}")


async def invite(database: Database, settings: Settings, user: User) -> str | None:
    """Mail a link to choose a password; return the link instead if no mail can be sent."""
    sender = sender_for(settings)
    if sender is not None:
        link = await _new_reset_link(database, settings, user["id"], Kind.RESET)
        kind = Kind.INVITATION.value
        try:
            logged = await sender.send(Kind.INVITATION, user["email"], link)
        except Exception as error:  # noqa: BLE001  # a failed delivery of any kind leaves the printed link
            write(Event.MAIL_FAILED, user["id"], level="WARNING", kind=kind, reason=type(error).__name__)
        else:
            write(Event.MAIL_SENT, user["id"], kind=kind, **logged)
            return None
    return await reset_link(database, settings, user["id"])


async def reset_link(database: Database, settings: Settings, who: str) -> str:
    """Return a link that sets a new password, once and within 30 minutes, and verifies no address.

    Raises `NoResetError`, and as `find_user` does.
    """
    return await _new_reset_link(database, settings, who, Kind.RESET_BY_HAND)


async def _new_reset_link(database: Database, settings: Settings, who: str, purpose: Kind) -> str:
    user, token = await _find(database, who), opaque.new_token()
    values = {"user_id": user["id"], "email_key": user["email_key"], "digest": opaque.digest(token)}
    made = await database.one(RECIPIENT[purpose], session_id=None, created_at=None, **values)
    if made is None:
        raise NoResetError
    return f"{settings.pages_url}{PAGES[Kind.RESET]}#token={token}"


async def change_user(database: Database, who: str, change: str) -> User:
    """Make a change of `CHANGES` to the user, and log it; raises as `find_user` does."""
    statement, event = CHANGES[change]
    async with _locked(database, who) as (transaction, user):
        changed = _there(await transaction.one(statement, user_id=user["id"]))
    write(event, **changed)
    return await find_user(database, by_id(user))


async def delete_user(database: Database, who: str) -> User:
    """Delete the user, their sessions and their tasks; raises as `find_user` does."""
    async with _locked(database, who) as (transaction, user):
        deleted = _there(await transaction.one(statements.DELETE_USER, user_id=user["id"]))
        if deleted["email_key"] is not None:
            await transaction.one(LEAVE_EMAIL, **deleted)
    write(Event.ACCOUNT_DELETED, user["id"])
    return _shown(user)


def by_id(user: User | Row) -> str:
    """Return the `who` that means this user alone, even after a change of emails."""
    return f"id:{user['id']}"


async def _find(database: Database, who: str) -> Row:
    user_id = who.removeprefix("id:")
    found = await database.one(statements.FIND_USER, user_id=user_id)
    if user_id == who:
        owner = await database.one(FIND_EMAIL, email_key=email_key(_normalised(who)))
        if found is not None and owner is not None and owner["user_id"] != user_id:
            raise AmbiguousUserError
        if owner is not None:
            found = await database.one(statements.FIND_USER, user_id=owner["user_id"])
    return _there(found)


def _normalised(email: str) -> str:
    try:
        return str(TypeAdapter(Email).validate_python(email))
    except ValidationError:
        return email


@asynccontextmanager
async def _locked(database: Database, who: str) -> AsyncIterator[tuple[Transaction, Row]]:
    """Yield a transaction that holds the lock of the user's row, as the order of locks requires."""
    user = await _find(database, who)
    async with database.transaction() as transaction:
        await transaction.one(LOCK_USER, user_id=user["id"])
        yield transaction, user


def _there(row: Row | None) -> Row:
    if row is None:
        raise UserNotFoundError
    return row


def _shown(row: Row) -> User:
    return {name: row[name] for name in statements.FIELDS}
