"""SQL statements of the operator's commands on accounts, compiled once.

`backend/auth/sessions/statements.py` defines the lock order. `DISABLE_USER` and `SIGN_OUT_USER` run after
`LOCK_USER` in the same transaction.
"""

from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Integer,
    Select,
    Text,
    bindparam,
    delete,
    false,
    func,
    null,
    or_,
    select,
    update,
)

from backend.auth.mail.statements import secured
from backend.auth.models import sessions, users
from backend.auth.sessions.statements import IS_LIVE, USER_ID, number_of, void_sessions
from backend.database import Statement, WideStatement
from backend.database.expressions import moment_of

_FIELDS = users.c[
    "id", "issuer", "email", "email_verified", "pending_email", "name", "created_at", "disabled_at"
]


def _shown(user_id: ColumnElement[str]) -> Select[Any]:
    """Return the query of what the commands show of users; `sessions` is the number of live sessions."""
    live = select(func.count()).where(sessions.c.user_id == user_id, IS_LIVE).correlate(users)
    return select(*_FIELDS, live.scalar_subquery().label("sessions"))


_user_id = users.c.id.label("user_id")
_email = func.coalesce(users.c.email_key, func.lower(users.c.email), "")

LIST_USERS = WideStatement(
    _shown(users.c.id)
    .where(
        or_(~bindparam("unverified", type_=Boolean), users.c.email_verified == false()),
        or_(~bindparam("disabled", type_=Boolean), users.c.disabled_at.is_not(None)),
        func.strpos(_email, bindparam("part", type_=Text)) > 0,
    )
    .order_by(users.c.created_at.desc(), users.c.id.desc())
    .limit(bindparam("limit", type_=Integer))
)
"""The users that match the filters, newest first. The query reads all shards."""

FIND_USER = Statement(_shown(USER_ID).where(users.c.id == USER_ID))

_disabled, _ended, *_voided = secured(
    USER_ID, disabled_at=func.coalesce(users.c.disabled_at, moment_of(func.now()))
)
DISABLE_USER = Statement(
    select(_disabled.c.id.label("user_id"), number_of(_ended, name="sessions_ended")).add_cte(*_voided)
)
"""Disables a user and voids mailed links; returns the number of ended sessions."""

ENABLE_USER = Statement(
    update(users).where(users.c.id == USER_ID).values(disabled_at=null()).returning(_user_id)
)

_owner = select(_user_id).where(users.c.id == USER_ID).cte("owner")
_signed_out, _ = void_sessions(USER_ID, _owner)
SIGN_OUT_USER = Statement(select(_owner, number_of(_signed_out)))

DELETE_USER = Statement(delete(users).where(users.c.id == USER_ID).returning(_user_id, users.c.email_key))
"""Deletes a user with their sessions and tasks. `LEAVE_EMAIL` runs after it in the same transaction."""
