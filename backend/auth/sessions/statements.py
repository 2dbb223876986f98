"""The statements on sessions, compiled once, and the parts that sign-in and password statements share.

Lock order, for every statement that waits for a lock:

1. the user's row, exclusively (a queue of shared locks would let refreshes starve a change of password);
2. session rows; a statement that locks several of them holds the user's row;
3. refresh tokens.

A statement may leave out a step, but never goes back. The sweep of expired sessions skips locked rows.

A statement's snapshot is older than the lock that it waits for. Only the locked row itself is checked
anew (PostgreSQL manual, "Read Committed Isolation Level"), so what a race decides stands in that row:
a refresh compares the generation in the session's row, and counts the uses in the token's row.
"""

from datetime import timedelta
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
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
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from backend.auth.caller import caller
from backend.auth.models import known_addresses, refresh_tokens, sessions, users
from backend.database import Statement

MAX_SESSIONS = 100
"""The sessions that one user may have at a time."""
ADDRESS_KNOWN_FOR = timedelta(days=30)
SWEPT_AT_ONCE = 10
"""Expired sessions that each new one clears away: more than come in, so that they never pile up."""

USER_FIELDS = ("id", "email", "email_verified", "pending_email", "name", "created_at")
PROFILE = tuple(users.c[name] for name in USER_FIELDS)
CALLER_ID = select(caller.c.id).scalar_subquery()
CALLER_SESSION = bindparam("caller_session", type_=Uuid)
ADDRESS = bindparam("address", type_=Text)
LIFE = bindparam("session_life", type_=Interval)
IDLE_LIFE = bindparam("session_idle_life", type_=Interval)
_refresh_digest = bindparam("refresh_digest", type_=LargeBinary)


def ago(period: timedelta) -> ColumnElement[Any]:
    """Return the moment that was so long ago."""
    return func.now() - literal(period, Interval)


def new_refresh_token(session: CTE) -> CTE:
    """Return the insertion of a refresh token of `session`, of the generation that is good there now."""
    return (
        insert(refresh_tokens)
        .from_select(
            ["digest", "session_id", "generation"],
            select(_refresh_digest, session.c.id, session.c.refresh_generation),
        )
        .returning(refresh_tokens.c.session_id)
        .cte("new_refresh_token")
    )


def void_sessions(owner: CTE, kept: ColumnElement[Any]) -> tuple[CTE, CTE]:
    """Return the end of all sessions of `owner` but `kept`, and `kept` with its refresh tokens voided.

    Spent tokens are voided as well. `kept` is a session's id, or null to end all. An earlier statement
    of the same transaction must hold the user's row, or sessions that begin meanwhile are not seen.
    """
    ended = (
        delete(sessions)
        .where(sessions.c.user_id == owner.c.id, sessions.c.id.is_distinct_from(kept))
        .returning(sessions.c.id)
        .cte("ended")
    )
    voided = (
        update(sessions)
        .where(sessions.c.user_id == owner.c.id, sessions.c.id == kept)
        .values(refresh_generation=sessions.c.refresh_generation + 1)
        .returning(sessions.c.id, sessions.c.refresh_generation, sessions.c.uses_cookie)
        .cte("voided")
    )
    return ended, voided


def number_of(rows: FromClause) -> ColumnElement[int]:
    """Return the number of `rows`, as a column `count`."""
    return select(func.count()).select_from(rows).scalar_subquery().label("count")


def begin_session(owner: CTE) -> tuple[CTE, ...]:
    """Return a session of `owner`, its refresh token and address, and some tidying; no owner, nothing."""
    session = (
        insert(sessions)
        .from_select(
            ["id", "user_id", "expires_at", "user_agent", "ip", "uses_cookie"],
            select(
                bindparam("session_id", type_=Uuid),
                owner.c.id,
                func.now() + func.least(LIFE, IDLE_LIFE),
                bindparam("user_agent", type_=Text),
                bindparam("ip", type_=Text),
                bindparam("uses_cookie", type_=Boolean),
            ).select_from(owner),
        )
        .returning(sessions.c.id, sessions.c.refresh_generation)
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
    return session, new_refresh_token(session), address, forgotten, swept


def _lock_caller() -> CTE:
    user = (
        select(users.c.id)
        .where(users.c.id == CALLER_ID)
        .with_for_update(key_share=True, of=users)
        .cte("locked_user")
    )
    return (
        select(sessions.c.id, sessions.c.user_id)
        .where(sessions.c.id == CALLER_SESSION, sessions.c.user_id == user.c.id)
        .with_for_update(key_share=True, of=sessions)
        .cte("locked_caller")
    )


def _end_other_sessions() -> Statement:
    caller_ = _lock_caller()
    ended = (
        delete(sessions)
        .where(sessions.c.user_id == caller_.c.user_id, sessions.c.id != caller_.c.id)
        .returning(sessions.c.id)
        .cte("ended")
    )
    return Statement(select(caller_.c.id, number_of(ended)))


def _end_oldest_sessions() -> Statement:
    user = (
        select(users.c.id)
        .where(users.c.id == bindparam("user_id"))
        .with_for_update(key_share=True)
        .cte("locked_user")
    )
    oldest = (
        select(sessions.c.id)
        .where(sessions.c.user_id == user.c.id, sessions.c.expires_at > func.now())
        .order_by(sessions.c.last_used_at.desc(), sessions.c.id.desc())
        .offset(literal(MAX_SESSIONS))
        .cte("oldest")
    )
    ended = delete(sessions).where(sessions.c.id == oldest.c.id).returning(sessions.c.id).cte("ended")
    return Statement(select(number_of(ended)))


def deleting(change: CTE) -> Statement:
    """Return this change as the caller's: a row, whose `id` is null where nothing was changed."""
    return Statement(select(change.c.id).select_from(caller.outerjoin(change, true())))


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

LOCK_CALLER = Statement(select(_lock_caller().c.id))
"""Goes before a statement that voids sessions, in its transaction; no row when the caller's has ended."""

END_OTHER_SESSIONS = _end_other_sessions()
"""The number of sessions that were ended, or no row when the caller's own has ended."""

END_OLDEST_SESSIONS = _end_oldest_sessions()
"""Ends the sessions past `MAX_SESSIONS` that were used longest ago.

Goes after the commit of a sign-in: of many at once, the last to commit sees them all.
"""
