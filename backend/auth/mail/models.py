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
    """The token of a link, known by its SHA-256 alone; for one purpose, one user and one address."""

    __tablename__ = "mail_tokens"
    # For the owner of a mailed link, whose token doesn't say whose it is.
    __table_args__ = (Index("mail_tokens_by_digest", "digest"),)

    user_id: str = Field(
        sa_column=Column(Text, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, nullable=False)
    )
    digest: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    purpose: str = Field(sa_column=Column(Text, nullable=False))
    email: str = Field(sa_column=Column(Text, nullable=False))
    session_id: UUID | None = Field(sa_column=Column(Uuid))
    """The session that asked for a change of email; it goes on afterwards."""
    created_at: datetime = Field(sa_column=_now())
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    used_at: datetime | None = Field(sa_column=Column(DateTime(timezone=True)))


class OutboxMail(SQLModel, table=True):
    """A mail to be sent, kept until the server has accepted it; then for a while, against repetition.

    It is no user's, because an address without an account has its rows too, so Citus doesn't spread it.
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
    """The user whom a request with an access token concerns; the others are found by their email."""
    session_id: UUID | None = Field(sa_column=Column(Uuid))
    attempts: int = Field(sa_column=Column(SmallInteger, nullable=False, server_default=text("0")))
    created_at: datetime = Field(sa_column=_now())
    due_at: datetime = Field(sa_column=_now())
    done_at: datetime | None = Field(sa_column=Column(DateTime(timezone=True)))
    is_dropped: bool = Field(sa_column=Column(Boolean, nullable=False, server_default=false()))
    """No mail went out: the address has no such account, or had the same mail within a minute."""


mail_tokens: Table = SQLModel.metadata.tables["mail_tokens"]
outbox: Table = SQLModel.metadata.tables["outbox"]
