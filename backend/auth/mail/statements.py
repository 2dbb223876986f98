"""Statements on the outbox and on mail tokens, compiled once.

Mail tokens are locked after the rows that `session_statements` names, and the outbox last.
"""

from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    Interval,
    LargeBinary,
    Select,
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
from backend.auth.models import LOCAL, users
from backend.auth.sessions.statements import CALLER_ID, CALLER_SESSION, ago, void_sessions
from backend.database import Statement


class Kind(StrEnum):
    """The kinds of mail; those of a link are also the purposes of its token."""

    RESET = "reset"
    VERIFY = "verify"
    CHANGE = "change"
    EMAIL_TAKEN = "email_taken"
    CHANGE_REQUESTED = "change_requested"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105  # a kind of mail
    EMAIL_CHANGED = "email_changed"
    RESET_BY_HAND = "reset_by_hand"
    """No mail, but the purpose of a link that an operator hands over: it verifies no address."""


LIFETIMES = {
    Kind.RESET: timedelta(minutes=30),
    Kind.RESET_BY_HAND: timedelta(minutes=30),
    Kind.VERIFY: timedelta(hours=24),
    Kind.CHANGE: timedelta(hours=24),
}
REPEATED_AFTER = timedelta(seconds=60)
"""A mail of the same kind to the same address within this time is dropped."""
KEPT_FOR = timedelta(hours=1)
"""A row that is done is pruned after this time."""
LEASE = timedelta(seconds=60)
"""A row that a process has claimed is due again after this time, in case the process died."""
CLAIMED_AT_ONCE = 20

_repeated_after = literal(REPEATED_AFTER, Interval)
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


CLAIM = Statement(
    update(outbox)
    .where(
        outbox.c.id.in_(
            select(outbox.c.id)
            .where(outbox.c.done_at.is_(None), outbox.c.due_at <= func.now())
            .order_by(outbox.c.due_at)
            .limit(literal(CLAIMED_AT_ONCE))
            .with_for_update(skip_locked=True)
        )
    )
    .values(attempts=outbox.c.attempts + 1, due_at=func.now() + literal(LEASE, Interval))
    .returning(outbox)
)
"""Mails that are due, which no other process gets before `LEASE` has passed."""

NEXT_DUE = Statement(
    select(func.extract("epoch", func.min(outbox.c.due_at) - func.now()).label("seconds")).where(
        outbox.c.done_at.is_(None)
    )
)
"""Seconds until the next mail is due; null where none waits."""

IS_REPEATED = Statement(
    select(literal(1)).where(
        select(outbox.c.id)
        .where(
            outbox.c.email_key == _email_key,
            outbox.c.kind == bindparam("kind", type_=Text),
            outbox.c.created_at > bindparam("created_at", type_=DateTime(timezone=True)) - _repeated_after,
            outbox.c.id < bindparam("id", type_=BigInteger),
            ~outbox.c.is_dropped,
        )
        .exists()
    )
)
"""A row when an earlier mail of the same kind went to the same address within `REPEATED_AFTER`."""


def _finish(*, is_dropped: bool) -> Statement:
    done = (
        update(outbox)
        .where(outbox.c.id == bindparam("id", type_=BigInteger))
        .values(done_at=func.now(), is_dropped=is_dropped)
        .returning(outbox.c.id)
        .cte("done")
    )
    old = (
        select(outbox.c.id)
        .where(outbox.c.done_at < ago(KEPT_FOR))
        .limit(literal(CLAIMED_AT_ONCE))
        .with_for_update(skip_locked=True)
    )
    pruned = delete(outbox).where(outbox.c.id.in_(old)).returning(outbox.c.id).cte("pruned")
    return Statement(select(done).add_cte(pruned))


FINISH = _finish(is_dropped=False)
DROP = _finish(is_dropped=True)

POSTPONE = Statement(
    update(outbox)
    .where(outbox.c.id == bindparam("id", type_=BigInteger))
    .values(due_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("seconds", type_=Integer)))
    .returning(outbox.c.id)
)


def _token_for(kind: Kind, owner: Select[Any]) -> Statement:
    # Locked, so that a change which voids mail tokens at the same moment finds this one, or this one it.
    user = owner.with_for_update(key_share=True, of=users).cte("owner")
    expired = (
        delete(mail_tokens)
        .where(
            mail_tokens.c.user_id == user.c.id,
            mail_tokens.c.expires_at <= func.now(),
            mail_tokens.c.used_at.is_(None),
        )
        .returning(mail_tokens.c.digest)
        .cte("expired")
    )
    values = select(
        _digest,
        user.c.id,
        literal(kind.value, Text),
        user.c.email,
        user.c.session_id,
        func.now() + literal(LIFETIMES[kind], Interval),
    )
    token = insert(mail_tokens).from_select(
        ["digest", "user_id", "purpose", "email", "session_id", "expires_at"], values
    )
    return Statement(token.returning(mail_tokens.c.user_id, mail_tokens.c.email).add_cte(expired))


_no_session: ColumnElement[Any] = cast(null(), Uuid).label("session_id")
_by_email = select(users.c.id, users.c.email, _no_session).where(
    users.c.email_key == _email_key, users.c.issuer == LOCAL, users.c.disabled_at.is_(None)
)
_others = users.alias("others")

NEW_TOKEN = {
    Kind.RESET: _token_for(Kind.RESET, _by_email),
    Kind.RESET_BY_HAND: _token_for(Kind.RESET_BY_HAND, _by_email),
    Kind.VERIFY: _token_for(Kind.VERIFY, _by_email.where(~users.c.email_verified)),
    Kind.CHANGE: _token_for(
        Kind.CHANGE,
        select(
            users.c.id, _email.label("email"), bindparam("session_id", type_=Uuid).label("session_id")
        ).where(
            users.c.id == _user_id,
            users.c.pending_email == _email,
            users.c.disabled_at.is_(None),
            ~select(_others.c.id)
            .where(_others.c.email_key == _email_key, _others.c.id != users.c.id)
            .exists(),
        ),
    ),
}
"""A token for the user whom the mail concerns; no row when nobody waits for such a mail.

The user's expired tokens go; used ones stay, because a link to verify is answered the same way again.
"""

HAS_ACCOUNT = Statement(
    select(users.c.id.label("user_id"), users.c.email).where(
        users.c.email_key == _email_key, users.c.issuer == LOCAL
    )
)
