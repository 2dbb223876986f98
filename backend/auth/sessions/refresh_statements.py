"""The statements on refresh tokens, compiled once; each is one round trip.

`session_statements` says in which order they lock rows.
"""

from datetime import timedelta

from sqlalchemy import CTE, LargeBinary, Text, and_, bindparam, delete, func, or_, select, update

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
"""A refresh token used again so soon was used by two tabs; later it was stolen (RFC 9700 section 4.14.2)."""
USES_WITHIN_GRACE = 3
_spent_digest = bindparam("spent_digest", type_=LargeBinary)
_token = and_(refresh_tokens.c.user_id == USER_ID, refresh_tokens.c.digest == _spent_digest)
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
            user_agent=bindparam("user_agent", type_=Text),
            ip=bindparam("ip", type_=Text),
        )
        .returning(sessions.c.id, sessions.c.refresh_generation)
        .cte("renewed")
    )
    # By age and not by number, or a thief refreshes until the token that would give them away is gone.
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
"""The session goes on with a new refresh token; no row when the old one is unknown, expired, void or spent.

`within_grace` tells a use that was not the first. Tokens spent longer ago than a session may be idle
are pruned: a client that comes back so late is signed out anyway.
"""

END_BY_REFRESH_TOKEN = Statement(delete(sessions).where(_session_of_token).returning(sessions.c.id))
"""Ends the live session of a refresh token that was not voided."""

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
"""Ends the session whose refresh token was used again too late."""

OWNER_OF_TOKEN = WideStatement(
    select(refresh_tokens.c.user_id).where(refresh_tokens.c.digest == bindparam("digest", type_=LargeBinary))
)
"""Whose a token is that doesn't say so, because it was issued before migration 0009.

It asks all parts of the table.
"""
