"""Who calls: the token's claims, and the subquery that lets their row in only while their session lives."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, Text, Uuid, bindparam, case, func, select

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


def _caller() -> CTE:
    user_id = bindparam("caller_id", type_=Text)
    session_id = bindparam("caller_session", type_=Uuid)
    # Found by its key and then compared, or PostgreSQL might go through all sessions of a user.
    has_session = select(sessions.c.user_id == user_id).where(
        sessions.c.id == session_id, sessions.c.expires_at > func.now()
    )
    is_known = select(users.c.issuer == bindparam("caller_issuer", type_=Text)).where(
        users.c.id == user_id, users.c.disabled_at.is_(None)
    )
    # A session goes with its user, and disabling the user ends it, so the user is not looked up as well:
    # of the two, one is run.
    is_let_in = case((session_id.is_(None), is_known.scalar_subquery()), else_=has_session.scalar_subquery())
    return select(user_id.label("id")).where(is_let_in).cte("caller")


caller = _caller()
"""The caller's id, or no row when the session or the user is gone: every statement of theirs starts here."""
