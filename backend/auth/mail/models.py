"""The tables of mail tokens and of the outbox."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Identity, Index, SmallInteger, Table, Text, text
from sqlmodel import Field, SQLModel

from backend.auth.models import FALSE, NOW, ZERO


class MailToken(SQLModel, table=True):
    """The token of a link, stored as its SHA-256 alone. It has one purpose, one user and one address."""

    __tablename__ = "mail_tokens"
    # `READ_TOKEN` reads this index, because the token of a mailed link carries no user id.
    __table_args__ = (Index("mail_tokens_by_digest", "digest"),)

    user_id: str = Field(sa_type=Text, primary_key=True, foreign_key="users.id", ondelete="CASCADE")
    digest: bytes = Field(primary_key=True)
    purpose: str = Field(sa_type=Text)
    email: str = Field(sa_type=Text)
    session_id: UUID | None
    """The session that requested a change of email. The change does not end it."""
    created_at: datetime = Field(sa_column_kwargs=NOW)
    expires_at: datetime
    used_at: datetime | None


class OutboxMail(SQLModel, table=True):
    """A mail in the outbox, kept until a mail server has accepted it.

    The row then stays for a while, because it suppresses repeated mails.
    Citus does not distribute this table, because rows for addresses without an account have no user.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        Index("outbox_due_at", "due_at", postgresql_where=text("done_at IS NULL")),
        Index("outbox_email_key", "email_key", "kind", "created_at"),
    )

    id: int = Field(sa_type=BigInteger, sa_column_args=[Identity(always=True)], primary_key=True)
    kind: str = Field(sa_type=Text)
    email: str = Field(sa_type=Text)
    email_key: str = Field(sa_type=Text)
    user_id: str | None = Field(sa_type=Text)
    """The user of an email change or of a notice. The sender finds the user of other mails by the email."""
    session_id: UUID | None
    attempts: int = Field(sa_type=SmallInteger, sa_column_kwargs=ZERO)
    created_at: datetime = Field(sa_column_kwargs=NOW)
    due_at: datetime = Field(sa_column_kwargs=NOW)
    done_at: datetime | None
    is_dropped: bool = Field(sa_column_kwargs=FALSE)
    """True when no mail was sent: the address had no such account, or the same mail within a minute."""


mail_tokens: Table = SQLModel.metadata.tables["mail_tokens"]
outbox: Table = SQLModel.metadata.tables["outbox"]
