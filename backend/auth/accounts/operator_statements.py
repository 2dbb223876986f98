"""The operator's statements on accounts, compiled once; `session_statements` has the order of locks.

A statement that ends sessions goes after `LOCK_USER`, in its transaction.
"""

from sqlalchemy import (
    Boolean,
    Integer,
    Text,
    Uuid,
    bindparam,
    cast,
    delete,
    false,
    func,
    null,
    or_,
    select,
    update,
)

from backend.auth.mail.statements import MAIL_VOIDED, void_mail_tokens
from backend.auth.models import sessions, users
from backend.auth.sessions.statements import number_of, void_sessions
from backend.database import Statement

FIELDS = (
    *("id", "issuer", "email", "email_verified", "pending_email"),
    *("name", "created_at", "disabled_at", "sessions"),
)
"""What an operator sees of a user; `sessions` counts those that are good."""

_user_id = bindparam("user_id", type_=Text)
_live = (
    select(func.count())
    .where(sessions.c.user_id == users.c.id, sessions.c.expires_at > func.now())
    .correlate(users)
    .scalar_subquery()
    .label("sessions")
)
_shown = (*(users.c[name] for name in FIELDS[:-1]), _live)
_email = func.coalesce(users.c.email_key, func.lower(users.c.email), "")

LIST_USERS = Statement(
    select(*_shown)
    .where(
        or_(~bindparam("unverified", type_=Boolean), users.c.email_verified == false()),
        or_(~bindparam("disabled", type_=Boolean), users.c.disabled_at.is_not(None)),
        func.strpos(_email, bindparam("part", type_=Text)) > 0,
    )
    .order_by(users.c.created_at.desc(), users.c.id.desc())
    .limit(bindparam("limit", type_=Integer))
)
"""The newest users first, within the filters."""

FIND_USER = Statement(
    select(*_shown, users.c.email_key)
    .where(or_(users.c.id == _user_id, users.c.email_key == bindparam("email_key", type_=Text)))
    .order_by((users.c.id == _user_id).desc())
)
"""The user with this id before the one with this email."""


def _disable() -> Statement:
    changed = (
        update(users)
        .where(users.c.id == _user_id)
        .values(disabled_at=func.coalesce(users.c.disabled_at, func.now()), **MAIL_VOIDED)
        .returning(users.c.id)
        .cte("changed")
    )
    ended, voided = void_sessions(changed, cast(null(), Uuid))
    return Statement(select(changed.c.id, number_of(ended)).add_cte(voided, void_mail_tokens(changed)))


DISABLE_USER = _disable()
"""The number of sessions that end with it; links that were mailed are void as well."""

ENABLE_USER = Statement(
    update(users).where(users.c.id == _user_id).values(disabled_at=null()).returning(users.c.id)
)


def _sign_out() -> Statement:
    owner = select(users.c.id).where(users.c.id == _user_id).cte("owner")
    ended, voided = void_sessions(owner, cast(null(), Uuid))
    return Statement(select(owner.c.id, number_of(ended)).add_cte(voided))


SIGN_OUT_USER = _sign_out()

DELETE_USER = Statement(delete(users).where(users.c.id == _user_id).returning(users.c.id))
"""Their sessions and tasks go with them."""
