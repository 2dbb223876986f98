"""Lists, creates and changes accounts for an operator. A running service obeys a change at its next request.

The argument `who` is an email, or else an id; the prefix `id:` marks an id. Each change logs its event.
"""

from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter, ValidationError

from backend.auth.accounts import operator_statements as statements
from backend.auth.accounts.passwords import PasswordHasher, check_rules
from backend.auth.accounts.service import add_user
from backend.auth.accounts.statements import FIND_EMAIL, LEAVE_EMAIL
from backend.auth.errors import EmailTakenError
from backend.auth.mail.outbox import addressed
from backend.auth.mail.sender import sender_for
from backend.auth.mail.statements import LOCK_USER, Kind
from backend.auth.schemas import Email, email_key
from backend.auth.tokens import opaque
from backend.database import Database, Row
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


class NoResetError(AppError):
    """The account is disabled, or its password is kept elsewhere."""

    detail = "a reset link needs an account of this service that is not disabled"


async def list_users(database: Database, *, part: str, **filters: Any) -> list[User]:
    """Return the newest users with `part` in the email, within `unverified`, `disabled` and `limit`."""
    rows = await database.all(statements.LIST_USERS, part=email_key(part), **filters)
    return [dict(row) for row in rows]


async def find_user(database: Database, who: str) -> User:
    """Return the user; raises `UserNotFoundError`."""
    user_id = who.removeprefix("id:")
    if user_id == who:
        with suppress(ValidationError):
            email: str = TypeAdapter(Email).validate_python(who)
            owner = await database.one(FIND_EMAIL, email_key=email_key(email))
            user_id = owner["user_id"] if owner else who
    return dict(_there(await database.one(statements.FIND_USER, user_id=user_id)))


async def create_user(
    database: Database, settings: Settings, email: str, name: str | None, password: str | None
) -> User:
    """Create an account; raises `EmailTakenError` or `PasswordRefusedError`.

    Without a password the owner chooses one by a mailed link. If it cannot be mailed now, the user has it as
    `reset_link`.
    """
    if password is not None:
        check_rules(password, email=email, min_length=settings.password_min_length)
    hasher = PasswordHasher(rounds=settings.bcrypt_rounds)
    password_hash = await hasher.hash(password or opaque.new_token(), "")
    async with database.transaction() as transaction:
        user_id = await add_user(transaction, email, name, password_hash)
    if user_id is None:
        raise EmailTakenError
    write(Event.REGISTERED, user_id)
    user = await find_user(database, f"id:{user_id}")
    if password is not None or await _is_invited(database, settings, user):
        return user
    return user | {"reset_link": await reset_link(database, settings, f"id:{user_id}")}


async def _is_invited(database: Database, settings: Settings, user: User) -> bool:
    """Mail an invitation at once, and log its event; return False if it is not sent."""
    sender = sender_for(settings)
    if sender is None:
        return False
    link, kind = await _new_link(database, settings, user, Kind.RESET), Kind.INVITATION.value
    try:
        logged = await sender.send(Kind.INVITATION, user["email"], link)
    except Exception as error:  # noqa: BLE001  # a failed delivery of any kind leaves the printed link
        write(Event.MAIL_FAILED, user["id"], level="WARNING", kind=kind, reason=type(error).__name__)
        return False
    write(Event.MAIL_SENT, user["id"], kind=kind, **logged)
    return True


async def reset_link(database: Database, settings: Settings, who: str) -> str:
    """Return a link that sets a new password, once and within 30 minutes, and verifies no address.

    Raises `UserNotFoundError`, `NoResetError`.
    """
    return await _new_link(database, settings, await find_user(database, who), Kind.RESET_BY_HAND)


async def _new_link(database: Database, settings: Settings, user: User, kind: Kind) -> str:
    mail = {"kind": kind, "user_id": user["id"], "email_key": email_key(user["email"] or "")}
    made = await addressed(database, settings, mail | {"session_id": None, "created_at": None})
    if made is None:
        raise NoResetError
    return str(made["link"])


async def change_user(database: Database, who: str, change: str) -> User:
    """Make a change of `CHANGES` to the user, and log it; raises `UserNotFoundError`."""
    user_id = (await find_user(database, who))["id"]
    statement, event = CHANGES[change]
    async with database.transaction() as transaction:
        await transaction.one(LOCK_USER, user_id=user_id)
        changed = _there(await transaction.one(statement, user_id=user_id))
    write(event, **changed)
    return await find_user(database, f"id:{user_id}")


async def delete_user(database: Database, who: str) -> User:
    """Delete the user, their sessions and their tasks; raises `UserNotFoundError`."""
    user = await find_user(database, who)
    async with database.transaction() as transaction:
        deleted = _there(await transaction.one(statements.DELETE_USER, user_id=user["id"]))
        if deleted["email_key"] is not None:
            await transaction.one(LEAVE_EMAIL, **deleted)
    write(Event.ACCOUNT_DELETED, user["id"])
    return user


def _there(row: Row | None) -> Row:
    if row is None:
        raise UserNotFoundError
    return row
