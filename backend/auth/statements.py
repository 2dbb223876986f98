"""The statements on accounts and sessions, compiled once; each does its work in one round trip.

Rows are locked in the order user, session, refresh token: requests wait for each other, never in a ring.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Interval,
    LargeBinary,
    Text,
    Uuid,
    bindparam,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from backend.auth.caller import caller
from backend.auth.models import LOCAL, known_addresses, refresh_tokens, sessions, users
from backend.database import Statement

REFRESH_GRACE = timedelta(seconds=10)
"""A refresh token used again so soon was used by two tabs; later it was stolen (RFC 9700 section 4.14.2)."""
ADDRESS_KNOWN_FOR = timedelta(days=30)
SWEPT_AT_ONCE = 10
"""Expired sessions that each new one clears away: more than come in, so that they never pile up."""

_profile = tuple(users.c[name] for name in ("id", "email", "name", "created_at"))
_new_user = {
    "id": bindparam("user_id"),
    "issuer": LOCAL,
    "email": bindparam("email"),
    "email_key": bindparam("email_key"),
    "name": bindparam("name"),
    "password_hash": bindparam("password_hash"),
}
_caller_id = select(caller.c.id).scalar_subquery()
_caller_session = bindparam("caller_session", type_=Uuid)
_address = bindparam("address", type_=Text)
_life = bindparam("session_life", type_=Interval)
_idle_life = bindparam("session_idle_life", type_=Interval)
_refresh_digest = bindparam("refresh_digest", type_=LargeBinary)


def _ago(period: timedelta) -> ColumnElement[Any]:
    return func.now() - literal(period, Interval)


def _is_known() -> ColumnElement[bool]:
    return (
        select(known_addresses.c.user_id)
        .where(
            known_addresses.c.user_id == users.c.id,
            known_addresses.c.address == _address,
            known_addresses.c.last_used_at > _ago(ADDRESS_KNOWN_FOR),
        )
        .correlate(users)
        .exists()
        .label("is_known")
    )


def _new_refresh_token(session_id: ColumnElement[object], owner: FromClause) -> CTE:
    return (
        insert(refresh_tokens)
        .from_select(["digest", "session_id"], select(_refresh_digest, session_id).select_from(owner))
        .returning(refresh_tokens.c.session_id)
        .cte("new_refresh_token")
    )


def _begin_session(owner: CTE) -> tuple[CTE, ...]:
    """A new session of `owner`, its refresh token and its address, and some tidying; no owner, nothing."""
    session = (
        insert(sessions)
        .from_select(
            ["id", "user_id", "expires_at", "user_agent", "ip"],
            select(
                bindparam("session_id", type_=Uuid),
                owner.c.id,
                func.now() + func.least(_life, _idle_life),
                bindparam("user_agent", type_=Text),
                bindparam("ip", type_=Text),
            ).select_from(owner),
        )
        .returning(sessions.c.id)
        .cte("new_session")
    )
    address = (
        postgresql.insert(known_addresses)
        .from_select(["user_id", "address"], select(owner.c.id, _address))
        .on_conflict_do_update(index_elements=["user_id", "address"], set_={"last_used_at": func.now()})
        .returning(known_addresses.c.address)
        .cte("known")
    )
    forgotten = (
        delete(known_addresses)
        .where(
            known_addresses.c.user_id == owner.c.id,
            known_addresses.c.address != _address,
            known_addresses.c.last_used_at <= _ago(ADDRESS_KNOWN_FOR),
        )
        .returning(known_addresses.c.address)
        .cte("forgotten")
    )
    expired = (
        select(sessions.c.id)
        .where(sessions.c.expires_at <= func.now())
        .order_by(sessions.c.expires_at)
        .limit(literal(SWEPT_AT_ONCE))
        .with_for_update(skip_locked=True)
    )
    swept = delete(sessions).where(sessions.c.id.in_(expired)).returning(sessions.c.id).cte("swept")
    return session, _new_refresh_token(session.c.id, session), address, forgotten, swept


def _register() -> Statement:
    user = (
        postgresql.insert(users)
        .values(_new_user)
        .on_conflict_do_nothing(index_elements=["email_key"])
        .returning(*_profile)
        .cte("new_user")
    )
    return Statement(select(user).add_cte(*_begin_session(user)))


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
        select(*_profile)
        .where(
            users.c.email_key == bindparam("email_key"), users.c.password_hash == bindparam("password_hash")
        )
        # A change of the password waits for this sign-in, or this one for it.
        .with_for_update(read=True, of=users)
        .cte("owner")
    )
    return Statement(select(owner).add_cte(*_begin_session(owner)))


def _refresh() -> Statement:
    session = (
        select(sessions.c.id)
        .join(refresh_tokens, refresh_tokens.c.session_id == sessions.c.id)
        .where(refresh_tokens.c.digest == bindparam("spent_digest"), sessions.c.expires_at > func.now())
        .with_for_update(of=sessions)
        .cte("locked_session")
    )
    spent_at = refresh_tokens.c.spent_at
    spent = (
        update(refresh_tokens)
        .where(
            refresh_tokens.c.digest == bindparam("spent_digest"),
            refresh_tokens.c.session_id == session.c.id,
            or_(spent_at.is_(None), spent_at > _ago(REFRESH_GRACE)),
        )
        .values(spent_at=func.coalesce(spent_at, func.now()))
        .returning(refresh_tokens.c.session_id)
        .cte("spent")
    )
    renewed = (
        update(sessions)
        .where(sessions.c.id == spent.c.session_id)
        .values(
            last_used_at=func.now(),
            expires_at=func.least(sessions.c.created_at + _life, func.now() + _idle_life),
            user_agent=bindparam("user_agent", type_=Text),
            ip=bindparam("ip", type_=Text),
        )
        .returning(sessions.c.id, sessions.c.user_id)
        .cte("renewed")
    )
    return Statement(
        select(*_profile, renewed.c.id.label("session_id"))
        .join(renewed, renewed.c.user_id == users.c.id)
        .add_cte(_new_refresh_token(renewed.c.id, renewed))
    )


def _change_password() -> Statement:
    changed = (
        update(users)
        .where(users.c.id == _caller_id, users.c.password_hash == bindparam("old_hash"))
        .values(password_hash=bindparam("new_hash"))
        .returning(*_profile)
        .cte("changed")
    )
    ended = (
        delete(sessions)
        .where(sessions.c.user_id == changed.c.id, sessions.c.id != _caller_session)
        .returning(sessions.c.id)
        .cte("ended")
    )
    # Not spent, which would leave it a grace: who else has it is whom the change shuts out.
    voided = (
        delete(refresh_tokens)
        .where(
            refresh_tokens.c.session_id == _caller_session,
            refresh_tokens.c.spent_at.is_(None),
            select(changed.c.id).exists(),
        )
        .returning(refresh_tokens.c.session_id)
        .cte("voided")
    )
    token = _new_refresh_token(_caller_session, changed)
    return Statement(
        select(changed).select_from(caller.outerjoin(changed, true())).add_cte(ended, voided, token)
    )


def _deleting(change: CTE) -> Statement:
    return Statement(select(change.c.id).select_from(caller.outerjoin(change, true())))


REGISTER = _register()
"""A user with a first session, or no row when the email is taken."""

INTRODUCE_USER = _introduce_user()
"""The external user as their token has them, written or found; no row if the id is another issuer's."""

IMPORT_USER = Statement(
    postgresql.insert(users)
    .values(_new_user)
    .on_conflict_do_nothing(index_elements=["email_key"])
    .returning(users.c.id)
)
"""A user with a hash from elsewhere, or no row when the email is taken."""

FIND_ACCOUNT = Statement(
    select(users.c.id, users.c.password_hash, _is_known()).where(users.c.email_key == bindparam("email_key"))
)

SIGN_IN = _sign_in()
"""A session for the user whose password was checked, or no row when it has changed meanwhile."""

UPGRADE_HASH = Statement(
    update(users)
    .where(users.c.id == bindparam("user_id"), users.c.password_hash == bindparam("old_hash"))
    .values(password_hash=bindparam("new_hash"))
    .returning(users.c.id)
)

REFRESH = _refresh()
"""The session goes on with a new refresh token; no row when the old one is unknown, expired or spent."""

END_REUSED = Statement(
    delete(sessions)
    .where(
        sessions.c.id
        == select(refresh_tokens.c.session_id)
        .where(
            refresh_tokens.c.digest == bindparam("spent_digest"),
            refresh_tokens.c.spent_at <= _ago(REFRESH_GRACE),
        )
        .scalar_subquery()
    )
    .returning(sessions.c.id, sessions.c.user_id)
)
"""Ends the session whose refresh token was used again too late."""

CONFIRM_CALLER = Statement(select(caller.c.id))

READ_PROFILE = Statement(select(*_profile).where(users.c.id == _caller_id))

UPDATE_PROFILE = Statement(
    update(users).where(users.c.id == _caller_id).values(name=bindparam("new_name")).returning(*_profile)
)

READ_ACCOUNT = Statement(
    select(users.c.email, users.c.email_key, users.c.password_hash, _is_known()).where(
        users.c.id == _caller_id
    )
)

LOCK_CALLER = Statement(
    select(users.c.id).where(users.c.id == _caller_id).with_for_update(key_share=True, of=users)
)
"""Goes before a change of the password, which must see the sessions that began until then."""

CHANGE_PASSWORD = _change_password()
"""A new password and refresh token, an end to other sessions; `id` is null if the old hash has changed."""

DELETE_ACCOUNT = _deleting(
    delete(users)
    .where(users.c.id == _caller_id, users.c.password_hash == bindparam("old_hash"))
    .returning(users.c.id)
    .cte("deleted")
)

LIST_SESSIONS = Statement(
    select(
        *(
            sessions.c[name]
            for name in ("id", "created_at", "last_used_at", "expires_at", "user_agent", "ip")
        ),
        (sessions.c.id == _caller_session).label("current"),
    )
    .where(sessions.c.user_id == _caller_id, sessions.c.expires_at > func.now())
    .order_by(sessions.c.last_used_at.desc(), sessions.c.id)
)

END_SESSION = _deleting(
    delete(sessions)
    .where(
        sessions.c.id == bindparam("session_id", type_=Uuid),
        sessions.c.user_id == _caller_id,
        sessions.c.expires_at > func.now(),
    )
    .returning(sessions.c.id)
    .cte("ended")
)

END_OTHER_SESSIONS = _deleting(
    delete(sessions)
    .where(sessions.c.user_id == _caller_id, sessions.c.id != _caller_session)
    .returning(sessions.c.id)
    .cte("ended")
)
