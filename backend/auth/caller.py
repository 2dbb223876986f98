"""The caller of a request: a token's claims, and the subquery that has a row only during a live session."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, Text, Uuid, bindparam, case, func, select, true

from backend.auth.models import sessions, users


@dataclass(frozen=True, slots=True)
class Caller:
    """The user that a verified token names. A token of this service also names a session."""

    user_id: str
    issuer: str
    session_id: UUID | None

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of the subquery `caller`."""
        return {"caller_id": self.user_id, "caller_issuer": self.issuer, "caller_session": self.session_id}


CALLER_ID = bindparam("caller_id", type_=Text)
"""The caller's id as a parameter.

Statements compare rows with this parameter, not with the subquery `caller`, because Citus needs a value to
find the shard.
"""
CALLER_SESSION = bindparam("caller_session", type_=Uuid)


def _caller() -> CTE:
    has_session = select(true()).where(
        sessions.c.user_id == CALLER_ID, sessions.c.id == CALLER_SESSION, sessions.c.expires_at > func.now()
    )
    is_known = select(users.c.issuer == bindparam("caller_issuer", type_=Text)).where(
        users.c.id == CALLER_ID, users.c.disabled_at.is_(None)
    )
    # PostgreSQL runs one of the two subqueries. A live session needs no look at the user, because deleting
    # or disabling a user ends their sessions.
    is_alive = case(
        (CALLER_SESSION.is_(None), is_known.scalar_subquery()), else_=has_session.scalar_subquery()
    )
    return select(CALLER_ID.label("id")).where(is_alive).cte("caller")


caller = _caller()
"""The caller's id; no row when the session or the user is gone. Every statement of a caller includes it."""

IS_LET_IN = select(caller.c.id).exists()
"""The condition that `caller` has a row."""
