"""The statements on sessions, compiled once, and what signing in takes of them; each is one round trip.

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
from backend.auth.models import known_addresses, refresh_tokens, sessions, users
from backend.database import Statement

REFRESH_GRACE = timedelta(seconds=10)
"""A refresh token used again so soon was used by two tabs; later it was stolen (RFC 9700 section 4.14.2)."""
ADDRESS_KNOWN_FOR = timedelta(days=30)
SWEPT_AT_ONCE = 10
"""Expired sessions that each new one clears away: more than come in, so that they never pile up."""

USER_FIELDS = ("id", "email", "email_verified", "pending_email", "name", "created_at")
PROFILE = tuple(users.c[name] for name in USER_FIELDS)
CALLER_ID = select(caller.c.id).scalar_subquery()
CALLER_SESSION = bindparam("caller_session", type_=Uuid)
ADDRESS = bindparam("address", type_=Text)
_life = bindparam("session_life", type_=Interval)
_idle_life = bindparam("session_idle_life", type_=Interval)
_refresh_digest = bindparam("refresh_digest", type_=LargeBinary)


def ago(period: timedelta) -> ColumnElement[Any]:
    """Return the moment that was so long ago."""
    return func.now() - literal(period, Interval)


def new_refresh_token(session_id: ColumnElement[object], owner: FromClause) -> CTE:
    """Return the insertion of a refresh token of this session, if there is an `owner`."""
    return (
        insert(refresh_tokens)
        .from_select(["digest", "session_id"], select(_refresh_digest, session_id).select_from(owner))
        .returning(refresh_tokens.c.session_id)
        .cte("new_refresh_token")
    )


def begin_session(owner: CTE) -> tuple[CTE, ...]:
    """Return a session of `owner`, its refresh token and address, and some tidying; no owner, nothing."""
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
        .from_select(["user_id", "address"], select(owner.c.id, ADDRESS))
        .on_conflict_do_update(index_elements=["user_id", "address"], set_={"last_used_at": func.now()})
        .returning(known_addresses.c.address)
        .cte("known")
    )
    forgotten = (
        delete(known_addresses)
        .where(
            known_addresses.c.user_id == owner.c.id,
            known_addresses.c.address != ADDRESS,
            known_addresses.c.last_used_at <= ago(ADDRESS_KNOWN_FOR),
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
    return session, new_refresh_token(session.c.id, session), address, forgotten, swept


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
            or_(spent_at.is_(None), spent_at > ago(REFRESH_GRACE)),
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
        select(*PROFILE, renewed.c.id.label("session_id"))
        .join(renewed, renewed.c.user_id == users.c.id)
        .add_cte(new_refresh_token(renewed.c.id, renewed))
    )


def deleting(change: CTE) -> Statement:
    """Return this change as the caller's: a row, whose `id` is null where nothing was changed."""
    return Statement(select(change.c.id).select_from(caller.outerjoin(change, true())))


REFRESH = _refresh()
"""The session goes on with a new refresh token; no row when the old one is unknown, expired or spent."""

END_REUSED = Statement(
    delete(sessions)
    .where(
        sessions.c.id
        == select(refresh_tokens.c.session_id)
        .where(
            refresh_tokens.c.digest == bindparam("spent_digest"),
            refresh_tokens.c.spent_at <= ago(REFRESH_GRACE),
        )
        .scalar_subquery()
    )
    .returning(sessions.c.id, sessions.c.user_id)
)
"""Ends the session whose refresh token was used again too late."""

LIST_SESSIONS = Statement(
    select(
        *(
            sessions.c[name]
            for name in ("id", "created_at", "last_used_at", "expires_at", "user_agent", "ip")
        ),
        (sessions.c.id == CALLER_SESSION).label("current"),
    )
    .where(sessions.c.user_id == CALLER_ID, sessions.c.expires_at > func.now())
    .order_by(sessions.c.last_used_at.desc(), sessions.c.id)
)

END_SESSION = deleting(
    delete(sessions)
    .where(
        sessions.c.id == bindparam("session_id", type_=Uuid),
        sessions.c.user_id == CALLER_ID,
        sessions.c.expires_at > func.now(),
    )
    .returning(sessions.c.id)
    .cte("ended")
)

END_OTHER_SESSIONS = deleting(
    delete(sessions)
    .where(sessions.c.user_id == CALLER_ID, sessions.c.id != CALLER_SESSION)
    .returning(sessions.c.id)
    .cte("ended")
)
