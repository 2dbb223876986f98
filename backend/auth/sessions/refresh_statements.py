"""SQL statements on refresh tokens, compiled once; each is one round trip.

`backend/auth/sessions/statements.py` defines the lock order.
"""

from datetime import timedelta

from sqlalchemy import CTE, and_, bindparam, delete, func, or_, select, update

from backend.auth.models import refresh_tokens, sessions, users
from backend.auth.sessions.statements import (
    IDLE_LIFE,
    LIFE,
    PROFILE,
    USER_ID,
    ago,
    has_row,
    new_refresh_token,
)
from backend.database import Statement, WideStatement
from backend.database.expressions import moment_after, moment_of

REFRESH_GRACE = timedelta(seconds=10)
"""Reuse of a refresh token within this time is taken for a second tab, because tabs refresh concurrently.

Later reuse is taken for theft (RFC 9700 section 4.14.2).
"""
USES_WITHIN_GRACE = 3
_token = and_(refresh_tokens.c.user_id == USER_ID, refresh_tokens.c.digest == bindparam("spent_digest"))
_session_of_token = and_(
    _token,
    sessions.c.user_id == USER_ID,
    sessions.c.id == refresh_tokens.c.session_id,
    sessions.c.refresh_generation == refresh_tokens.c.generation,
    sessions.c.expires_at > func.now(),
)


def _refresh() -> Statement:
    session = (
        select(sessions.c.id)
        .join(refresh_tokens, _session_of_token)
        .with_for_update(of=sessions)
        .cte("locked_session")
    )
    spent = _spend(session)
    renewed = (
        update(sessions)
        .where(sessions.c.user_id == USER_ID, sessions.c.id == spent.c.session_id)
        .values(
            last_used_at=func.now(),
            expires_at=func.least(moment_after(sessions.c.created_at, LIFE), func.now() + IDLE_LIFE),
            user_agent=bindparam("user_agent"),
            ip=bindparam("ip"),
        )
        .returning(sessions.c.id, sessions.c.refresh_generation)
        .cte("renewed")
    )
    # Pruning goes by age, not by number, because a thief could refresh until the stolen token is pruned.
    # The reuse of that token would reveal the theft.
    pruned = (
        delete(refresh_tokens)
        .where(
            refresh_tokens.c.user_id == USER_ID,
            refresh_tokens.c.session_id == renewed.c.id,
            refresh_tokens.c.spent_at <= func.now() - IDLE_LIFE,
        )
        .returning(refresh_tokens.c.session_id)
        .cte("pruned")
    )
    return Statement(
        select(*PROFILE, renewed.c.id.label("session_id"), (spent.c.uses > 1).label("within_grace"))
        .select_from(spent.join(renewed, renewed.c.id == spent.c.session_id))
        .join(users, users.c.id == USER_ID)
        .add_cte(new_refresh_token(USER_ID, renewed), pruned)
    )


def _spend(session: CTE) -> CTE:
    spent_at, uses = refresh_tokens.c.spent_at, refresh_tokens.c.uses
    return (
        update(refresh_tokens)
        .where(
            _token,
            has_row(session),
            or_(spent_at.is_(None), and_(spent_at > ago(REFRESH_GRACE), uses < USES_WITHIN_GRACE)),
        )
        .values(spent_at=func.coalesce(spent_at, moment_of(func.now())), uses=uses + 1)
        .returning(refresh_tokens.c.session_id, uses)
        .cte("spent")
    )


REFRESH = _refresh()
"""Spends a refresh token, extends its session and inserts a new refresh token.

It returns no row when the old token is unknown, expired, void or spent. `within_grace` is true for a use
that was not the first. Tokens spent longer ago than a session may be idle are deleted, because a client
that returns so late must sign in anyway.
"""

END_BY_REFRESH_TOKEN = Statement(delete(sessions).where(_session_of_token).returning(sessions.c.id))
"""Ends the live session of a refresh token, spent or not, unless the token was voided."""

END_REUSED = Statement(
    delete(sessions)
    .where(
        sessions.c.user_id == USER_ID,
        sessions.c.id
        == select(refresh_tokens.c.session_id)
        .where(_token, refresh_tokens.c.spent_at <= ago(REFRESH_GRACE))
        .scalar_subquery(),
    )
    .returning(sessions.c.id)
)
"""Ends the session whose refresh token was reused after `REFRESH_GRACE`."""

OWNER_OF_TOKEN = WideStatement(
    select(refresh_tokens.c.user_id).where(refresh_tokens.c.digest == bindparam("digest"))
)
"""The user of a refresh token issued before migration 0009, which carries no user id.

The query reads all shards.
"""
