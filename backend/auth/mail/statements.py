"""SQL statements of the routes on mail tokens and on the outbox, compiled once.

`backend/auth/sessions/statements.py` defines the lock order. A change of the outbox and of another table
takes two statements in one transaction, because Citus distributes the other table and not the outbox.
"""

from enum import StrEnum

from sqlalchemy import (
    ARRAY,
    CTE,
    Boolean,
    ColumnElement,
    LargeBinary,
    Text,
    Uuid,
    any_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    true,
    update,
)

from backend.auth.caller import CALLER_ID, IS_LET_IN, caller
from backend.auth.mail.models import mail_tokens, outbox
from backend.auth.models import users
from backend.auth.sessions.statements import USER_ID, has_row, void_sessions
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


_email = bindparam("email", type_=Text)
_email_key = bindparam("email_key", type_=Text)
_digest = bindparam("digest", type_=LargeBinary)
_is_theirs = mail_tokens.c.user_id == USER_ID
_is_valid = (mail_tokens.c.expires_at > func.now()) & mail_tokens.c.used_at.is_(None)

ENQUEUE = Statement(
    insert(outbox)
    .values(
        kind=bindparam("kind"),
        email=_email,
        email_key=_email_key,
        user_id=bindparam("user_id"),
        session_id=bindparam("session_id"),
    )
    .returning(outbox.c.id)
)


def _ask_for_change() -> Statement:
    new_email = bindparam("new_email", type_=Text)
    pending = (
        update(users)
        .where(users.c.id == CALLER_ID, IS_LET_IN, users.c.password_hash == bindparam("old_hash"))
        .values(pending_email=new_email)
        .returning(users.c.id, users.c.email, users.c.email_key)
        .cte("pending")
    )
    voided = (
        delete(mail_tokens)
        .where(
            mail_tokens.c.user_id == CALLER_ID,
            mail_tokens.c.purpose == Kind.CHANGE.value,
            mail_tokens.c.email != new_email,
            has_row(pending),
        )
        .returning(mail_tokens.c.digest)
        .cte("voided")
    )
    return Statement(select(pending).select_from(caller.outerjoin(pending, true())).add_cte(voided))


ASK_FOR_CHANGE = _ask_for_change()
"""Stores the pending email; returns the caller's id and current email.

`id` is null if the password has changed since it was checked.
"""


def _drop_change() -> Statement:
    dropped = (
        update(users)
        .where(users.c.id == CALLER_ID, IS_LET_IN)
        .values(pending_email=null())
        .returning(users.c.id)
        .cte("dropped")
    )
    tokens = (
        delete(mail_tokens)
        .where(
            mail_tokens.c.user_id == CALLER_ID, mail_tokens.c.purpose == Kind.CHANGE.value, has_row(dropped)
        )
        .returning(mail_tokens.c.digest)
        .cte("tokens")
    )
    return Statement(select(dropped.c.id).add_cte(tokens))


DROP_CHANGE = _drop_change()

READ_TOKEN = Statement(
    select(mail_tokens.c.email, mail_tokens.c.session_id, mail_tokens.c.purpose).where(
        _is_theirs,
        mail_tokens.c.digest == _digest,
        mail_tokens.c.purpose == any_(bindparam("purposes", type_=ARRAY(Text))),
        _is_valid,
    )
)
"""Reads a valid token without spending it."""

OWNER_OF_TOKEN = WideStatement(select(mail_tokens.c.user_id).where(mail_tokens.c.digest == _digest))
"""The user of a mailed token. The query reads all shards, because the token carries no user id."""

LOCK_USER = Statement(
    select(users.c.id, users.c.email, users.c.email_key)
    .where(users.c.id == USER_ID)
    .with_for_update(of=users)
)

SPEND_TOKEN = Statement(
    update(mail_tokens)
    .where(
        _is_theirs,
        mail_tokens.c.digest == _digest,
        mail_tokens.c.purpose == bindparam("purpose", type_=Text),
        _is_valid,
    )
    .values(used_at=func.now())
    .returning(mail_tokens.c.user_id)
)
"""Returns no row when the token is spent, expired or void. Of concurrent requests, one gets the row."""


MAIL_VOIDED = {"mail_voided_at": moment_of(func.clock_timestamp())}
"""Values for the user's row, set together with `void_mail_tokens`.

Mails that still wait in the outbox have no token yet. They get none, because `mail_voided_at` is later.
"""


def void_mail_tokens(user_id: ColumnElement[str], changed: CTE) -> CTE:
    """Return the deletion of all mail tokens of a user. Without a row in `changed` it deletes none."""
    return (
        delete(mail_tokens)
        .where(mail_tokens.c.user_id == user_id, has_row(changed))
        .returning(mail_tokens.c.digest)
        .cte("mail_tokens_voided")
    )


def _reset_password() -> Statement:
    changed = (
        update(users)
        .where(users.c.id == USER_ID, users.c.email == _email)
        .values(
            password_hash=bindparam("new_hash"),
            email_verified=or_(users.c.email_verified, bindparam("was_mailed", type_=Boolean)),
            pending_email=null(),
            **MAIL_VOIDED,
        )
        .returning(users.c.id)
        .cte("changed")
    )
    return Statement(
        select(changed.c.id).add_cte(
            *void_sessions(USER_ID, changed, cast(null(), Uuid)), void_mail_tokens(USER_ID, changed)
        )
    )


RESET_PASSWORD = _reset_password()


def _confirm_email() -> Statement:
    changed = (
        update(users)
        .where(users.c.id == USER_ID, users.c.pending_email == _email)
        .values(
            email=_email, email_key=_email_key, email_verified=true(), pending_email=null(), **MAIL_VOIDED
        )
        .returning(users.c.id)
        .cte("changed")
    )
    session = bindparam("session_id", type_=Uuid)
    return Statement(
        select(changed.c.id).add_cte(
            *void_sessions(USER_ID, changed, session), void_mail_tokens(USER_ID, changed)
        )
    )


CONFIRM_EMAIL = _confirm_email()


def _verify_email() -> Statement:
    is_good = or_(mail_tokens.c.expires_at > func.now(), mail_tokens.c.used_at.is_not(None))
    owner = (
        select(users.c.id, users.c.email_verified)
        .join(mail_tokens, _is_theirs & (mail_tokens.c.email == users.c.email))
        .where(
            users.c.id == USER_ID,
            mail_tokens.c.digest == _digest,
            mail_tokens.c.purpose == Kind.VERIFY.value,
            is_good,
        )
        .with_for_update(key_share=True, of=users)
        .cte("owner")
    )
    # While this statement waits for the user's row, a concurrent change may delete the token.
    spent = (
        update(mail_tokens)
        .where(_is_theirs, mail_tokens.c.digest == _digest, has_row(owner))
        .values(used_at=func.coalesce(mail_tokens.c.used_at, moment_of(func.now())))
        .returning(mail_tokens.c.user_id)
        .cte("spent")
    )
    verified = (
        update(users)
        .where(users.c.id == USER_ID, has_row(spent))
        .values(email_verified=true())
        .returning(users.c.id)
        .cte("verified")
    )
    return Statement(
        select(owner.c.id, owner.c.email_verified.label("was_verified")).join(spent, true()).add_cte(verified)
    )


VERIFY_EMAIL = _verify_email()
"""The user's id, and `was_verified` from before. No row when the token is not valid."""
