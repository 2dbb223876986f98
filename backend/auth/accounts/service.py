"""Accounts: registration, sign-in, the profile, a change of password and deletion."""

from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from uuid_utils import compat

from backend.auth.accounts import passwords, statements
from backend.auth.accounts.guesses import Guess
from backend.auth.caller import Caller
from backend.auth.errors import (
    AccountDisabledError,
    EmailTakenError,
    EmailUnverifiedError,
    InvalidCredentialsError,
    InvalidGrantError,
    InvalidRefreshTokenError,
    RevokedTokenError,
    UnsupportedGrantTypeError,
    WrongPasswordError,
)
from backend.auth.mail.statements import Kind
from backend.auth.schemas import (
    Credentials,
    PasswordChange,
    PasswordConfirmation,
    ProfileUpdate,
    Refresh,
    Registration,
    TokenGrant,
    email_key,
)
from backend.auth.sessions import statements as session_statements
from backend.auth.sessions.service import Client, NewTokens, SignIn, end_oldest_sessions, refresh
from backend.database import Database, DatabaseError, Row, Transaction
from backend.telemetry import events, metrics
from backend.telemetry.events import Event
from backend.web.errors import AppError, MissingFieldsError, ServiceUnavailableError


async def register(
    database: Database, sign_in: SignIn, client: Client, data: Registration
) -> dict[str, Any] | None:
    """Create an account and sign it in; raises `EmailTakenError` or `PasswordRefusedError`.

    With required email verification the result is None. It is None for a taken email too, and the owner of
    that email gets a mail.
    """
    passwords.check_rules(data.password, email=data.email, min_length=sign_in.password_min_length)
    await sign_in.limits.registration(client.address)
    if sign_in.requires_verification:
        await _register_unverified(database, sign_in, client.address, data)
        return None
    new, key = NewTokens(sign_in, client, str(compat.uuid7()), data.uses_cookie), email_key(data.email)
    if await database.one(statements.FIND_EMAIL, email_key=key) is not None:
        raise EmailTakenError
    password_hash = await sign_in.hasher.hash(data.password, client.address)
    fields = {"email": data.email, "email_key": key, "name": data.name, "password_hash": password_hash}
    async with database.transaction() as transaction:
        if await transaction.one(statements.TAKE_EMAIL, email_key=key, user_id=new.user_id) is None:
            raise EmailTakenError
        user = own(await transaction.one(statements.REGISTER, **fields, **new.values))
    events.identify(new.user_id)
    events.record(Event.REGISTERED, session_id=new.session_id)
    return new.issue(user)


async def _register_unverified(database: Database, sign_in: SignIn, address: str, data: Registration) -> None:
    """Do the same work for a free and for a taken email: one hash, one transaction, one mail."""
    password_hash = await sign_in.hasher.hash(data.password, address)
    async with database.transaction() as transaction:
        user_id = await add_user(transaction, data.email, data.name, password_hash)
        kind = Kind.VERIFY if user_id else Kind.EMAIL_TAKEN
        await sign_in.outbox.put(transaction, kind, data.email, user_id)
    if user_id is not None:
        events.identify(user_id)
        events.record(Event.REGISTERED)
    sign_in.outbox.wake()


async def add_user(transaction: Transaction, email: str, name: str | None, password_hash: str) -> str | None:
    """Add an account without a session; return its id, or None when the email is taken."""
    user_id, key = str(compat.uuid7()), email_key(email)
    if await transaction.one(statements.TAKE_EMAIL, email_key=key, user_id=user_id) is None:
        return None
    fields = {"email": email, "email_key": key, "name": name, "password_hash": password_hash}
    await transaction.one(statements.ADD_USER, user_id=user_id, **fields)
    return user_id


async def login(database: Database, sign_in: SignIn, client: Client, data: Credentials) -> dict[str, Any]:
    """Sign in; raises `InvalidCredentialsError` after one hash, for a known and for an unknown email."""
    try:
        answer = await _login(database, sign_in, client, data)
    except (AppError, DatabaseError) as error:
        metrics.SIGN_INS.labels(getattr(error, "code", "database_unavailable")).inc()
        raise
    metrics.SIGN_INS.labels("succeeded").inc()
    return answer


async def _login(database: Database, sign_in: SignIn, client: Client, data: Credentials) -> dict[str, Any]:
    key = email_key(data.email)
    account = await _find_account(database, key, client)
    guess = Guess(database, sign_in, client, key)
    cost = await guess.cost_of_failure(data.password, account)
    if cost or account is None:
        await guess.prolong(cost)
        raise _failed(account)
    _check_may_sign_in(sign_in, account)
    new = NewTokens(sign_in, client, account["id"], data.uses_cookie)
    values = {"password_hash": account["password_hash"], "email_key": key, **new.values}
    user = await database.one(statements.SIGN_IN, **values)
    if user is None:
        raise _failed(account)
    events.identify(user["id"])
    events.record(Event.LOGIN, session_id=new.session_id)
    await end_oldest_sessions(database, user)
    await _upgrade_hash(database, sign_in, client, data.password, account)
    sign_in.sweep.after_sign_in(database)
    return new.issue(user)


async def _find_account(database: Database, key: str, client: Client) -> Row | None:
    """Return the account of an email.

    An unknown email also takes both queries, because its response must take the same time.
    """
    owner = await database.one(statements.FIND_EMAIL, email_key=key)
    user_id = owner["user_id"] if owner else ""
    return await database.one(statements.FIND_ACCOUNT, user_id=user_id, email_key=key, address=client.address)


def _check_may_sign_in(sign_in: SignIn, account: Row) -> None:
    """Raise `AccountDisabledError` or `EmailUnverifiedError`. The password must have been checked before."""
    events.identify(account["id"])
    if account["disabled_at"] is not None:
        raise AccountDisabledError(reason="account_disabled")
    if sign_in.requires_verification and not account["email_verified"]:
        raise EmailUnverifiedError(reason="email_unverified")


def _failed(account: Row | None) -> InvalidCredentialsError:
    events.record(Event.LOGIN_FAILED, account_id=account and account["id"])
    return InvalidCredentialsError(reason="credentials")


async def _upgrade_hash(
    database: Database, sign_in: SignIn, client: Client, password: str, account: Row
) -> None:
    """Store a hash of the current scheme and cost, unless the password has changed since the check."""
    stored = account["password_hash"]
    if not sign_in.hasher.is_outdated(stored):
        return
    with suppress(DatabaseError, ServiceUnavailableError):  # the next login tries again
        new_hash = await sign_in.hasher.hash(password, client.address)
        await database.one(statements.UPGRADE_HASH, user_id=account["id"], old_hash=stored, new_hash=new_hash)


async def token(database: Database, sign_in: SignIn, client: Client, data: TokenGrant) -> dict[str, Any]:
    """Answer a grant (RFC 6749 section 5); raises `InvalidGrantError`, `UnsupportedGrantTypeError`.

    The grant type is checked before the fields that it needs; raises `MissingFieldsError`.
    """
    if not data.model_fields_set:
        raise MissingFieldsError("body")
    # A parameter without a value counts as omitted (RFC 6749 section 3.2).
    match data.grant_type or "password":
        case "password":
            return await _password_grant(database, sign_in, client, data)
        case "refresh_token":
            return await _refresh_grant(database, sign_in, client, data)
        case _:
            raise UnsupportedGrantTypeError


async def _password_grant(
    database: Database, sign_in: SignIn, client: Client, data: TokenGrant
) -> dict[str, Any]:
    if data.username is None or data.password is None:
        raise MissingFieldsError(*(name for name in ("username", "password") if getattr(data, name) is None))
    try:
        credentials = Credentials(email=data.username, password=data.password)
        return await login(database, sign_in, client, credentials)
    except ValidationError as error:
        events.record(Event.LOGIN_FAILED, account_id=None)
        metrics.SIGN_INS.labels(InvalidGrantError.code).inc()
        raise InvalidGrantError from error
    except InvalidCredentialsError as error:
        raise InvalidGrantError from error


async def _refresh_grant(
    database: Database, sign_in: SignIn, client: Client, data: TokenGrant
) -> dict[str, Any]:
    if not data.refresh_token:
        raise MissingFieldsError("refresh_token")
    try:
        return await refresh(database, sign_in, client, Refresh(refresh_token=data.refresh_token))
    except InvalidRefreshTokenError as error:
        raise InvalidGrantError from error


async def read_profile(database: Database, caller: Caller) -> dict[str, Any]:
    """Return the caller's user; raises `RevokedTokenError`."""
    return dict(own(await database.one(statements.READ_PROFILE, **caller.values)))


async def update_profile(database: Database, caller: Caller, data: ProfileUpdate) -> dict[str, Any]:
    """Change the caller's name, or clear it; raises `RevokedTokenError`."""
    return dict(own(await database.one(statements.UPDATE_PROFILE, new_name=data.name, **caller.values)))


async def change_password(
    database: Database, sign_in: SignIn, client: Client, caller: Caller, data: PasswordChange
) -> tuple[dict[str, Any], bool]:
    """Change the password, end all other sessions; raises `WrongPasswordError`, `PasswordRefusedError`.

    Returns the new tokens, and True if the session keeps its refresh token in a cookie.
    """
    account = await confirm_password(database, sign_in, client, caller, data.current_password)
    passwords.check_rules(
        data.new_password,
        email=account["email"],
        min_length=sign_in.password_min_length,
        field="new_password",
    )
    new = NewTokens(sign_in, client, caller.user_id)
    new_hash = await sign_in.hasher.hash(data.new_password, client.address)
    async with database.transaction() as transaction:
        own(await transaction.one(session_statements.LOCK_CALLER, **caller.values))
        changed = await transaction.one(
            statements.CHANGE_PASSWORD,
            old_hash=account["password_hash"],
            new_hash=new_hash,
            refresh_digest=new.values["refresh_digest"],
            **caller.values,
        )
        user = own(changed)
        if user["id"] is None:
            raise WrongPasswordError(reason="wrong_password")
        await sign_in.outbox.notify(transaction, Kind.PASSWORD_CHANGED, user)
    sign_in.outbox.wake()
    events.record(Event.PASSWORD_CHANGED, session_id=caller.session_id, sessions_ended=user["count"])
    return new.issue(user, caller.session_id), user["uses_cookie"]


async def delete_account(
    database: Database, sign_in: SignIn, client: Client, caller: Caller, data: PasswordConfirmation
) -> None:
    """Delete the user, their sessions and their tasks; raises `WrongPasswordError`."""
    account = await confirm_password(database, sign_in, client, caller, data.password)
    old_hash = account["password_hash"]
    async with database.transaction() as transaction:
        deleted = await transaction.one(statements.DELETE_ACCOUNT, old_hash=old_hash, **caller.values)
        if deleted is not None and deleted["id"] is not None:
            email = {"email_key": deleted["email_key"], "user_id": caller.user_id}
            await transaction.one(statements.LEAVE_EMAIL, **email)
    if own(deleted)["id"] is None:
        own(await database.one(statements.CONFIRM_CALLER, **caller.values))  # deleted by another request?
        raise WrongPasswordError(reason="wrong_password")
    events.record(Event.ACCOUNT_DELETED)


async def confirm_password(
    database: Database, sign_in: SignIn, client: Client, caller: Caller, password: str
) -> Row:
    """Return the caller's account if `password` is right; a wrong one counts as a failed sign-in."""
    account = own(await database.one(statements.READ_ACCOUNT, address=client.address, **caller.values))
    guess = Guess(database, sign_in, client, account["email_key"])
    if await guess.cost_of_failure(password, account):
        raise WrongPasswordError(reason="wrong_password")
    return account


def own(row: Row | None) -> Row:
    """Return the row of a statement on the caller; raises `RevokedTokenError` if there is none."""
    if row is None:
        raise RevokedTokenError
    return row
