"""SQL statements that send the outbox, compiled once: they claim mails, add link tokens and finish mails."""

from datetime import timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Integer,
    Interval,
    LargeBinary,
    Select,
    Text,
    Uuid,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    update,
)

from backend.auth.mail.models import mail_tokens, outbox
from backend.auth.mail.statements import Kind
from backend.auth.models import LOCAL, users
from backend.auth.sessions.statements import USER_ID, ago, has_row
from backend.database import Statement

LIFETIMES = {
    Kind.RESET: timedelta(minutes=30),
    Kind.RESET_BY_HAND: timedelta(minutes=30),
    Kind.VERIFY: timedelta(hours=24),
    Kind.CHANGE: timedelta(hours=24),
}
REPEATED_AFTER = timedelta(seconds=60)
"""A mail of the same kind to the same address within this time is dropped."""
KEPT_FOR = timedelta(hours=1)
"""A finished row is deleted after this time."""
LEASE = timedelta(seconds=60)
"""A claimed row is due again after this time, because its process may have died."""
CLAIMED_AT_ONCE = 20

_repeated_after = literal(REPEATED_AFTER, Interval)
_email = bindparam("email", type_=Text)
_email_key = bindparam("email_key", type_=Text)
_digest = bindparam("digest", type_=LargeBinary)
_created_at = bindparam("created_at", type_=DateTime(timezone=True))

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
"""Claims due mails. No other process claims them before `LEASE` has passed."""

NEXT_DUE = Statement(
    select(func.extract("epoch", func.min(outbox.c.due_at) - func.now()).label("seconds")).where(
        outbox.c.done_at.is_(None)
    )
)
"""Seconds until the next mail is due; null when no mail waits."""

IS_REPEATED = Statement(
    select(literal(1)).where(
        select(outbox.c.id)
        .where(
            outbox.c.email_key == _email_key,
            outbox.c.kind == bindparam("kind", type_=Text),
            outbox.c.created_at > _created_at - _repeated_after,
            outbox.c.id < bindparam("id", type_=BigInteger),
            ~outbox.c.is_dropped,
        )
        .exists()
    )
)
"""Returns a row when the outbox has an earlier mail of this kind to this address within `REPEATED_AFTER`.

Dropped mails do not count.
"""


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
    # The row lock orders this statement and a concurrent change that voids mail tokens.
    # Either the change deletes the new token, or this statement sees the change.
    asked_at = func.coalesce(_created_at, func.now())
    owner = owner.where(or_(users.c.mail_voided_at.is_(None), users.c.mail_voided_at < asked_at))
    user = owner.with_for_update(key_share=True, of=users).cte("owner")
    expired = (
        delete(mail_tokens)
        .where(
            mail_tokens.c.user_id == USER_ID,
            mail_tokens.c.expires_at <= func.now(),
            mail_tokens.c.used_at.is_(None),
            has_row(user),
        )
        .returning(mail_tokens.c.digest)
        .cte("expired")
    )
    values = select(
        USER_ID,
        _digest,
        literal(kind.value, Text),
        user.c.email,
        user.c.session_id,
        func.now() + literal(LIFETIMES[kind], Interval),
    )
    token = insert(mail_tokens).from_select(
        ["user_id", "digest", "purpose", "email", "session_id", "expires_at"], values
    )
    return Statement(token.returning(mail_tokens.c.email).add_cte(expired))


_no_session: ColumnElement[Any] = cast(null(), Uuid).label("session_id")
_is_enabled = (users.c.id == USER_ID) & users.c.disabled_at.is_(None)
_by_email = select(users.c.id, users.c.email, _no_session).where(
    _is_enabled, users.c.email_key == _email_key, users.c.issuer == LOCAL
)

NEW_TOKEN = {
    Kind.RESET: _token_for(Kind.RESET, _by_email),
    Kind.RESET_BY_HAND: _token_for(Kind.RESET_BY_HAND, _by_email),
    Kind.VERIFY: _token_for(Kind.VERIFY, _by_email.where(~users.c.email_verified)),
    Kind.CHANGE: _token_for(
        Kind.CHANGE,
        select(
            users.c.id, _email.label("email"), bindparam("session_id", type_=Uuid).label("session_id")
        ).where(_is_enabled, users.c.pending_email == _email),
    ),
}
"""Inserts a token for the user of a mail; returns no row when the user may not have such a mail any more.

`created_at` is the time of the mail's request, or null for a link without such a request.
The statement deletes the user's expired tokens. Used tokens stay, because a verification link that is used
again gets the same response.
"""

HAS_ACCOUNT = Statement(
    select(users.c.email).where(
        users.c.id == USER_ID, users.c.email_key == _email_key, users.c.issuer == LOCAL
    )
)
