"""Reset of a password, verification and change of an email, by links that are mailed."""

from typing import Any

from backend.auth.accounts import passwords
from backend.auth.accounts import statements as account_statements
from backend.auth.accounts.service import confirm_password
from backend.auth.caller import Caller
from backend.auth.errors import RevokedTokenError, WrongPasswordError
from backend.auth.mail import statements
from backend.auth.mail.errors import MailTokenError
from backend.auth.mail.schemas import EmailChange, MailRequest, MailToken, PasswordReset
from backend.auth.mail.statements import Kind
from backend.auth.schemas import email_key
from backend.auth.sessions.service import Client, SignIn
from backend.auth.tokens import access as tokens
from backend.database import Database, NotUniqueError, Row, Statement
from backend.telemetry import events
from backend.telemetry.events import Event
from backend.web.errors import AppError


async def request_reset(database: Database, sign_in: SignIn, client: Client, data: MailRequest) -> None:
    """Have a link mailed to reset a password; raises `MailUnavailableError`, `RateLimitedError`."""
    await _ask(database, sign_in, client, statements.ASK_FOR_RESET, data.email)


async def request_verification(
    database: Database, sign_in: SignIn, client: Client, data: MailRequest
) -> None:
    """Have a link mailed to verify an email; raises `MailUnavailableError`, `RateLimitedError`."""
    await _ask(database, sign_in, client, statements.ASK_FOR_VERIFICATION, data.email)


async def _ask(database: Database, sign_in: SignIn, client: Client, statement: Statement, email: str) -> None:
    """Write one row, whatever the email; `Outbox` finds the account afterwards."""
    sign_in.outbox.check_available()
    await sign_in.limits.mail(client.address)
    await database.one(statement, email=email, email_key=email_key(email))
    sign_in.outbox.wake()


async def reset_password(database: Database, sign_in: SignIn, client: Client, data: PasswordReset) -> None:
    """Set a new password by a mailed token, and end all sessions of the user.

    Raises `MailTokenError`, or `PasswordRefusedError`, which does not spend the token.
    """
    digest = tokens.digest(data.token)
    token = await _read_token(database, digest, Kind.RESET, Kind.RESET_BY_HAND)
    passwords.check_rules(
        data.new_password, email=token["email"], min_length=sign_in.password_min_length, field="new_password"
    )
    new_hash = await sign_in.hasher.hash(data.new_password, client.address)
    values = {"new_hash": new_hash, "was_mailed": token["purpose"] == Kind.RESET, **sign_in.outbox.values}
    await _spend(database, digest, token, statements.RESET_PASSWORD, **values)
    events.record(Event.PASSWORD_RESET)
    sign_in.outbox.wake()


async def verify_email(database: Database, data: MailToken) -> None:
    """Mark the address of a mailed token as verified; raises `MailTokenError`."""
    user = await database.one(statements.VERIFY_EMAIL, digest=tokens.digest(data.token))
    if user is None:
        raise MailTokenError
    events.identify(user["id"])
    if not user["was_verified"]:
        events.record(Event.EMAIL_VERIFIED)


async def request_email_change(
    database: Database, sign_in: SignIn, client: Client, caller: Caller, data: EmailChange
) -> None:
    """Have a link mailed to the new address; raises `WrongPasswordError` and as `request_reset` does."""
    try:
        sign_in.outbox.check_available()
        await sign_in.limits.mail(client.address)
    except AppError:
        if await database.one(account_statements.CONFIRM_CALLER, **caller.values) is None:
            raise RevokedTokenError from None  # which goes before any other refusal
        raise
    account = await confirm_password(database, sign_in, client, caller, data.password)
    asked = await database.one(
        statements.ASK_FOR_CHANGE,
        old_hash=account["password_hash"],
        new_email=data.new_email,
        new_email_key=email_key(data.new_email),
        **sign_in.outbox.values,
        **caller.values,
    )
    if asked is None:
        raise RevokedTokenError
    if asked["id"] is None:
        raise WrongPasswordError(reason="wrong_password")
    sign_in.outbox.wake()


async def confirm_email_change(database: Database, sign_in: SignIn, data: MailToken) -> None:
    """Take the address of a mailed token as the user's email; raises `MailTokenError`.

    The session that asked for the change goes on; all others of the user end.
    """
    digest = tokens.digest(data.token)
    token = await _read_token(database, digest, Kind.CHANGE)
    values = {
        "email_key": email_key(token["email"]),
        "session_id": token["session_id"],
    } | sign_in.outbox.values
    try:
        await _spend(database, digest, token, statements.CONFIRM_EMAIL, **values)
    except NotUniqueError:  # somebody registered with it meanwhile
        raise MailTokenError from None
    events.record(Event.EMAIL_CHANGED)
    sign_in.outbox.wake()


async def drop_email_change(database: Database, caller: Caller) -> None:
    """Drop a change of email that waits, if there is one; raises `RevokedTokenError`."""
    if await database.one(statements.DROP_CHANGE, **caller.values) is None:
        raise RevokedTokenError


async def _read_token(database: Database, digest: bytes, *purposes: Kind) -> Row:
    token = await database.one(statements.READ_TOKEN, digest=digest, purposes=purposes)
    if token is None:
        raise MailTokenError
    events.identify(token["user_id"])
    return token


async def _spend(database: Database, digest: bytes, token: Row, change: Statement, **values: Any) -> None:
    """Spend the token and make the change, both or neither."""
    user_id = token["user_id"]
    async with database.transaction() as transaction:
        await transaction.one(statements.LOCK_USER, user_id=user_id)
        spent = await transaction.one(statements.SPEND_TOKEN, digest=digest, purpose=token["purpose"])
        if spent is None:
            raise MailTokenError
        changed = await transaction.one(change, user_id=user_id, email=token["email"], **values)
        if changed is None:
            raise MailTokenError
