"""SQL statements of the routes on mail tokens and on the outbox, compiled once.

`backend/auth/sessions/statements.py` defines the lock order. A change of the outbox and of another table
takes two statements in one transaction, because Citus distributes the other table and not the outbox.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    LargeBinary,
    Text,
    and_,
    bindparam,
    func,
    insert,
    null,
    or_,
    select,
    true,
    update,
)

from backend.auth.caller import CALLER_ID, IS_LET_IN
from backend.auth.mail.models import mail_tokens, outbox
from backend.auth.models import users
from backend.auth.sessions.statements import (
    NO_SESSION,
    PROFILE,
    SESSION_ID,
    USER_ID,
    changing,
    deletion,
    given,
    has_row,
    void_sessions,
)
from backend.database import Statement, WideStatement
from backend.database.expressions import moment_of


class Kind(StrEnum):
    """The kinds of mail. The kind of a mail with a link is also the purpose of the link's token.

    The token of an invitation has the purpose `RESET`.
    """

    RESET = "reset"
    VERIFY = "verify"
    CHANGE = "change"
    EMAIL_TAKEN = "email_taken"
    CHANGE_REQUESTED = "change_requested"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105  # a kind of mail
    EMAIL_CHANGED = "email_changed"
    INVITATION = "invitation"
    RESET_BY_HAND = "reset_by_hand"
    """The purpose of a reset link that an operator hands over, and no kind of mail.

    The link verifies no address, because it was not mailed.
    """


RESETS = (Kind.RESET, Kind.RESET_BY_HAND)
"""The purposes of a token that sets a new password."""

EMAIL = bindparam("email", type_=Text)
EMAIL_KEY = bindparam("email_key", type_=Text)
DIGEST = bindparam("digest", type_=LargeBinary)
_token = (mail_tokens.c.user_id == USER_ID) & (mail_tokens.c.digest == DIGEST)
_is_used = mail_tokens.c.used_at.is_not(None)
_verifies = mail_tokens.c.purpose == Kind.VERIFY.value
_is_valid = or_(and_(mail_tokens.c.expires_at > func.now(), ~_is_used), and_(_verifies, _is_used))
"""A used token that verifies stays valid, because its link gets the same response again."""

ENQUEUE = Statement(
    insert(outbox).values(given("kind", "email", "email_key", "user_id", "session_id")).returning(outbox.c.id)
)

ASK_FOR_CHANGE = changing(
    update(users)
    .where(users.c.id == CALLER_ID, IS_LET_IN, users.c.password_hash == bindparam("old_hash"))
    .values(pending_email=bindparam("new_email"))
    .returning(users.c.id, users.c.email, users.c.email_key)
    .cte("pending")
)
"""Stores the pending email; returns the caller's id and current email.

The token of a change is valid only while its email is the pending one. `id` is null if the password has
changed since it was checked.
"""

_dropped = (
    update(users)
    .where(users.c.id == CALLER_ID, IS_LET_IN)
    .values(pending_email=null())
    .returning(users.c.id)
    .cte("dropped")
)
_tokens_of_change = deletion(
    "tokens",
    mail_tokens,
    mail_tokens.c.user_id == CALLER_ID,
    mail_tokens.c.purpose == Kind.CHANGE.value,
    has_row(_dropped),
)
DROP_CHANGE = Statement(select(_dropped.c.id).add_cte(_tokens_of_change))

READ_TOKEN = WideStatement(select(mail_tokens).where(mail_tokens.c.digest == DIGEST, _is_valid))
"""Reads a valid token without spending it. The query reads all shards, because a token carries no user id."""

LOCK_USER = Statement(
    select(users.c.id, users.c.email, users.c.email_key, users.c.email_verified)
    .where(users.c.id == USER_ID)
    .with_for_update(of=users)
)

SPEND_TOKEN = Statement(
    update(mail_tokens)
    .where(_token, _is_valid)
    .values(used_at=func.coalesce(mail_tokens.c.used_at, moment_of(func.now())))
    .returning(mail_tokens.c.user_id)
)
"""Returns no row when the token is not valid. Of concurrent requests, one gets the row, except to verify."""


def secured(
    user_id: ColumnElement[str], *conditions: ColumnElement[bool], kept: Any = NO_SESSION, **values: Any
) -> tuple[CTE, CTE, CTE, CTE]:
    """Return a change of a user, and the ends of what could undo it: sessions, refresh and mail tokens.

    The sessions except `kept` are deleted, the refresh tokens of `kept` are voided, and all mail tokens are
    deleted. Mails that still wait in the outbox get no token, because `mail_voided_at` is later. An earlier
    statement of the same transaction must lock the user's row.
    """
    changed = (
        update(users)
        .where(users.c.id == user_id, *conditions)
        .values(mail_voided_at=moment_of(func.clock_timestamp()), **values)
        .returning(*PROFILE, users.c.email_key)
        .cte("changed")
    )
    tokens = deletion("mail_tokens_voided", mail_tokens, mail_tokens.c.user_id == user_id, has_row(changed))
    return changed, *void_sessions(user_id, changed, kept), tokens


_reset, *_ended_by_reset = secured(
    USER_ID,
    users.c.email == EMAIL,
    password_hash=bindparam("new_hash"),
    email_verified=or_(users.c.email_verified, bindparam("was_mailed", type_=Boolean)),
    pending_email=null(),
)
RESET_PASSWORD = Statement(select(_reset.c.id).add_cte(*_ended_by_reset))

_confirmed, *_ended_by_email = secured(
    USER_ID,
    users.c.pending_email == EMAIL,
    kept=SESSION_ID,
    email=EMAIL,
    email_key=EMAIL_KEY,
    email_verified=true(),
    pending_email=null(),
)
CONFIRM_EMAIL = Statement(select(_confirmed.c.id).add_cte(*_ended_by_email))

VERIFY_EMAIL = Statement(
    update(users)
    .where(users.c.id == USER_ID, users.c.email == EMAIL)
    .values(email_verified=true())
    .returning(users.c.id)
)
