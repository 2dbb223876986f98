"""Accounts: registration, sign-in, the profile, a change of password and deletion."""

from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from uuid_utils import compat

from backend.auth import errors, schemas
from backend.auth.accounts import guesses, passwords, statements
from backend.auth.caller import Caller
from backend.auth.mail.statements import Kind
from backend.auth.schemas import email_key
from backend.auth.sessions import statements as session_statements
from backend.auth.sessions.service import Context, NewTokens, SignIn, end_oldest_sessions, own, refresh
from backend.database import Database, DatabaseError, Row, Transaction
from backend.telemetry import events, metrics
from backend.telemetry.events import Event
from backend.web.errors import AppError, MissingFieldsError, ServiceUnavailableError


async def register(context: Context, data: schemas.Registration) -> dict[str, Any] | None:
    """Create an account and sign it in; raises `EmailTakenError` or `PasswordRefusedError`.

    With required email verification the result is None. It is None for a taken email too, and the owner of
    that email gets a mail.
    """
    sign_in, address = context.sign_in, context.address
    passwords.check_rules(data.password, email=data.email, min_length=sign_in.password_min_length)
    await sign_in.limits.register.count(address)
    password_hash = await sign_in.hasher.hash(data.password, address)
    if sign_in.requires_verification:
        await _register_unverified(context, data, password_hash)
        return None
    async with context.database.transaction() as transaction:
        user_id = await add_user(transaction, data.email, data.name, password_hash)
        if user_id is None:
            raise errors.EmailTakenError
        new = NewTokens(context, user_id, uses_cookie=data.uses_cookie)
        credentials = {"email_key": email_key(data.email), "password_hash": password_hash}
        user = own(await transaction.one(statements.SIGN_IN, **credentials, **new.values))
    events.identify(user_id)
    events.record(Event.REGISTERED, session_id=new.session_id)
    return new.issue(user)


async def _register_unverified(context: Context, data: schemas.Registration, password_hash: str) -> None:
    """Do the same work for a free and for a taken email: one transaction, one mail."""
    outbox = context.sign_in.outbox
    async with context.database.transaction() as transaction:
        user_id = await add_user(transaction, data.email, data.name, password_hash)
        kind = Kind.VERIFY if user_id else Kind.EMAIL_TAKEN
        await outbox.put(transaction, kind, data.email, user_id)
    if user_id is not None:
        events.identify(user_id)
        events.record(Event.REGISTERED)
    outbox.wake()


async def add_user(transaction: Transaction, email: str, name: str | None, password_hash: str) -> str | None:
    """Add an account without a session; return its id, or None when the email is taken."""
    user_id, key = str(compat.uuid7()), email_key(email)
    if await transaction.one(statements.TAKE_EMAIL, email_key=key, user_id=user_id) is None:
        return None
    fields = {"email": email, "email_key": key, "name": name, "password_hash": password_hash}
    await transaction.one(statements.ADD_USER, user_id=user_id, **fields)
    return user_id


async def login(context: Context, data: schemas.Credentials) -> dict[str, Any]:
    """Sign in; raises `InvalidCredentialsError` after one hash, for a known and for an unknown email."""
    try:
        answer = await _login(context, data)
    except (AppError, DatabaseError) as error:
        metrics.SIGN_INS.labels(getattr(error, "code", "database_unavailable")).inc()
        raise
    metrics.SIGN_INS.labels("succeeded").inc()
    return answer


async def _login(context: Context, data: schemas.Credentials) -> dict[str, Any]:
    database, key = context.database, email_key(data.email)
    account = await _find_account(context, key)
    cost = await guesses.cost_of_failure(context, key, data.password, account)
    if cost or account is None:
        await guesses.prolong(context, cost)
        raise _failed(account)
    _check_may_sign_in(context.sign_in, account)
    new = NewTokens(context, account["id"], uses_cookie=data.uses_cookie)
    credentials = {"email_key": key, "password_hash": account["password_hash"]}
    user = await database.one(statements.SIGN_IN, **credentials, **new.values)
    if user is None:  # the email or the password has changed meanwhile
        raise _failed(account)
    events.identify(user["id"])
    events.record(Event.LOGIN, session_id=new.session_id)
    await end_oldest_sessions(database, user)
    await _upgrade_hash(context, data.password, account)
    context.sign_in.sweep.after_sign_in(database)
    return new.issue(user)


async def _find_account(context: Context, key: str) -> Row | None:
    """Return the account of an email.

    An unknown email also takes both queries, because its response must take the same time.
    """
    owner = await context.database.one(statements.FIND_EMAIL, email_key=key)
    values = {"user_id": owner["user_id"] if owner else "", "email_key": key}
    return await context.database.one(statements.FIND_ACCOUNT, address=context.address, **values)


def _check_may_sign_in(sign_in: SignIn, account: Row) -> None:
    """Raise `AccountDisabledError` or `EmailUnverifiedError`. The password must have been checked before."""
    events.identify(account["id"])
    if account["disabled_at"] is not None:
        raise errors.AccountDisabledError
    if sign_in.requires_verification and not account["email_verified"]:
        raise errors.EmailUnverifiedError


def _failed(account: Row | None) -> errors.InvalidCredentialsError:
    events.record(Event.LOGIN_FAILED, account_id=account and account["id"])
    return errors.InvalidCredentialsError(reason="credentials")


async def _upgrade_hash(context: Context, password: str, account: Row) -> None:
    """Store a hash of the current scheme and cost, unless the password has changed since the check."""
    hasher, stored = context.sign_in.hasher, account["password_hash"]
    if not hasher.is_outdated(stored):
        return
    with suppress(DatabaseError, ServiceUnavailableError):  # the next login tries again
        values = {"old_hash": stored, "new_hash": await hasher.hash(password, context.address)}
        await context.database.one(statements.UPGRADE_HASH, user_id=account["id"], **values)


async def token(context: Context, data: schemas.TokenGrant) -> dict[str, Any]:
    """Answer a grant (RFC 6749 section 5); raises `InvalidGrantError`, `UnsupportedGrantTypeError`.

    The grant type is checked before the fields that it needs; raises `MissingFieldsError`.
    """
    if not data.model_fields_set:
        raise MissingFieldsError("body")
    try:
        # A parameter without a value counts as omitted (RFC 6749 section 3.2).
        match data.grant_type or "password":
            case "password":
                return await login(context, _credentials(data))
            case "refresh_token":
                if not data.refresh_token:
                    raise MissingFieldsError("refresh_token")
                return await refresh(context, data.refresh_token)
    except (errors.InvalidCredentialsError, errors.InvalidRefreshTokenError) as error:
        raise errors.InvalidGrantError from error
    raise errors.UnsupportedGrantTypeError


def _credentials(data: schemas.TokenGrant) -> schemas.Credentials:
    if data.username is None or data.password is None:
        raise MissingFieldsError(*(name for name in ("username", "password") if getattr(data, name) is None))
    try:
        return schemas.Credentials(email=data.username, password=data.password)
    except ValidationError as error:
        events.record(Event.LOGIN_FAILED, account_id=None)
        metrics.SIGN_INS.labels(errors.InvalidGrantError.code).inc()
        raise errors.InvalidGrantError from error


async def read_profile(database: Database, caller: Caller) -> dict[str, Any]:
    """Return the caller's user; raises `RevokedTokenError`."""
    return dict(own(await database.one(statements.READ_PROFILE, **caller.values)))


async def update_profile(database: Database, caller: Caller, data: schemas.ProfileUpdate) -> dict[str, Any]:
    """Change the caller's name, or clear it; raises `RevokedTokenError`."""
    return dict(own(await database.one(statements.UPDATE_PROFILE, new_name=data.name, **caller.values)))


async def change_password(
    context: Context, caller: Caller, data: schemas.PasswordChange
) -> tuple[dict[str, Any], bool]:
    """Change the password, end all other sessions; raises `WrongPasswordError`, `PasswordRefusedError`.

    Returns the new tokens, and True if the session keeps its refresh token in a cookie.
    """
    sign_in, new_password = context.sign_in, data.new_password
    account = await confirm_password(context, caller, data.current_password)
    rules = {"email": account["email"], "min_length": sign_in.password_min_length}
    passwords.check_rules(new_password, field="new_password", **rules)
    new = NewTokens(context, caller.user_id)
    hashes = {
        "old_hash": account["password_hash"],
        "new_hash": await sign_in.hasher.hash(new_password, context.address),
    }
    async with context.database.transaction() as transaction:
        own(await transaction.one(session_statements.LOCK_CALLER, **caller.values))
        user = if_right(
            await transaction.one(statements.CHANGE_PASSWORD, **hashes, **new.values, **caller.values)
        )
        await sign_in.outbox.put(transaction, Kind.PASSWORD_CHANGED, user["email"], user["id"])
    sign_in.outbox.wake()
    events.record(Event.PASSWORD_CHANGED, session_id=caller.session_id, sessions_ended=user["count"])
    return new.issue(user, caller.session_id), user["uses_cookie"]


async def delete_account(context: Context, caller: Caller, data: schemas.PasswordConfirmation) -> None:
    """Delete the user, their sessions and their tasks; raises `WrongPasswordError`."""
    account = await confirm_password(context, caller, data.password)
    values = {"old_hash": account["password_hash"], **caller.values}
    async with context.database.transaction() as transaction:
        own(await transaction.one(session_statements.LOCK_CALLER, **caller.values))
        deleted = if_right(await transaction.one(statements.DELETE_ACCOUNT, **values))
        email = {"email_key": deleted["email_key"], "user_id": deleted["id"]}
        await transaction.one(statements.LEAVE_EMAIL, **email)
    events.record(Event.ACCOUNT_DELETED)


async def confirm_password(context: Context, caller: Caller, password: str) -> Row:
    """Return the caller's account if `password` is right; a wrong one counts as a failed sign-in."""
    values = {"address": context.address, **caller.values}
    account = own(await context.database.one(statements.READ_ACCOUNT, **values))
    if await guesses.cost_of_failure(context, account["email_key"], password, account):
        raise errors.WrongPasswordError
    return account


def if_right(changed: Row | None) -> Row:
    """Return the row of a change that the password allows.

    Raises `WrongPasswordError` if the password has changed since it was checked, or `RevokedTokenError`.
    """
    if own(changed)["id"] is None:
        raise errors.WrongPasswordError
    return own(changed)
