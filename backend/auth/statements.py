"""The statements on accounts and sessions, compiled once; each does its work in one round trip."""

from sqlalchemy import (
    CTE,
    FromClause,
    Interval,
    LargeBinary,
    Text,
    Uuid,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from backend.auth.caller import caller
from backend.auth.models import LOCAL, refresh_tokens, sessions, users
from backend.database import Statement

_profile = ("id", "email", "name", "created_at")


def _begin_session(owner: FromClause) -> tuple[CTE, CTE]:
    """A new session of `owner` and its refresh token; no owner, no session."""
    session = (
        insert(sessions)
        .from_select(
            ["id", "user_id", "expires_at", "user_agent", "ip"],
            select(
                bindparam("session_id", type_=Uuid),
                owner.c.id,
                func.now() + bindparam("session_lifetime", type_=Interval),
                bindparam("user_agent", type_=Text),
                bindparam("ip", type_=Text),
            ).select_from(owner),
        )
        .returning(sessions.c.id)
        .cte("new_session")
    )
    token = (
        insert(refresh_tokens)
        .from_select(
            ["digest", "session_id"],
            select(bindparam("refresh_digest", type_=LargeBinary), session.c.id).select_from(session),
        )
        .returning(refresh_tokens.c.session_id)
        .cte("new_refresh_token")
    )
    return session, token


def _register() -> Statement:
    user = (
        postgresql.insert(users)
        .values(
            id=bindparam("user_id"),
            issuer=LOCAL,
            email=bindparam("email"),
            email_key=bindparam("email_key"),
            name=bindparam("name"),
            password_hash=bindparam("password_hash"),
        )
        .on_conflict_do_nothing(index_elements=["email_key"])
        .returning(*(users.c[name] for name in _profile))
        .cte("new_user")
    )
    return Statement(select(user).add_cte(*_begin_session(user)))


def _sign_in() -> Statement:
    owner = (
        select(*(users.c[name] for name in _profile))
        .where(
            users.c.email_key == bindparam("email_key"), users.c.password_hash == bindparam("password_hash")
        )
        .cte("owner")
    )
    return Statement(select(owner).add_cte(*_begin_session(owner)))


_caller_id = select(caller.c.id).scalar_subquery()

REGISTER = _register()
"""A user with a first session, or no row when the email is taken."""

FIND_ACCOUNT = Statement(
    select(users.c.id, users.c.password_hash).where(users.c.email_key == bindparam("email_key"))
)

SIGN_IN = _sign_in()
"""A session for the user whose password was checked, or no row when it has changed meanwhile."""

UPGRADE_HASH = Statement(
    update(users)
    .where(users.c.id == bindparam("user_id"), users.c.password_hash == bindparam("old_hash"))
    .values(password_hash=bindparam("new_hash"))
    .returning(users.c.id)
)

CONFIRM_CALLER = Statement(select(caller.c.id))

READ_PROFILE = Statement(select(*(users.c[name] for name in _profile)).where(users.c.id == _caller_id))

UPDATE_PROFILE = Statement(
    update(users)
    .where(users.c.id == _caller_id)
    .values(name=bindparam("new_name"))
    .returning(*(users.c[name] for name in _profile))
)

END_SESSION = Statement(
    delete(sessions)
    .where(sessions.c.id == bindparam("session_id"), sessions.c.user_id == _caller_id)
    .returning(sessions.c.id)
)
