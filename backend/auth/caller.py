"""The caller: a token's claims, and the subquery that has a row only while their session lives."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, Text, Uuid, bindparam, case, func, select, true

from backend.auth.models import sessions, users


@dataclass(frozen=True, slots=True)
class Caller:
    """The user, and for our own tokens the session, that a verified token names."""

    user_id: str
    issuer: str
    session_id: UUID | None
    expires_at: float
    """Seconds since the epoch, from the token's `exp`."""

    @property
    def values(self) -> dict[str, Any]:
        """The values that the subquery `caller` takes."""
        return {"caller_id": self.user_id, "caller_issuer": self.issuer, "caller_session": self.session_id}


CALLER_ID = bindparam("caller_id", type_=Text)
"""The caller's id as a value.

Rows are compared with it and not with the subquery `caller`: a value tells a part of a spread table at once.
"""
CALLER_SESSION = bindparam("caller_session", type_=Uuid)


def _caller() -> CTE:
    has_session = select(true()).where(
        sessions.c.user_id == CALLER_ID, sessions.c.id == CALLER_SESSION, sessions.c.expires_at > func.now()
    )
    is_known = select(users.c.issuer == bindparam("caller_issuer", type_=Text)).where(
        users.c.id == CALLER_ID, users.c.disabled_at.is_(None)
    )
    # A session goes with its user, and disabling the user ends it, so the user is not looked up as well:
    # of the two, one is run.
    is_alive = case(
        (CALLER_SESSION.is_(None), is_known.scalar_subquery()), else_=has_session.scalar_subquery()
    )
    return select(CALLER_ID.label("id")).where(is_alive).cte("caller")


caller = _caller()
"""The caller's id, or no row when the session or the user is gone: every statement of theirs has it."""

IS_LET_IN = select(caller.c.id).exists()
"""Whether `caller` has a row."""
