"""The tables of mail tokens and of the outbox."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    Uuid,
    false,
    func,
    text,
)
from sqlmodel import Field, SQLModel


def _now() -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=False, server_default=func.now())


class MailToken(SQLModel, table=True):
    """The token of a link, stored as its SHA-256 alone. It has one purpose, one user and one address."""

    __tablename__ = "mail_tokens"
    # `OWNER_OF_TOKEN` reads this index, because the token of a mailed link carries no user id.
    __table_args__ = (Index("mail_tokens_by_digest", "digest"),)

    user_id: str = Field(
        sa_column=Column(Text, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, nullable=False)
    )
    digest: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    purpose: str = Field(sa_column=Column(Text, nullable=False))
    email: str = Field(sa_column=Column(Text, nullable=False))
    session_id: UUID | None = Field(sa_column=Column(Uuid))
    """The session that requested a change of email. The change does not end it."""
    created_at: datetime = Field(sa_column=_now())
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    used_at: datetime | None = Field(sa_column=Column(DateTime(timezone=True)))


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

    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    email: str = Field(sa_column=Column(Text, nullable=False))
    email_key: str = Field(sa_column=Column(Text, nullable=False))
    user_id: str | None = Field(sa_column=Column(Text))
    """The user of an email change or of a notice. The sender finds the user of other mails by the email."""
    session_id: UUID | None = Field(sa_column=Column(Uuid))
    attempts: int = Field(sa_column=Column(SmallInteger, nullable=False, server_default=text("0")))
    created_at: datetime = Field(sa_column=_now())
    due_at: datetime = Field(sa_column=_now())
    done_at: datetime | None = Field(sa_column=Column(DateTime(timezone=True)))
    is_dropped: bool = Field(sa_column=Column(Boolean, nullable=False, server_default=false()))
    """True when no mail was sent: the address had no such account, or the same mail within a minute."""


mail_tokens: Table = SQLModel.metadata.tables["mail_tokens"]
outbox: Table = SQLModel.metadata.tables["outbox"]
