"""Accounts: registering, signing in, the profile, the password and the end of it."""

from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from uuid_utils import compat

from backend.auth.accounts import passwords, statements
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
from backend.database import Database, DatabaseError, Row
from backend.telemetry import events, metrics
from backend.telemetry.events import Event
from backend.web.errors import AppError, MissingFieldsError, ServiceUnavailableError


async def register(
    database: Database, sign_in: SignIn, client: Client, data: Registration
) -> dict[str, Any] | None:
    """Create an account and sign it in; raises `EmailTakenError` or `PasswordRefusedError`.

    Where emails must be verified first the result is None, for a taken email too; a mail tells its owner.
    """
    passwords.check_rules(data.password, email=data.email, min_length=sign_in.password_min_length)
    await sign_in.limits.registration(client.address)
    if sign_in.requires_verification:
        await _register_unverified(database, sign_in, client.address, data)
        return None
    new, key = NewTokens(sign_in, client, data.uses_cookie), email_key(data.email)
    account = _own(await database.one(statements.FIND_ACCOUNT, email_key=key, address=client.address))
    if account["id"] is not None:
        raise EmailTakenError
    user = await database.one(
        statements.REGISTER,
        user_id=str(compat.uuid7()),
        email=data.email,
        email_key=key,
        name=data.name,
        password_hash=await sign_in.hasher.hash(data.password, client.address),
        **new.values,
    )
    if user is None:
        raise EmailTakenError
    events.identify(user["id"])
    events.record(Event.REGISTERED, session_id=new.session_id)
    return new.issue(user)


async def _register_unverified(database: Database, sign_in: SignIn, address: str, data: Registration) -> None:
    """Do the same work whether or not the email is taken: one hash, one statement, one mail."""
    user = await database.one(
        statements.REGISTER_UNVERIFIED,
        user_id=str(compat.uuid7()),
        email=data.email,
        email_key=email_key(data.email),
        name=data.name,
        password_hash=await sign_in.hasher.hash(data.password, address),
        **sign_in.outbox.values,
    )
    if user is not None and user["id"] is not None:
        events.identify(user["id"])
        events.record(Event.REGISTERED)
    sign_in.outbox.wake()


async def login(database: Database, sign_in: SignIn, client: Client, data: Credentials) -> dict[str, Any]:
    """Sign in; raises `InvalidCredentialsError` after one hash, the email known or not."""
    try:
        answer = await _login(database, sign_in, client, data)
    except (AppError, DatabaseError) as error:
        metrics.SIGN_INS.labels(getattr(error, "code", "database_unavailable")).inc()
        raise
    metrics.SIGN_INS.labels("succeeded").inc()
    return answer


async def _login(database: Database, sign_in: SignIn, client: Client, data: Credentials) -> dict[str, Any]:
    new, key = NewTokens(sign_in, client, data.uses_cookie), email_key(data.email)
    account = _own(await database.one(statements.FIND_ACCOUNT, email_key=key, address=client.address))
    stored = account["password_hash"]
    limited_email = None if account["is_known"] else key
    user = None
    if await _is_right(sign_in, client, data.password, account, limited_email):
        _check_may_sign_in(sign_in, account)
        user = await database.one(statements.SIGN_IN, password_hash=stored, email_key=key, **new.values)
    if user is None or stored is None:
        events.record(Event.LOGIN_FAILED, account_id=account["id"])
        raise InvalidCredentialsError(reason="credentials")
    events.identify(user["id"])
    events.record(Event.LOGIN, session_id=new.session_id)
    await end_oldest_sessions(database, user)
    await _upgrade_hash(database, sign_in, client, data.password, account)
    return new.issue(user)


def _check_may_sign_in(sign_in: SignIn, account: Row) -> None:
    """Raise `AccountDisabledError` or `EmailUnverifiedError`; after the right password alone."""
    events.identify(account["id"])
    if account["disabled_at"] is not None:
        raise AccountDisabledError(reason="account_disabled")
    if sign_in.requires_verification and not account["email_verified"]:
        raise EmailUnverifiedError(reason="email_unverified")


async def _is_right(
    sign_in: SignIn, client: Client, password: str, account: Row, limited_email: str | None
) -> bool:
    """Tell whether the password is right, within the limits on guessing; raises `RateLimitedError`."""
    async with sign_in.limits.guess(client.address, limited_email) as failed:
        is_right = await sign_in.hasher.verify(
            password,
            account["password_hash"],
            client.address,
            highest_cost=account.get("highest_cost"),
        )
        if not is_right:
            await failed()
    return is_right


async def _upgrade_hash(
    database: Database, sign_in: SignIn, client: Client, password: str, account: Row
) -> None:
    """Store the password by today's scheme and cost, unless it has been changed meanwhile."""
    stored = account["password_hash"]
    if not sign_in.hasher.is_outdated(stored):
        return
    with suppress(DatabaseError, ServiceUnavailableError):  # the next login will do
        new_hash = await sign_in.hasher.hash(password, client.address)
        await database.one(statements.UPGRADE_HASH, user_id=account["id"], old_hash=stored, new_hash=new_hash)


async def token(database: Database, sign_in: SignIn, client: Client, data: TokenGrant) -> dict[str, Any]:
    """Answer a grant (RFC 6749 section 5); raises `InvalidGrantError`, `UnsupportedGrantTypeError`.

    The grant is judged before the fields that it needs; raises `MissingFieldsError`.
    """
    if not data.model_fields_set:
        raise MissingFieldsError("body")
    # A parameter without a value is one that was left out (RFC 6749 section 3.2).
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
    return dict(_own(await database.one(statements.READ_PROFILE, **caller.values)))


async def update_profile(database: Database, caller: Caller, data: ProfileUpdate) -> dict[str, Any]:
    """Change the caller's name, or clear it; raises `RevokedTokenError`."""
    return dict(_own(await database.one(statements.UPDATE_PROFILE, new_name=data.name, **caller.values)))


async def change_password(
    database: Database, sign_in: SignIn, client: Client, caller: Caller, data: PasswordChange
) -> tuple[dict[str, Any], bool]:
    """Change the password, end all other sessions; raises `WrongPasswordError`, `PasswordRefusedError`.

    The result is the new tokens, and whether the session keeps its refresh token in a cookie.
    """
    account = await confirm_password(database, sign_in, client, caller, data.current_password)
    passwords.check_rules(
        data.new_password,
        email=account["email"],
        min_length=sign_in.password_min_length,
        field="new_password",
    )
    new = NewTokens(sign_in, client)
    new_hash = await sign_in.hasher.hash(data.new_password, client.address)
    async with database.transaction() as transaction:
        user = await transaction.one(session_statements.LOCK_CALLER, **caller.values)
        if user is not None:
            user = await transaction.one(
                statements.CHANGE_PASSWORD,
                old_hash=account["password_hash"],
                new_hash=new_hash,
                refresh_digest=new.values["refresh_digest"],
                **sign_in.outbox.values,
                **caller.values,
            )
    user = _own(user)
    if user["id"] is None:
        raise WrongPasswordError(reason="wrong_password")
    sign_in.outbox.wake()
    events.record(Event.PASSWORD_CHANGED, session_id=caller.session_id, sessions_ended=user["count"])
    return new.issue(user, caller.session_id), user["uses_cookie"]


async def delete_account(
    database: Database, sign_in: SignIn, client: Client, caller: Caller, data: PasswordConfirmation
) -> None:
    """Delete the user, their sessions and their tasks; raises `WrongPasswordError`."""
    account = await confirm_password(database, sign_in, client, caller, data.password)
    deleted = await database.one(
        statements.DELETE_ACCOUNT, old_hash=account["password_hash"], **caller.values
    )
    if _own(deleted)["id"] is None:
        _own(await database.one(statements.CONFIRM_CALLER, **caller.values))  # deleted by another request?
        raise WrongPasswordError(reason="wrong_password")
    events.record(Event.ACCOUNT_DELETED)


async def confirm_password(
    database: Database, sign_in: SignIn, client: Client, caller: Caller, password: str
) -> Row:
    """Return the caller's account if `password` is theirs; a wrong one counts as a failed sign-in."""
    account = _own(await database.one(statements.READ_ACCOUNT, address=client.address, **caller.values))
    limited_email = None if account["is_known"] else account["email_key"]
    if not await _is_right(sign_in, client, password, account, limited_email):
        raise WrongPasswordError(reason="wrong_password")
    return account


def _own(row: Row | None) -> Row:
    if row is None:
        raise RevokedTokenError
    return row
