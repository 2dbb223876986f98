"""Statements of the routes, on mail tokens and on what goes into the outbox, compiled once.

Mail tokens are locked after the rows that `session_statements` names, and the outbox last.
"""

from enum import StrEnum
from typing import Any

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
    literal,
    null,
    or_,
    select,
    true,
    update,
)

from backend.auth.caller import caller
from backend.auth.mail.models import mail_tokens, outbox
from backend.auth.models import users
from backend.auth.sessions.statements import CALLER_ID, CALLER_SESSION, void_sessions
from backend.database import Statement


class Kind(StrEnum):
    """The kinds of mail; those of a link are also its token's purpose; an invitation's is a reset."""

    RESET = "reset"
    VERIFY = "verify"
    CHANGE = "change"
    EMAIL_TAKEN = "email_taken"
    CHANGE_REQUESTED = "change_requested"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105  # a kind of mail
    EMAIL_CHANGED = "email_changed"
    INVITATION = "invitation"
    RESET_BY_HAND = "reset_by_hand"
    """No mail, but the purpose of a link that an operator hands over: it verifies no address."""


_email = bindparam("email", type_=Text)
_email_key = bindparam("email_key", type_=Text)
_digest = bindparam("digest", type_=LargeBinary)
_user_id = bindparam("user_id", type_=Text)
_is_valid = (mail_tokens.c.expires_at > func.now()) & mail_tokens.c.used_at.is_(None)


def enqueue(
    kind: ColumnElement[Any], email: ColumnElement[Any], email_key: ColumnElement[Any], user_id: Any
) -> CTE:
    """Return the insertion of a mail for each row that its values are selected from, if mail can be sent."""
    values = select(kind, email, email_key, user_id).where(bindparam("sends_mail", type_=Boolean))
    return (
        insert(outbox)
        .from_select(["kind", "email", "email_key", "user_id"], values)
        .returning(outbox.c.id)
        .cte("mail")
    )


def _ask_for(kind: Kind) -> Statement:
    values = {"kind": kind.value, "email": _email, "email_key": _email_key}
    return Statement(insert(outbox).values(values).returning(outbox.c.id))


ASK_FOR_RESET = _ask_for(Kind.RESET)
ASK_FOR_VERIFICATION = _ask_for(Kind.VERIFY)


def _ask_for_change() -> Statement:
    new_email = bindparam("new_email", type_=Text)
    pending = (
        update(users)
        .where(users.c.id == CALLER_ID, users.c.password_hash == bindparam("old_hash"))
        .values(pending_email=new_email)
        .returning(users.c.id, users.c.email, users.c.email_key)
        .cte("pending")
    )
    voided = (
        delete(mail_tokens)
        .where(
            mail_tokens.c.user_id == pending.c.id,
            mail_tokens.c.purpose == Kind.CHANGE.value,
            mail_tokens.c.email != new_email,
        )
        .returning(mail_tokens.c.digest)
        .cte("voided")
    )
    new_key = bindparam("new_email_key", type_=Text)
    values = select(literal(Kind.CHANGE.value, Text), new_email, new_key, pending.c.id, CALLER_SESSION)
    link = (
        insert(outbox)
        .from_select(["kind", "email", "email_key", "user_id", "session_id"], values)
        .returning(outbox.c.id)
        .cte("link")
    )
    notice = enqueue(literal(Kind.CHANGE_REQUESTED.value), pending.c.email, pending.c.email_key, pending.c.id)
    return Statement(
        select(pending.c.id).select_from(caller.outerjoin(pending, true())).add_cte(voided, link, notice)
    )


ASK_FOR_CHANGE = _ask_for_change()
"""The caller's row, whose `id` is null if the password has changed meanwhile."""


def _drop_change() -> Statement:
    dropped = (
        update(users)
        .where(users.c.id == CALLER_ID)
        .values(pending_email=null())
        .returning(users.c.id)
        .cte("dropped")
    )
    tokens = (
        delete(mail_tokens)
        .where(mail_tokens.c.user_id == dropped.c.id, mail_tokens.c.purpose == Kind.CHANGE.value)
        .returning(mail_tokens.c.digest)
        .cte("tokens")
    )
    return Statement(select(dropped.c.id).add_cte(tokens))


DROP_CHANGE = _drop_change()

READ_TOKEN = Statement(
    select(mail_tokens.c.user_id, mail_tokens.c.email, mail_tokens.c.session_id, mail_tokens.c.purpose).where(
        mail_tokens.c.digest == _digest,
        mail_tokens.c.purpose == any_(bindparam("purposes", type_=ARRAY(Text))),
        _is_valid,
    )
)
"""Whose valid token this is, before anything is spent."""

LOCK_USER = Statement(select(users.c.id).where(users.c.id == _user_id).with_for_update(of=users))

SPEND_TOKEN = Statement(
    update(mail_tokens)
    .where(
        mail_tokens.c.digest == _digest, mail_tokens.c.purpose == bindparam("purpose", type_=Text), _is_valid
    )
    .values(used_at=func.now())
    .returning(mail_tokens.c.user_id)
)
"""No row when the token is spent, expired or void; of many at once one gets the row."""


MAIL_VOIDED = {"mail_voided_at": func.clock_timestamp()}
"""What a change of a user's row sets beside `void_mail_tokens`, which can't see mails that still wait."""


def void_mail_tokens(changed: CTE) -> CTE:
    """Return the end of all mail tokens of the users in `changed`."""
    return (
        delete(mail_tokens)
        .where(mail_tokens.c.user_id == changed.c.id)
        .returning(mail_tokens.c.digest)
        .cte("mail_tokens_voided")
    )


def _reset_password() -> Statement:
    changed = (
        update(users)
        .where(users.c.id == _user_id, users.c.email == _email)
        .values(
            password_hash=bindparam("new_hash"),
            email_verified=or_(users.c.email_verified, bindparam("was_mailed", type_=Boolean)),
            pending_email=null(),
            **MAIL_VOIDED,
        )
        .returning(users.c.id, users.c.email, users.c.email_key)
        .cte("changed")
    )
    notice = enqueue(literal(Kind.PASSWORD_CHANGED.value), changed.c.email, changed.c.email_key, changed.c.id)
    return Statement(
        select(changed.c.id).add_cte(
            *void_sessions(changed, cast(null(), Uuid)), void_mail_tokens(changed), notice
        )
    )


RESET_PASSWORD = _reset_password()


def _confirm_email() -> Statement:
    old = select(users.c.id, users.c.email, users.c.email_key).where(users.c.id == _user_id).cte("old")
    changed = (
        update(users)
        .where(users.c.id == old.c.id, users.c.pending_email == _email)
        .values(
            email=_email,
            email_key=_email_key,
            email_verified=true(),
            pending_email=null(),
            **MAIL_VOIDED,
        )
        .returning(users.c.id)
        .cte("changed")
    )
    both = select(changed.c.id, old.c.email, old.c.email_key).join(old, old.c.id == changed.c.id).cte("both")
    notice = enqueue(literal(Kind.EMAIL_CHANGED.value), both.c.email, both.c.email_key, both.c.id)
    session = bindparam("session_id", type_=Uuid)
    return Statement(
        select(changed.c.id).add_cte(*void_sessions(changed, session), void_mail_tokens(changed), notice)
    )


CONFIRM_EMAIL = _confirm_email()


def _verify_email() -> Statement:
    is_good = or_(mail_tokens.c.expires_at > func.now(), mail_tokens.c.used_at.is_not(None))
    owner = (
        select(users.c.id, users.c.email_verified)
        .join(mail_tokens, (mail_tokens.c.user_id == users.c.id) & (mail_tokens.c.email == users.c.email))
        .where(mail_tokens.c.digest == _digest, mail_tokens.c.purpose == Kind.VERIFY.value, is_good)
        .with_for_update(key_share=True, of=users)
        .cte("owner")
    )
    # A change that voided the token while this waited for the user's row leaves none to spend.
    spent = (
        update(mail_tokens)
        .where(mail_tokens.c.digest == _digest, mail_tokens.c.user_id == owner.c.id)
        .values(used_at=func.coalesce(mail_tokens.c.used_at, func.now()))
        .returning(mail_tokens.c.user_id)
        .cte("spent")
    )
    verified = (
        update(users)
        .where(users.c.id == spent.c.user_id)
        .values(email_verified=true())
        .returning(users.c.id)
        .cte("verified")
    )
    return Statement(
        select(owner.c.id, owner.c.email_verified.label("was_verified"))
        .join(spent, spent.c.user_id == owner.c.id)
        .add_cte(verified)
    )


VERIFY_EMAIL = _verify_email()
"""The user, and whether the address was verified before; no row when the token is not valid."""
