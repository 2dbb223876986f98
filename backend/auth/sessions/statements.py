"""The statements on sessions, compiled once, and the parts that sign-in and password statements share.

Lock order, for every statement that waits for a lock:

1. the user's row, exclusively (a queue of shared locks would let refreshes starve a change of password);
2. session rows; a statement that locks several of them holds the user's row;
3. refresh tokens, then mail tokens;
4. emails: a new one before the one that it replaces;
5. the outbox.

A transaction may leave out a step, but never goes back. A registration takes its email first: nobody else
can wait for its user, who is new. The sweeps of expired sessions skip locked rows.

Each statement compares the `user_id` of each table with a value, not with the column of a subquery: a value
alone tells PostgreSQL and Citus at once which part of a table the rows are in.

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
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from backend.auth.caller import CALLER_ID, CALLER_SESSION, IS_LET_IN, caller
from backend.auth.models import known_addresses, refresh_tokens, sessions, users
from backend.database import Statement, WideStatement

MAX_SESSIONS = 100
"""The sessions that one user may have at a time."""
ADDRESS_KNOWN_FOR = timedelta(days=30)
SWEPT_AT_ONCE = 100
"""Owners of expired sessions that one round of the hourly sweep takes."""

USER_FIELDS = ("id", "email", "email_verified", "pending_email", "name", "created_at")
PROFILE = tuple(users.c[name] for name in USER_FIELDS)
USER_ID = bindparam("user_id", type_=Text)
SESSION_ID = bindparam("session_id", type_=Uuid)
ADDRESS = bindparam("address", type_=Text)
LIFE = bindparam("session_life", type_=Interval)
IDLE_LIFE = bindparam("session_idle_life", type_=Interval)
_refresh_digest = bindparam("refresh_digest", type_=LargeBinary)


def ago(period: timedelta) -> ColumnElement[Any]:
    """Return the moment that was so long ago."""
    return func.now() - literal(period, Interval)


def new_refresh_token(user_id: ColumnElement[str], session: CTE) -> CTE:
    """Return the insertion of a refresh token of `session`, of the generation that is good there now."""
    return (
        insert(refresh_tokens)
        .from_select(
            ["user_id", "digest", "session_id", "generation"],
            select(user_id, _refresh_digest, session.c.id, session.c.refresh_generation),
        )
        .returning(refresh_tokens.c.session_id)
        .cte("new_refresh_token")
    )


def void_sessions(user_id: ColumnElement[str], changed: CTE, kept: ColumnElement[Any]) -> tuple[CTE, CTE]:
    """Return the end of all sessions of a user but `kept`, and `kept` with its refresh tokens voided.

    Nothing happens where `changed` has no row. Spent tokens are voided as well. `kept` is a session's id, or
    null to end all. An earlier statement of the same transaction must hold the user's row, or sessions that
    begin meanwhile are not seen.
    """
    ended = (
        delete(sessions)
        .where(sessions.c.user_id == user_id, sessions.c.id.is_distinct_from(kept), has_row(changed))
        .returning(sessions.c.id)
        .cte("ended")
    )
    voided = (
        update(sessions)
        .where(sessions.c.user_id == user_id, sessions.c.id == kept, has_row(changed))
        .values(refresh_generation=sessions.c.refresh_generation + 1)
        .returning(sessions.c.id, sessions.c.refresh_generation, sessions.c.uses_cookie)
        .cte("voided")
    )
    return ended, voided


def has_row(rows: CTE) -> ColumnElement[bool]:
    """Return whether there is one in `rows`."""
    return select(literal_column("1")).select_from(rows).exists()


def number_of(rows: FromClause) -> ColumnElement[int]:
    """Return the number of `rows`, as a column `count`."""
    return select(func.count()).select_from(rows).scalar_subquery().label("count")


def begin_session(owner: CTE) -> tuple[CTE, ...]:
    """Return a session of the user `USER_ID`, its refresh token and address, and some tidying of theirs.

    Nothing happens where `owner` has no row.
    """
    session = (
        insert(sessions)
        .from_select(
            ["user_id", "id", "expires_at", "user_agent", "ip", "uses_cookie"],
            select(
                USER_ID,
                SESSION_ID,
                func.now() + func.least(LIFE, IDLE_LIFE),
                bindparam("user_agent", type_=Text),
                bindparam("ip", type_=Text),
                bindparam("uses_cookie", type_=Boolean),
            ).select_from(owner),
        )
        .returning(sessions.c.id, sessions.c.refresh_generation)
        .cte("new_session")
    )
    used = postgresql.insert(known_addresses).from_select(
        ["user_id", "address", "last_used_at"], select(USER_ID, ADDRESS, func.now()).select_from(owner)
    )
    address = (
        used.on_conflict_do_update(
            index_elements=["user_id", "address"], set_={"last_used_at": used.excluded.last_used_at}
        )
        .returning(known_addresses.c.address)
        .cte("known")
    )
    forgotten = (
        delete(known_addresses)
        .where(
            known_addresses.c.user_id == USER_ID,
            known_addresses.c.address != ADDRESS,
            known_addresses.c.last_used_at <= ago(ADDRESS_KNOWN_FOR),
            has_row(owner),
        )
        .returning(known_addresses.c.address)
        .cte("forgotten")
    )
    return session, new_refresh_token(USER_ID, session), address, forgotten, _swept()


def _swept() -> CTE:
    expired = (
        select(sessions.c.id)
        .where(sessions.c.user_id == USER_ID, sessions.c.expires_at <= func.now())
        .with_for_update(skip_locked=True)
    )
    return (
        delete(sessions)
        .where(sessions.c.user_id == USER_ID, sessions.c.id.in_(expired))
        .returning(sessions.c.id)
        .cte("swept")
    )


def _lock_caller() -> CTE:
    user = (
        select(users.c.id)
        .where(users.c.id == CALLER_ID, IS_LET_IN)
        .with_for_update(key_share=True, of=users)
        .cte("locked_user")
    )
    return (
        select(sessions.c.id)
        .where(sessions.c.user_id == CALLER_ID, sessions.c.id == CALLER_SESSION, has_row(user))
        .with_for_update(key_share=True, of=sessions)
        .cte("locked_caller")
    )


def _end_other_sessions() -> Statement:
    caller_ = _lock_caller()
    ended = (
        delete(sessions)
        .where(sessions.c.user_id == CALLER_ID, sessions.c.id != CALLER_SESSION, has_row(caller_))
        .returning(sessions.c.id)
        .cte("ended")
    )
    return Statement(select(caller_.c.id, number_of(ended)))


def _end_oldest_sessions() -> Statement:
    user = select(users.c.id).where(users.c.id == USER_ID).with_for_update(key_share=True).cte("locked_user")
    oldest = (
        select(sessions.c.id)
        .where(sessions.c.user_id == USER_ID, sessions.c.expires_at > func.now(), has_row(user))
        .order_by(sessions.c.last_used_at.desc(), sessions.c.id.desc())
        .offset(literal(MAX_SESSIONS))
        .cte("oldest")
    )
    ended = (
        delete(sessions)
        .where(sessions.c.user_id == USER_ID, sessions.c.id.in_(select(oldest.c.id)))
        .returning(sessions.c.id)
        .cte("ended")
    )
    return Statement(select(number_of(ended)))


def changing(change: CTE) -> Statement:
    """Return this change as the caller's: a row, whose `id` is null where nothing was changed."""
    return Statement(select(change).select_from(caller.outerjoin(change, true())))


LIST_SESSIONS = Statement(
    select(
        *(
            sessions.c[name]
            for name in ("id", "created_at", "last_used_at", "expires_at", "user_agent", "ip")
        ),
        (sessions.c.id == CALLER_SESSION).label("current"),
    )
    .where(sessions.c.user_id == CALLER_ID, sessions.c.expires_at > func.now(), IS_LET_IN)
    .order_by(sessions.c.last_used_at.desc(), sessions.c.id)
)

END_SESSION = changing(
    delete(sessions)
    .where(
        sessions.c.user_id == CALLER_ID,
        sessions.c.id == SESSION_ID,
        sessions.c.expires_at > func.now(),
        IS_LET_IN,
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

EXPIRED_OWNERS = WideStatement(
    select(sessions.c.user_id)
    .where(sessions.c.expires_at <= func.now())
    .order_by(sessions.c.expires_at)
    .limit(literal(SWEPT_AT_ONCE))
)
"""Owners of sessions that expired longest ago; one may come several times. It asks all parts of the table."""

SWEEP = Statement(select(number_of(_swept())))
"""Deletes the user's expired sessions, but those that somebody else has locked."""
