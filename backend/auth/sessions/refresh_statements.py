"""SQL statements on refresh tokens, compiled once; each is one round trip.

`backend/auth/sessions/statements.py` defines the lock order.
"""

from datetime import timedelta

from sqlalchemy import and_, bindparam, delete, func, or_, select, update

from backend.auth.models import refresh_tokens, sessions, users
from backend.auth.sessions.statements import (
    IDLE_LIFE,
    IS_LIVE,
    LIFE,
    PROFILE,
    USER_ID,
    ago,
    deletion,
    given,
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
    IS_LIVE,
)

_locked = (
    select(sessions.c.id)
    .join(refresh_tokens, _session_of_token)
    .with_for_update(of=sessions)
    .cte("locked_session")
)
_spent_at, _uses = refresh_tokens.c.spent_at, refresh_tokens.c.uses
_spent = (
    update(refresh_tokens)
    .where(
        _token,
        has_row(_locked),
        or_(_spent_at.is_(None), and_(_spent_at > ago(REFRESH_GRACE), _uses < USES_WITHIN_GRACE)),
    )
    .values(spent_at=func.coalesce(_spent_at, moment_of(func.now())), uses=_uses + 1)
    .returning(refresh_tokens.c.session_id, _uses)
    .cte("spent")
)
_renewed = (
    update(sessions)
    .where(sessions.c.user_id == USER_ID, sessions.c.id == _spent.c.session_id)
    .values(
        last_used_at=func.now(),
        expires_at=func.least(moment_after(sessions.c.created_at, LIFE), func.now() + IDLE_LIFE),
        **given("user_agent", "ip"),
    )
    .returning(sessions.c.id, sessions.c.refresh_generation)
    .cte("renewed")
)
# Pruning goes by age, not by number, because a thief could refresh until the stolen token is pruned.
# The reuse of that token would reveal the theft.
_pruned = deletion(
    "pruned",
    refresh_tokens,
    refresh_tokens.c.user_id == USER_ID,
    refresh_tokens.c.session_id == _renewed.c.id,
    refresh_tokens.c.spent_at <= func.now() - IDLE_LIFE,
)
REFRESH = Statement(
    select(*PROFILE, _renewed.c.id.label("session_id"), (_spent.c.uses > 1).label("within_grace"))
    .select_from(_spent.join(_renewed, _renewed.c.id == _spent.c.session_id))
    .join(users, users.c.id == USER_ID)
    .add_cte(new_refresh_token(USER_ID, _renewed), _pruned)
)
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
