"""SQL statements on sessions, compiled once, and the parts that sign-in and password statements share.

Every statement that waits for locks takes them in this order:

1. the user's row, exclusively, because a queue of shared locks would let refreshes starve a change of
   password;
2. session rows; a statement that locks several of them already holds the user's row;
3. refresh tokens, then mail tokens;
4. emails: the new email before the old one;
5. the outbox.

A transaction may skip a step but never goes back. A registration takes its email first, because no other
transaction can wait for the row of a new user. The sweeps of expired sessions skip locked rows.

Each statement compares the `user_id` of each table with a parameter, not with the column of a subquery.
Only a parameter tells PostgreSQL and Citus at once which partition or shard has the rows.

A statement's snapshot is older than the lock that it waits for. PostgreSQL then rechecks only the locked row
(PostgreSQL manual, "Read Committed Isolation Level"). The values that decide a race are therefore columns of
that row. A refresh compares the generation in the session's row, and counts the uses in the token's row.
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
    Table,
    Text,
    Uuid,
    bindparam,
    delete,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from backend.auth.caller import CALLER_ID, CALLER_SESSION, IS_LET_IN, caller
from backend.auth.models import known_addresses, refresh_tokens, sessions, users
from backend.auth.schemas import SessionRead, UserRead
from backend.database import Statement, WideStatement

MAX_SESSIONS = 100
"""The most sessions of one user at a time."""
ADDRESS_KNOWN_FOR = timedelta(days=30)
SWEPT_AT_ONCE = 100
"""The most rows of `EXPIRED_OWNERS` in one round of the hourly sweep."""

PROFILE = tuple(users.c[name] for name in UserRead.model_fields)
USER_ID = bindparam("user_id", type_=Text)
SESSION_ID = bindparam("session_id", type_=Uuid)
ADDRESS = bindparam("address", type_=Text)
LIFE = bindparam("session_life", type_=Interval)
IDLE_LIFE = bindparam("session_idle_life", type_=Interval)
NO_SESSION = null()
IS_LIVE = sessions.c.expires_at > func.now()
_refresh_digest = bindparam("refresh_digest", type_=LargeBinary)


def given(*names: str) -> dict[str, Any]:
    """Return values for the columns of these names: parameters of the same names."""
    return {name: bindparam(name) for name in names}


def ago(period: timedelta) -> ColumnElement[Any]:
    """Return the moment `period` before now."""
    return func.now() - literal(period, Interval)


def new_refresh_token(user_id: ColumnElement[str], session: CTE) -> CTE:
    """Return the insertion of a refresh token for `session`, with the session's current generation."""
    return (
        insert(refresh_tokens)
        .from_select(
            ["user_id", "digest", "session_id", "generation"],
            select(user_id, _refresh_digest, session.c.id, session.c.refresh_generation),
        )
        .returning(refresh_tokens.c.session_id)
        .cte("new_refresh_token")
    )


def deletion(name: str, table: Table, *conditions: ColumnElement[bool]) -> CTE:
    """Return the deletion of the rows that meet all conditions; it returns their keys."""
    return delete(table).where(*conditions).returning(*table.primary_key).cte(name)


def void_sessions(
    user_id: ColumnElement[str], changed: CTE, kept: ColumnElement[Any] = NO_SESSION
) -> tuple[CTE, CTE]:
    """Return the deletion of a user's sessions except `kept`, and the voiding of `kept`'s refresh tokens.

    `kept` is a session's id. Spent tokens are voided too. Neither statement changes anything without a row
    in `changed`. An earlier statement of the same transaction must lock the user's row, because the
    deletion would miss sessions that begin concurrently.
    """
    is_other = sessions.c.id.is_distinct_from(kept)
    ended = deletion("ended", sessions, sessions.c.user_id == user_id, is_other, has_row(changed))
    voided = (
        update(sessions)
        .where(sessions.c.user_id == user_id, sessions.c.id == kept, has_row(changed))
        .values(refresh_generation=sessions.c.refresh_generation + 1)
        .returning(sessions.c.id, sessions.c.refresh_generation, sessions.c.uses_cookie)
        .cte("voided")
    )
    return ended, voided


def has_row(rows: CTE) -> ColumnElement[bool]:
    """Return the condition that `rows` has a row."""
    return select(literal_column("1")).select_from(rows).exists()


def number_of(rows: FromClause, name: str = "count") -> ColumnElement[int]:
    """Return the number of `rows`, as a column `name`."""
    return select(func.count()).select_from(rows).scalar_subquery().label(name)


_expired = (
    select(sessions.c.id)
    .where(sessions.c.user_id == USER_ID, sessions.c.expires_at <= func.now())
    .with_for_update(skip_locked=True)
)
_swept = deletion("swept", sessions, sessions.c.user_id == USER_ID, sessions.c.id.in_(_expired))


def begin_session(owner: CTE) -> tuple[CTE, ...]:
    """Return the insertion of a session of `USER_ID`, with its refresh token and known address.

    The user's outdated addresses and expired sessions are deleted. Without a row in `owner`, nothing is
    inserted and no address is deleted.
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
    forgotten = deletion(
        "forgotten",
        known_addresses,
        known_addresses.c.user_id == USER_ID,
        known_addresses.c.address != ADDRESS,
        known_addresses.c.last_used_at <= ago(ADDRESS_KNOWN_FOR),
        has_row(owner),
    )
    return session, new_refresh_token(USER_ID, session), address, forgotten, _swept


def changing(change: CTE) -> Statement:
    """Return a statement that makes `change` for the caller.

    It returns one row, whose `id` is null when nothing changed. It returns no row without a live session.
    """
    return Statement(select(change).select_from(caller.outerjoin(change, true())))


LIST_SESSIONS = Statement(
    select(
        *(sessions.c[name] for name in SessionRead.model_fields if name != "current"),
        (sessions.c.id == CALLER_SESSION).label("current"),
    )
    .where(sessions.c.user_id == CALLER_ID, IS_LIVE, IS_LET_IN)
    .order_by(sessions.c.last_used_at.desc(), sessions.c.id)
)

END_SESSION = changing(
    deletion(
        "ended",
        sessions,
        sessions.c.user_id == CALLER_ID,
        sessions.c.id == SESSION_ID,
        IS_LIVE,
        IS_LET_IN,
    )
)

_locked_user = (
    select(users.c.id)
    .where(users.c.id == CALLER_ID, IS_LET_IN)
    .with_for_update(key_share=True, of=users)
    .cte("locked_user")
)
_locked_caller = (
    select(sessions.c.id)
    .where(sessions.c.user_id == CALLER_ID, sessions.c.id == CALLER_SESSION, has_row(_locked_user))
    .with_for_update(key_share=True, of=sessions)
    .cte("locked_caller")
)
LOCK_CALLER = Statement(select(_locked_caller.c.id))
"""Runs before a statement that voids sessions, in the same transaction.

It returns no row when the caller's session has ended.
"""

_others, _ = void_sessions(CALLER_ID, _locked_caller, CALLER_SESSION)
END_OTHER_SESSIONS = Statement(select(_locked_caller.c.id, number_of(_others)))
"""Returns the number of deleted sessions, or no row when the caller's own session has ended."""

_owner = select(users.c.id).where(users.c.id == USER_ID).with_for_update(key_share=True).cte("locked_user")
_oldest = (
    select(sessions.c.id)
    .where(sessions.c.user_id == USER_ID, IS_LIVE, has_row(_owner))
    .order_by(sessions.c.last_used_at.desc(), sessions.c.id.desc())
    .offset(literal(MAX_SESSIONS))
    .cte("oldest")
)
_is_oldest = sessions.c.id.in_(select(_oldest.c.id))
END_OLDEST_SESSIONS = Statement(
    select(number_of(deletion("ended", sessions, sessions.c.user_id == USER_ID, _is_oldest)))
)
"""Ends the least recently used sessions beyond `MAX_SESSIONS`.

It runs after the commit of a sign-in, because the last of concurrent sign-ins to commit sees all sessions.
"""

EXPIRED_OWNERS = WideStatement(
    select(sessions.c.user_id)
    .where(sessions.c.expires_at <= func.now())
    .order_by(sessions.c.expires_at)
    .limit(literal(SWEPT_AT_ONCE))
)
"""The users of the sessions that expired longest ago, with repetitions. The query reads all shards."""

SWEEP = Statement(select(number_of(_swept)))
"""Deletes the user's expired sessions, except those that another transaction has locked."""
