"""The statements on accounts, compiled once; each does its work in one round trip.

`session_statements` says in which order they lock rows.
"""

from sqlalchemy import (
    ColumnElement,
    Integer,
    Text,
    and_,
    bindparam,
    case,
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

from backend.auth.caller import caller
from backend.auth.mail.statements import MAIL_VOIDED, Kind, enqueue, void_mail_tokens
from backend.auth.models import HASH_COST, LOCAL, known_addresses, sessions, users
from backend.auth.sessions.statements import (
    ADDRESS,
    ADDRESS_KNOWN_FOR,
    CALLER_ID,
    CALLER_SESSION,
    PROFILE,
    ago,
    begin_session,
    deleting,
    new_refresh_token,
    number_of,
    void_sessions,
)
from backend.database import Statement

MAX_ACCOUNTS_AT_HOME = 5
"""Accounts that may share a known address, as a household does; more are clients of one proxy or network."""

_new_user = {
    "id": bindparam("user_id"),
    "issuer": LOCAL,
    "email": bindparam("email"),
    "email_key": bindparam("email_key"),
    "name": bindparam("name"),
    "password_hash": bindparam("password_hash"),
}


def _is_known() -> ColumnElement[bool]:
    """Return whether `users` has signed in from `address` lately, and few others have."""
    lately = and_(
        known_addresses.c.address == ADDRESS, known_addresses.c.last_used_at > ago(ADDRESS_KNOWN_FOR)
    )
    is_own = (
        select(known_addresses.c.user_id)
        .where(known_addresses.c.user_id == users.c.id, lately)
        .correlate(users)
        .exists()
    )
    # Looking ends at one account too many: an address may have thousands.
    accounts = (
        select(known_addresses.c.user_id).where(lately).limit(literal(MAX_ACCOUNTS_AT_HOME + 1)).subquery()
    )
    count = select(func.count()).select_from(accounts).scalar_subquery()
    return and_(is_own, count <= MAX_ACCOUNTS_AT_HOME).label("is_known")


def _find_account() -> Statement:
    # Read from an index (see `users_password_cost`), so its words must be those of the index.
    highest = select(func.max(literal_column(HASH_COST, Integer)).label("highest_cost"))
    costs = highest.select_from(users).subquery("costs")
    found = costs.outerjoin(users, users.c.email_key == bindparam("email_key"))
    account = (users.c[name] for name in ("id", "password_hash", "email_verified", "disabled_at"))
    return Statement(select(*account, costs.c.highest_cost, _is_known()).select_from(found))


def _register() -> Statement:
    user = (
        postgresql.insert(users)
        .values(_new_user)
        .on_conflict_do_nothing(index_elements=["email_key"])
        .returning(*PROFILE)
        .cte("new_user")
    )
    return Statement(select(user).add_cte(*begin_session(user)))


def _register_unverified() -> Statement:
    user = (
        postgresql.insert(users)
        .values(_new_user)
        .on_conflict_do_nothing(index_elements=["email_key"])
        .returning(users.c.id)
        .cte("new_user")
    )
    user_id = select(user.c.id).scalar_subquery()
    kind = case((user_id.is_(None), Kind.EMAIL_TAKEN.value), else_=Kind.VERIFY.value)
    mail = enqueue(kind, bindparam("email", type_=Text), bindparam("email_key", type_=Text), user_id)
    return Statement(select(user_id.label("id")).add_cte(mail))


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
            users.c.email_key == bindparam("email_key"),
            users.c.password_hash == bindparam("password_hash"),
            users.c.disabled_at.is_(None),
        )
        # A change of the password waits for this sign-in, or this one for it.
        .with_for_update(key_share=True, of=users)
        .cte("owner")
    )
    older = select(sessions.c.id).where(sessions.c.user_id == owner.c.id).correlate(owner).subquery()
    return Statement(select(owner, number_of(older)).add_cte(*begin_session(owner)))


def _change_password() -> Statement:
    changed = (
        update(users)
        .where(users.c.id == CALLER_ID, users.c.password_hash == bindparam("old_hash"))
        .values(password_hash=bindparam("new_hash"), pending_email=null(), **MAIL_VOIDED)
        .returning(*PROFILE, users.c.email_key)
        .cte("changed")
    )
    ended, voided = void_sessions(changed, CALLER_SESSION)
    notice = enqueue(literal(Kind.PASSWORD_CHANGED.value), changed.c.email, changed.c.email_key, changed.c.id)
    return Statement(
        select(changed, number_of(ended), select(voided.c.uses_cookie).scalar_subquery().label("uses_cookie"))
        .select_from(caller.outerjoin(changed, true()))
        .add_cte(new_refresh_token(voided), void_mail_tokens(changed), notice)
    )


REGISTER = _register()
"""A user with a first session, or no row when the email is taken."""

REGISTER_UNVERIFIED = _register_unverified()
"""A user without a session and a mail to verify the email; `id` is null when the email is taken."""

INTRODUCE_USER = _introduce_user()
"""The external user as their token has them, written or found; no row if the id is another issuer's."""

IMPORT_USER = Statement(
    postgresql.insert(users)
    .values(_new_user)
    .on_conflict_do_nothing(index_elements=["email_key"])
    .returning(users.c.id)
)
"""A user with a hash from elsewhere, or no row when the email is taken."""

FIND_ACCOUNT = _find_account()
"""Always a row, with the highest cost of all stored hashes; `id` is null where the email is unknown."""

SIGN_IN = _sign_in()
"""A session for the user whose password was checked, or no row when it has changed meanwhile.

`count` is the number of sessions that the user had before.
"""

UPGRADE_HASH = Statement(
    update(users)
    .where(users.c.id == bindparam("user_id"), users.c.password_hash == bindparam("old_hash"))
    .values(password_hash=bindparam("new_hash"))
    .returning(users.c.id)
)

CONFIRM_CALLER = Statement(select(caller.c.id))

READ_PROFILE = Statement(select(*PROFILE).where(users.c.id == CALLER_ID))

UPDATE_PROFILE = Statement(
    update(users).where(users.c.id == CALLER_ID).values(name=bindparam("new_name")).returning(*PROFILE)
)

READ_ACCOUNT = Statement(
    select(users.c.email, users.c.email_key, users.c.password_hash, _is_known()).where(
        users.c.id == CALLER_ID
    )
)

CHANGE_PASSWORD = _change_password()
"""A new password and refresh token, and the number of other sessions, which end; after `LOCK_CALLER`.

`id` is null if the old hash has changed.
"""

DELETE_ACCOUNT = deleting(
    delete(users)
    .where(users.c.id == CALLER_ID, users.c.password_hash == bindparam("old_hash"))
    .returning(users.c.id)
    .cte("deleted")
)
