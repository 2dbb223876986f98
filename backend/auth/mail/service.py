"""Resets passwords, verifies emails and changes emails, by mailed links."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from backend.auth.accounts import passwords
from backend.auth.accounts import statements as account_statements
from backend.auth.accounts.service import confirm_password, if_right
from backend.auth.caller import Caller
from backend.auth.mail import statements
from backend.auth.mail.errors import MailTokenError, MailUnavailableError
from backend.auth.mail.schemas import EmailChange, MailRequest, MailToken, PasswordReset
from backend.auth.mail.statements import RESETS, Kind
from backend.auth.schemas import email_key
from backend.auth.sessions.service import Context, own
from backend.auth.tokens import opaque
from backend.database import Database, Row, Statement, Transaction
from backend.telemetry import events
from backend.telemetry.events import Event
from backend.web.errors import AppError


async def request_link(context: Context, kind: Kind, data: MailRequest) -> None:
    """Queue a mail with a link; raises `MailUnavailableError`, `RateLimitedError`.

    It writes one row for any email. `Outbox` finds the account afterwards.
    """
    await _check_may_send(context)
    await context.sign_in.outbox.put(context.database, kind, data.email)
    context.sign_in.outbox.wake()


async def _check_may_send(context: Context) -> None:
    if not context.sign_in.outbox.sends:
        raise MailUnavailableError
    await context.sign_in.limits.mail.count(context.address)


async def reset_password(context: Context, data: PasswordReset) -> None:
    """Set a new password by a mailed token, and end all sessions of the user.

    Raises `MailTokenError`, or `PasswordRefusedError`, which does not spend the token.
    """
    sign_in, new_password = context.sign_in, data.new_password
    token = await _read_token(context.database, data.token, *RESETS)
    rules = {"email": token["email"], "min_length": sign_in.password_min_length}
    passwords.check_rules(new_password, field="new_password", **rules)
    new_hash = await sign_in.hasher.hash(new_password, context.address)
    values = {"new_hash": new_hash, "was_mailed": token["purpose"] != Kind.RESET_BY_HAND}
    change = _changing(context.database, token, statements.RESET_PASSWORD, **values)
    async with change as (transaction, user):
        await sign_in.outbox.put(transaction, Kind.PASSWORD_CHANGED, user["email"], user["id"])
    events.record(Event.PASSWORD_RESET)
    sign_in.outbox.wake()


async def verify_email(database: Database, data: MailToken) -> None:
    """Mark the address of a mailed token as verified; raises `MailTokenError`."""
    token = await _read_token(database, data.token, Kind.VERIFY)
    async with _changing(database, token, statements.VERIFY_EMAIL) as (_, user):
        was_verified = user["email_verified"]
    if not was_verified:
        events.record(Event.EMAIL_VERIFIED)


async def request_email_change(context: Context, caller: Caller, data: EmailChange) -> None:
    """Queue a mail with a link to the new address; raises as `request_link` does and `WrongPasswordError`.

    The new email stays pending until its link is used.
    """
    database, outbox, new = context.database, context.sign_in.outbox, data.new_email
    try:
        await _check_may_send(context)
    except AppError:
        own(await database.one(account_statements.CONFIRM_CALLER, **caller.values))  # a 401 goes first
        raise
    account = await confirm_password(context, caller, data.password)
    values = {"old_hash": account["password_hash"], "new_email": new, **caller.values}
    async with database.transaction() as transaction:
        asked = if_right(await transaction.one(statements.ASK_FOR_CHANGE, **values))
        await outbox.put(transaction, Kind.CHANGE, new, caller.user_id, caller.session_id)
        await outbox.put(transaction, Kind.CHANGE_REQUESTED, asked["email"], asked["id"])
    outbox.wake()


async def confirm_email_change(context: Context, data: MailToken) -> None:
    """Make the address of a mailed token the user's email; raises `MailTokenError`.

    The session that requested the change continues. The user's other sessions end.
    """
    outbox = context.sign_in.outbox
    token = await _read_token(context.database, data.token, Kind.CHANGE)
    key = email_key(token["email"])
    change = _changing(context.database, token, statements.CONFIRM_EMAIL, email_key=key)
    async with change as (transaction, user):
        await _move_email(transaction, user, key)
        await outbox.put(transaction, Kind.EMAIL_CHANGED, user["email"], user["id"])
    events.record(Event.EMAIL_CHANGED)
    outbox.wake()


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


async def _read_token(database: Database, sent: str, *purposes: Kind) -> Row:
    token = await database.one(statements.READ_TOKEN, digest=opaque.digest(sent))
    if token is None or token["purpose"] not in purposes:
        raise MailTokenError
    events.identify(token["user_id"])
    return token


@asynccontextmanager
async def _changing(
    database: Database, token: Row, change: Statement, **values: Any
) -> AsyncIterator[tuple[Transaction, Row]]:
    """Spend the token, change its user and run the block in one transaction.

    Yields the user's row from before the change; raises `MailTokenError`.
    """
    async with database.transaction() as transaction:
        user = await transaction.one(statements.LOCK_USER, user_id=token["user_id"])
        is_spent = user and await transaction.one(statements.SPEND_TOKEN, **token)
        if not (user and is_spent and await transaction.one(change, **{**token, **values})):
            raise MailTokenError
        yield transaction, user
