"""Resets passwords, verifies emails and changes emails, by mailed links."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

from backend.auth.accounts import passwords
from backend.auth.accounts import statements as account_statements
from backend.auth.accounts.service import confirm_password, own
from backend.auth.caller import Caller
from backend.auth.errors import WrongPasswordError
from backend.auth.mail import statements
from backend.auth.mail.errors import MailTokenError
from backend.auth.mail.schemas import EmailChange, MailRequest, MailToken, PasswordReset
from backend.auth.mail.statements import Kind
from backend.auth.schemas import email_key
from backend.auth.sessions.service import Client, SignIn
from backend.auth.tokens import opaque
from backend.database import Database, Row, Statement, Transaction
from backend.telemetry import events
from backend.telemetry.events import Event
from backend.web.errors import AppError


async def request_reset(database: Database, sign_in: SignIn, client: Client, data: MailRequest) -> None:
    """Queue a mail with a reset link; raises `MailUnavailableError`, `RateLimitedError`."""
    await _ask(database, sign_in, client, Kind.RESET, data.email)


async def request_verification(
    database: Database, sign_in: SignIn, client: Client, data: MailRequest
) -> None:
    """Queue a mail with a verification link; raises `MailUnavailableError`, `RateLimitedError`."""
    await _ask(database, sign_in, client, Kind.VERIFY, data.email)


async def _ask(database: Database, sign_in: SignIn, client: Client, kind: Kind, email: str) -> None:
    """Write one row for any email. `Outbox` finds the account afterwards."""
    sign_in.outbox.check_available()
    await sign_in.limits.mail(client.address)
    await sign_in.outbox.put(database, kind, email)
    sign_in.outbox.wake()


async def reset_password(database: Database, sign_in: SignIn, client: Client, data: PasswordReset) -> None:
    """Set a new password by a mailed token, and end all sessions of the user.

    Raises `MailTokenError`, or `PasswordRefusedError`, which does not spend the token.
    """
    token = await _read_token(database, data.token, Kind.RESET, Kind.RESET_BY_HAND)
    passwords.check_rules(
        data.new_password, email=token.email, min_length=sign_in.password_min_length, field="new_password"
    )
    new_hash = await sign_in.hasher.hash(data.new_password, client.address)
    values = {"new_hash": new_hash, "was_mailed": token.purpose is Kind.RESET}
    async with _spending(database, token) as (transaction, user):
        await _change(transaction, statements.RESET_PASSWORD, token, **values)
        await sign_in.outbox.notify(transaction, Kind.PASSWORD_CHANGED, user)
    events.record(Event.PASSWORD_RESET)
    sign_in.outbox.wake()


async def verify_email(database: Database, data: MailToken) -> None:
    """Mark the address of a mailed token as verified; raises `MailTokenError`."""
    digest = opaque.digest(data.token)
    user_id = await _owner(database, digest)
    user = await database.one(statements.VERIFY_EMAIL, user_id=user_id, digest=digest)
    if user is None:
        raise MailTokenError
    events.identify(user["id"])
    if not user["was_verified"]:
        events.record(Event.EMAIL_VERIFIED)


async def request_email_change(
    database: Database, sign_in: SignIn, client: Client, caller: Caller, data: EmailChange
) -> None:
    """Queue a mail with a link to the new address; raises as `request_reset` does and `WrongPasswordError`.

    The new email stays pending until its link is used.
    """
    try:
        sign_in.outbox.check_available()
        await sign_in.limits.mail(client.address)
    except AppError:
        own(await database.one(account_statements.CONFIRM_CALLER, **caller.values))  # a 401 goes first
        raise
    account = await confirm_password(database, sign_in, client, caller, data.password)
    new, outbox = data.new_email, sign_in.outbox
    values = {"old_hash": account["password_hash"], "new_email": new, **caller.values}
    async with database.transaction() as transaction:
        asked = own(await transaction.one(statements.ASK_FOR_CHANGE, **values))
        if asked["id"] is None:
            raise WrongPasswordError(reason="wrong_password")
        await outbox.put(transaction, Kind.CHANGE, new, caller.user_id, caller.session_id)
        await outbox.notify(transaction, Kind.CHANGE_REQUESTED, asked)
    sign_in.outbox.wake()


async def confirm_email_change(database: Database, sign_in: SignIn, data: MailToken) -> None:
    """Make the address of a mailed token the user's email; raises `MailTokenError`.

    The session that requested the change continues. The user's other sessions end.
    """
    token = await _read_token(database, data.token, Kind.CHANGE)
    async with _spending(database, token) as (transaction, user):
        key = email_key(token.email)
        values = {"email_key": key, "session_id": token.session_id}
        await _change(transaction, statements.CONFIRM_EMAIL, token, **values)
        await _move_email(transaction, user, key)
        await sign_in.outbox.notify(transaction, Kind.EMAIL_CHANGED, user)
    events.record(Event.EMAIL_CHANGED)
    sign_in.outbox.wake()


async def _move_email(transaction: Transaction, user: Row, key: str) -> None:
    """Take the new email, then leave the old one; raises `MailTokenError` if another user has it."""
    taken = await transaction.one(account_statements.TAKE_EMAIL, email_key=key, user_id=user["id"])
    if taken is None:  # another user has registered with it since
        raise MailTokenError
    if key != user["email_key"]:
        old = {"email_key": user["email_key"], "user_id": user["id"]}
        await transaction.one(account_statements.LEAVE_EMAIL, **old)


async def drop_email_change(database: Database, caller: Caller) -> None:
    """Drop the pending change of email, if there is one; raises `RevokedTokenError`."""
    own(await database.one(statements.DROP_CHANGE, **caller.values))


class _Token(NamedTuple):
    """A valid mail token."""

    user_id: str
    digest: bytes
    purpose: Kind
    email: str
    session_id: UUID | None


async def _owner(database: Database, digest: bytes) -> str:
    row = await database.one(statements.OWNER_OF_TOKEN, digest=digest)
    if row is None:
        raise MailTokenError
    return str(row["user_id"])


async def _read_token(database: Database, sent: str, *purposes: Kind) -> _Token:
    digest = opaque.digest(sent)
    user_id = await _owner(database, digest)
    row = await database.one(statements.READ_TOKEN, user_id=user_id, digest=digest, purposes=purposes)
    if row is None:
        raise MailTokenError
    events.identify(user_id)
    return _Token(user_id, digest, Kind(row["purpose"]), row["email"], row["session_id"])


@asynccontextmanager
async def _spending(database: Database, token: _Token) -> AsyncIterator[tuple[Transaction, Row]]:
    """Spend the token and run the block in one transaction.

    Yields the user's row from before the change; raises `MailTokenError`.
    """
    async with database.transaction() as transaction:
        user = await transaction.one(statements.LOCK_USER, user_id=token.user_id)
        spent = await transaction.one(
            statements.SPEND_TOKEN, user_id=token.user_id, digest=token.digest, purpose=token.purpose
        )
        if user is None or spent is None:
            raise MailTokenError
        yield transaction, user


async def _change(transaction: Transaction, change: Statement, token: _Token, **values: Any) -> None:
    if await transaction.one(change, user_id=token.user_id, email=token.email, **values) is None:
        raise MailTokenError
