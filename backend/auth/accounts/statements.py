"""The statements on accounts, compiled once; each does its work in one round trip.

`backend.auth.sessions.statements` says in which order they lock rows. Citus takes no statement that changes
both `emails` and `users`, which are spread differently: such a change is a transaction.
"""

from sqlalchemy import (
    ColumnElement,
    Integer,
    Text,
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
from backend.auth.mail.statements import MAIL_VOIDED, void_mail_tokens
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
    void_sessions,
)
from backend.database import Statement, WideStatement

MAX_ACCOUNTS_AT_HOME = 5
"""Accounts that may share a known address, as a household does; more are clients of one proxy or network."""

_email_key = bindparam("email_key", type_=Text)
_new_user = {
    "id": USER_ID,
    "issuer": LOCAL,
    "email": bindparam("email"),
    "email_key": _email_key,
    "name": bindparam("name"),
    "password_hash": bindparam("password_hash"),
}


_lately = and_(known_addresses.c.address == ADDRESS, known_addresses.c.last_used_at > ago(ADDRESS_KNOWN_FOR))
_is_callers = and_(users.c.id == CALLER_ID, IS_LET_IN)


def _has_signed_in(user_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Return whether the user has signed in from `ADDRESS` lately."""
    rows = select(known_addresses.c.user_id).where(known_addresses.c.user_id == user_id, _lately)
    return rows.exists().label("is_own_address")


def _count_accounts() -> Statement:
    # Looking ends at one account too many: an address may have thousands.
    rows = select(known_addresses.c.user_id).where(_lately).limit(literal(MAX_ACCOUNTS_AT_HOME + 1))
    return WideStatement(select(number_of(rows.subquery())))


def _register() -> Statement:
    user = postgresql.insert(users).values(_new_user).returning(*PROFILE).cte("new_user")
    return Statement(select(user).add_cte(*begin_session(user)))


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
            users.c.email_key == _email_key,
            users.c.password_hash == bindparam("password_hash"),
            users.c.disabled_at.is_(None),
        )
        # A change of the password waits for this sign-in, or this one for it.
        .with_for_update(key_share=True, of=users)
        .cte("owner")
    )
    older = select(sessions.c.id).where(sessions.c.user_id == USER_ID).subquery()
    return Statement(select(owner, number_of(older)).add_cte(*begin_session(owner)))


def _change_password() -> Statement:
    changed = (
        update(users)
        .where(_is_callers, users.c.password_hash == bindparam("old_hash"))
        .values(password_hash=bindparam("new_hash"), pending_email=null(), **MAIL_VOIDED)
        .returning(*PROFILE, users.c.email_key)
        .cte("changed")
    )
    ended, voided = void_sessions(CALLER_ID, changed, CALLER_SESSION)
    return Statement(
        select(changed, number_of(ended), select(voided.c.uses_cookie).scalar_subquery().label("uses_cookie"))
        .select_from(caller.outerjoin(changed, true()))
        .add_cte(new_refresh_token(CALLER_ID, voided), void_mail_tokens(CALLER_ID, changed))
    )


FIND_EMAIL = Statement(select(emails.c.user_id).where(emails.c.email_key == _email_key))
"""Whose the email is; no row when it is nobody's."""

_taken = postgresql.insert(emails).values(email_key=_email_key, user_id=USER_ID)
TAKE_EMAIL = Statement(
    _taken.on_conflict_do_update(
        index_elements=["email_key"],
        set_={"user_id": _taken.excluded.user_id},
        where=emails.c.user_id == _taken.excluded.user_id,
    ).returning(emails.c.user_id)
)
"""A row when the email is the user's from here on, no row when it is another's.

It waits for another transaction that is about to take or leave the same email.
"""

LEAVE_EMAIL = Statement(
    delete(emails)
    .where(emails.c.email_key == _email_key, emails.c.user_id == USER_ID)
    .returning(emails.c.user_id)
)

REGISTER = _register()
"""A user with a first session; goes after `TAKE_EMAIL`, in its transaction."""

INTRODUCE_USER = _introduce_user()
"""The external user as their token has them, written or found; no row if the id is another issuer's."""

ADD_USER = Statement(postgresql.insert(users).values(_new_user).returning(users.c.id))
"""A user without a session; goes after `TAKE_EMAIL`, in its transaction."""

FIND_ACCOUNT = Statement(
    select(
        *(users.c[name] for name in ("id", "password_hash", "email_verified", "disabled_at")),
        _has_signed_in(USER_ID),
    ).where(users.c.id == USER_ID, users.c.email_key == _email_key)
)

# Read from an index (see `users_password_cost`), so its words must be those of the index.
HIGHEST_COST = WideStatement(
    select(func.max(literal_column(HASH_COST, Integer)).label("highest_cost")).select_from(users)
)
"""The highest cost of all stored hashes, null where there is none; it asks all parts of the table."""

COUNT_ACCOUNTS = _count_accounts()
"""The number of accounts that have signed in from an address lately, as far as it matters.

It asks all parts of the table.
"""

SIGN_IN = _sign_in()
"""A session for the user whose password was checked, or no row when it has changed meanwhile.

`count` is the number of sessions that the user had before.
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
"""A new password and refresh token, and the number of other sessions, which end; after `LOCK_CALLER`.

`id` is null if the old hash has changed.
"""

DELETE_ACCOUNT = changing(
    delete(users)
    .where(_is_callers, users.c.password_hash == bindparam("old_hash"))
    .returning(users.c.id, users.c.email_key)
    .cte("deleted")
)
