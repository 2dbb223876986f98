"""SQL statements that send the outbox, compiled once: they claim mails, add link tokens and finish mails."""

from datetime import timedelta

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Interval,
    Text,
    bindparam,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from backend.auth.mail.models import mail_tokens, outbox
from backend.auth.mail.statements import DIGEST, EMAIL, EMAIL_KEY, RESETS, Kind
from backend.auth.models import users
from backend.auth.sessions.statements import SESSION_ID, USER_ID, ago, deletion, has_row
from backend.database import Statement

LIFETIMES = {
    **dict.fromkeys(RESETS, timedelta(minutes=30)),
    Kind.VERIFY: timedelta(hours=24),
    Kind.CHANGE: timedelta(hours=24),
}
REPEATED_AFTER = timedelta(seconds=60)
"""A mail of the same kind to the same address within this time is dropped."""
KEPT_FOR = timedelta(hours=1)
"""A finished row is deleted after this time."""
FIRST_PAUSE = timedelta(seconds=15)
"""The second attempt begins so long after the first, which takes at most `SEND_SECONDS`."""
CLAIMED_AT_ONCE = 20

_id = bindparam("id", type_=BigInteger)
_created_at = bindparam("created_at", type_=DateTime(timezone=True))
_first_pause = bindparam("first_pause", type_=Interval)
_times = case({0: 1, 1: 2, 2: 8}, value=outbox.c.attempts, else_=40)  # 15 s, 30 s, 2 min, 10 min
_pause = _first_pause.op("*", return_type=Interval())(_times)

_earlier = outbox.alias("earlier")
_is_repeated = (
    select(_earlier.c.id)
    .where(
        _earlier.c.email_key == outbox.c.email_key,
        _earlier.c.kind == outbox.c.kind,
        _earlier.c.created_at > outbox.c.created_at - literal(REPEATED_AFTER, Interval),
        _earlier.c.id < outbox.c.id,
        ~_earlier.c.is_dropped,
    )
    .exists()
)
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
    .values(attempts=outbox.c.attempts + 1, due_at=func.now() + _pause)
    .returning(outbox, _is_repeated.label("is_repeated"))
)
"""Claims due mails, and sets the time of their next attempts.

That is after `first_pause`, then after 2, 8 and 40 times as long; it counts if this attempt fails or its
process dies. `is_repeated` tells whether an earlier mail of this kind went to this address within
`REPEATED_AFTER`; dropped mails do not count.
"""

NEXT_DUE = Statement(
    select(func.extract("epoch", func.min(outbox.c.due_at) - func.now()).label("seconds")).where(
        outbox.c.done_at.is_(None)
    )
)
"""Seconds until the next mail is due; null when no mail waits."""

_done = (
    update(outbox)
    .where(outbox.c.id == _id)
    .values(done_at=func.now(), is_dropped=bindparam("is_dropped"))
    .returning(outbox.c.id)
    .cte("done")
)
_old = (
    select(outbox.c.id)
    .where(outbox.c.done_at < ago(KEPT_FOR))
    .limit(literal(CLAIMED_AT_ONCE))
    .with_for_update(skip_locked=True)
)
FINISH = Statement(select(_done).add_cte(deletion("pruned", outbox, outbox.c.id.in_(_old))))


def _new_token(
    kind: Kind, *conditions: ColumnElement[bool], email: ColumnElement[str | None] = users.c.email
) -> Statement:
    asked_at = func.coalesce(_created_at, func.now())
    # The row lock orders this statement and a concurrent change that voids mail tokens.
    # Either the change deletes the new token, or this statement sees the change.
    user = (
        select(email.label("email"))
        .where(
            users.c.id == USER_ID,
            users.c.disabled_at.is_(None),
            or_(users.c.mail_voided_at.is_(None), users.c.mail_voided_at < asked_at),
            *conditions,
        )
        .with_for_update(key_share=True, of=users)
        .cte("owner")
    )
    expired = deletion(
        "expired",
        mail_tokens,
        mail_tokens.c.user_id == USER_ID,
        mail_tokens.c.expires_at <= func.now(),
        mail_tokens.c.used_at.is_(None),
        has_row(user),
    )
    expires_at = func.now() + literal(LIFETIMES[kind], Interval)
    values = select(USER_ID, DIGEST, literal(kind.value, Text), user.c.email, SESSION_ID, expires_at)
    token = insert(mail_tokens).from_select(
        ["user_id", "digest", "purpose", "email", "session_id", "expires_at"], values
    )
    return Statement(token.returning(mail_tokens.c.email).add_cte(expired))


_has_email = users.c.email_key == EMAIL_KEY

RECIPIENT = {
    **{kind: _new_token(kind, _has_email) for kind in RESETS},
    Kind.VERIFY: _new_token(Kind.VERIFY, _has_email, ~users.c.email_verified),
    Kind.CHANGE: _new_token(Kind.CHANGE, users.c.pending_email == EMAIL, email=users.c.pending_email),
    Kind.EMAIL_TAKEN: Statement(select(users.c.email).where(users.c.id == USER_ID, _has_email)),
}
"""Returns the email of a mail's recipient; no row when the user may not have such a mail any more.

The statement for a mail with a link inserts the link's token. `created_at` is the time of the mail's
request, or null for a link without such a request. The statement deletes the user's expired tokens. Used
tokens stay, because a verification link that is used again gets the same response.
"""
