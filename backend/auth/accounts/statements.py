"""SQL statements on accounts, compiled once; each is one round trip.

`backend/auth/sessions/statements.py` defines the lock order. A change of `emails` and `users` takes two
statements in one transaction, because Citus distributes them differently and refuses one statement for both.
"""

from sqlalchemy import (
    ColumnElement,
    Integer,
    and_,
    bindparam,
    delete,
    func,
    literal,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from backend.auth.caller import CALLER_ID, CALLER_SESSION, IS_LET_IN, caller
from backend.auth.mail.statements import EMAIL_KEY, secured
from backend.auth.models import HASH_COST, LOCAL, emails, known_addresses, sessions, users
from backend.auth.sessions.statements import (
    ADDRESS,
    ADDRESS_KNOWN_FOR,
    PROFILE,
    USER_ID,
    ago,
    begin_session,
    changing,
    new_refresh_token,
    number_of,
)
from backend.database import Statement, WideStatement

MAX_ACCOUNTS_AT_HOME = 5
"""The most accounts that share a household's address. More accounts mean one proxy or network."""

_lately = and_(known_addresses.c.address == ADDRESS, known_addresses.c.last_used_at > ago(ADDRESS_KNOWN_FOR))
_is_callers = and_(users.c.id == CALLER_ID, IS_LET_IN)


def _has_signed_in(user_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the condition that the user has signed in from `ADDRESS` within `ADDRESS_KNOWN_FOR`."""
    rows = select(known_addresses.c.user_id).where(known_addresses.c.user_id == user_id, _lately)
    return rows.exists().label("is_own_address")


def _count_accounts() -> Statement:
    # The count stops one above the maximum, because an address may have thousands of accounts.
    rows = select(known_addresses.c.user_id).where(_lately).limit(literal(MAX_ACCOUNTS_AT_HOME + 1))
    return WideStatement(select(number_of(rows.subquery())))


def _introduce_user() -> Statement:
    sent = postgresql.insert(users).values(
        id=bindparam("user_id"), issuer=bindparam("issuer"), email=bindparam("email"), name=bindparam("name")
    )
    return Statement(
        sent.on_conflict_do_update(
            index_elements=["id"],
            set_={
                "email": func.coalesce(sent.excluded.email, users.c.email),
                "name": func.coalesce(sent.excluded.name, users.c.name),
            },
            where=users.c.issuer == sent.excluded.issuer,
        ).returning(users.c.id)
    )


def _sign_in() -> Statement:
    owner = (
        select(*PROFILE)
        .where(
            users.c.id == USER_ID,
            users.c.email_key == EMAIL_KEY,
            users.c.password_hash == bindparam("password_hash"),
            users.c.disabled_at.is_(None),
        )
        # The row lock serializes this sign-in with a concurrent change of the password.
        .with_for_update(key_share=True, of=users)
        .cte("owner")
    )
    older = select(sessions.c.id).where(sessions.c.user_id == USER_ID).subquery()
    return Statement(select(owner, number_of(older)).add_cte(*begin_session(owner)))


def _change_password() -> Statement:
    values = {"password_hash": bindparam("new_hash"), "pending_email": null()}
    is_current = users.c.password_hash == bindparam("old_hash")
    changed, ended, voided, tokens = secured(CALLER_ID, IS_LET_IN, is_current, kept=CALLER_SESSION, **values)
    uses_cookie = select(voided.c.uses_cookie).scalar_subquery().label("uses_cookie")
    return Statement(
        select(changed, number_of(ended), uses_cookie)
        .select_from(caller.outerjoin(changed, true()))
        .add_cte(new_refresh_token(CALLER_ID, voided), tokens)
    )


FIND_EMAIL = Statement(select(emails.c.user_id).where(emails.c.email_key == EMAIL_KEY))
"""The id of the user with this email; no row when no user has it."""

_taken = postgresql.insert(emails).values(email_key=EMAIL_KEY, user_id=USER_ID)
TAKE_EMAIL = Statement(
    _taken.on_conflict_do_update(
        index_elements=["email_key"],
        set_={"user_id": _taken.excluded.user_id},
        where=emails.c.user_id == _taken.excluded.user_id,
    ).returning(emails.c.user_id)
)
"""Assigns the email to the user; returns no row when another user has it.

It waits for a concurrent transaction that takes or leaves the same email.
"""

LEAVE_EMAIL = Statement(
    delete(emails)
    .where(emails.c.email_key == EMAIL_KEY, emails.c.user_id == USER_ID)
    .returning(emails.c.user_id)
)

INTRODUCE_USER = _introduce_user()
"""Inserts or updates an external user from a token's claims; no row if another issuer has the id."""

ADD_USER = Statement(
    postgresql.insert(users)
    .values(
        id=USER_ID,
        issuer=LOCAL,
        email=bindparam("email"),
        email_key=EMAIL_KEY,
        name=bindparam("name"),
        password_hash=bindparam("password_hash"),
    )
    .returning(users.c.id)
)
"""Inserts a user without a session; runs after `TAKE_EMAIL` in the same transaction."""

FIND_ACCOUNT = Statement(
    select(
        *(users.c[name] for name in ("id", "password_hash", "email_verified", "disabled_at")),
        _has_signed_in(USER_ID),
    ).where(users.c.id == USER_ID, users.c.email_key == EMAIL_KEY)
)

# The expression must be that of the index `users_password_cost`, because PostgreSQL reads it from there.
HIGHEST_COST = WideStatement(
    select(func.max(literal_column(HASH_COST, Integer)).label("highest_cost")).select_from(users)
)
"""The highest cost of all stored hashes; null when no hash has a cost. The query reads all shards."""

COUNT_ACCOUNTS = _count_accounts()
"""The number of accounts that recently signed in from an address, at most `MAX_ACCOUNTS_AT_HOME` + 1.

The query reads all shards.
"""

SIGN_IN = _sign_in()
"""Begins a session for the user whose password was checked, or who was added in the same transaction.

It returns no row when the password has changed since. `count` is the earlier number of sessions.
"""

UPGRADE_HASH = Statement(
    update(users)
    .where(users.c.id == USER_ID, users.c.password_hash == bindparam("old_hash"))
    .values(password_hash=bindparam("new_hash"))
    .returning(users.c.id)
)

CONFIRM_CALLER = Statement(select(caller.c.id))

READ_PROFILE = Statement(select(*PROFILE).where(_is_callers))

UPDATE_PROFILE = Statement(
    update(users).where(_is_callers).values(name=bindparam("new_name")).returning(*PROFILE)
)

READ_ACCOUNT = Statement(
    select(users.c.email, users.c.email_key, users.c.password_hash, _has_signed_in(CALLER_ID)).where(
        _is_callers
    )
)

CHANGE_PASSWORD = _change_password()
"""Stores a new password hash and refresh token, and ends the user's other sessions.

It runs after `LOCK_CALLER` in the same transaction. `count` is the number of ended sessions. `id` is null
when the stored hash is not `old_hash` any more.
"""

DELETE_ACCOUNT = changing(
    delete(users)
    .where(_is_callers, users.c.password_hash == bindparam("old_hash"))
    .returning(users.c.id, users.c.email_key)
    .cte("deleted")
)
