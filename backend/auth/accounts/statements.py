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
    given,
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

_sent = postgresql.insert(users).values(id=USER_ID, **given("issuer", "email", "name"))
INTRODUCE_USER = Statement(
    _sent.on_conflict_do_update(
        index_elements=["id"],
        set_={"issuer": _sent.excluded.issuer},  # changes nothing, but `returning` needs an update
        where=users.c.issuer == _sent.excluded.issuer,
    ).returning(users.c.id)
)
"""Inserts an external user from a token's claims; no row if another issuer has the id."""

ADD_USER = Statement(
    postgresql.insert(users)
    .values(id=USER_ID, issuer=LOCAL, **given("email", "email_key", "name", "password_hash"))
    .returning(users.c.id)
)
"""Inserts a user without a session; runs after `TAKE_EMAIL` in the same transaction."""

FIND_ACCOUNT = Statement(
    select(*users.c["id", "password_hash", "email_verified", "disabled_at"], _has_signed_in(USER_ID)).where(
        users.c.id == USER_ID, users.c.email_key == EMAIL_KEY
    )
)

# The expression must be that of the index `users_password_cost`, because PostgreSQL reads it from there.
HIGHEST_COST = WideStatement(
    select(func.max(literal_column(HASH_COST, Integer)).label("highest_cost")).select_from(users)
)
"""The highest cost of all stored hashes; null when no hash has a cost. The query reads all shards."""

_at_address = select(known_addresses.c.user_id).where(_lately).limit(literal(MAX_ACCOUNTS_AT_HOME + 1))
COUNT_ACCOUNTS = WideStatement(select(number_of(_at_address.subquery())))
"""The number of accounts that recently signed in from an address, at most `MAX_ACCOUNTS_AT_HOME` + 1.

The count stops there, because an address may have thousands of accounts. The query reads all shards.
"""

_owner = (
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
_older = select(sessions.c.id).where(sessions.c.user_id == USER_ID).subquery()
SIGN_IN = Statement(select(_owner, number_of(_older)).add_cte(*begin_session(_owner)))
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
    select(*users.c["email", "email_key", "password_hash"], _has_signed_in(CALLER_ID)).where(_is_callers)
)

_is_current = users.c.password_hash == bindparam("old_hash")
_changed, _ended, _voided, _tokens = secured(
    CALLER_ID,
    IS_LET_IN,
    _is_current,
    kept=CALLER_SESSION,
    password_hash=bindparam("new_hash"),
    pending_email=null(),
)
CHANGE_PASSWORD = Statement(
    select(_changed, number_of(_ended), select(_voided.c.uses_cookie).scalar_subquery().label("uses_cookie"))
    .select_from(caller.outerjoin(_changed, true()))
    .add_cte(new_refresh_token(CALLER_ID, _voided), _tokens)
)
"""Stores a new password hash and refresh token, and ends the user's other sessions.

It runs after `LOCK_CALLER` in the same transaction. `count` is the number of ended sessions. `id` is null
when the stored hash is not `old_hash` any more.
"""

DELETE_ACCOUNT = changing(
    delete(users).where(_is_callers, _is_current).returning(users.c.id, users.c.email_key).cte("deleted")
)
