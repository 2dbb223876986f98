"""The tables of accounts and sessions, with the limits of the API as constraints.

`user_id` comes first in each key and index, because Citus spreads the rows of all tables by it (README,
"Past one machine"). An index without it says which look over all users needs it.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
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

LOCAL = "local"
"""The issuer of the users who registered here."""
EXTERNAL = "better-auth"
"""The issuer of all others, whichever kind of token they come with."""

HASH_COST = (
    "((substring(password_hash, "
    "'[$,=]([4-9]|0[4-9]|[12][0-9]|3[01])[$][./A-Za-z0-9]{22}[$]?[./A-Za-z0-9]{31}$'))::integer)"
)
"""The cost of a hash of either scheme, in SQL; null where there is none that could be checked."""


def _created_at() -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=False, server_default=func.now())


class User(SQLModel, table=True):
    """Somebody who keeps tasks; `issuer` says who vouches for them, and never changes."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("char_length(id) BETWEEN 1 AND 255", name="users_id_length"),
        CheckConstraint("char_length(email) <= 254", name="users_email_length"),
        CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="users_name_length"),
        CheckConstraint(
            f"issuer <> '{LOCAL}' OR "
            "(email IS NOT NULL AND email_key IS NOT NULL AND password_hash IS NOT NULL)",
            name="users_local_complete",
        ),
        # For the highest cost of all hashes, which a failed sign-in asks for.
        Index("users_password_cost", text(HASH_COST)),
    )

    id: str = Field(sa_column=Column(Text, primary_key=True))
    issuer: str = Field(sa_column=Column(Text, nullable=False))
    email: str | None = Field(sa_column=Column(Text))
    email_key: str | None = Field(sa_column=Column(Text))
    """The case-folded email of a local user, as in `emails`; null for others, whose emails may repeat."""
    email_verified: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=false())
    )
    pending_email: str | None = Field(sa_column=Column(Text))
    """The email that a change, not confirmed yet, asks for."""
    disabled_at: datetime | None = Field(sa_column=Column(DateTime(timezone=True)))
    """Since when an operator refuses this user; null otherwise."""
    mail_voided_at: datetime | None = Field(sa_column=Column(DateTime(timezone=True)))
    """A mail that was asked for earlier gets no token any more, also when it still waits to be sent."""
    name: str | None = Field(sa_column=Column(Text))
    password_hash: str | None = Field(sa_column=Column(Text))
    created_at: datetime = Field(sa_column=_created_at())


class Email(SQLModel, table=True):
    """The one local user who has an email.

    A table of its own, because uniqueness over all users can't be an index of `users`: that is spread by
    user, and this by email. Citus allows no foreign key between the two.
    """

    __tablename__ = "emails"

    email_key: str = Field(sa_column=Column(Text, primary_key=True))
    user_id: str = Field(sa_column=Column(Text, nullable=False))


class Session(SQLModel, table=True):
    """One sign-in on one device; no row, no access."""

    __tablename__ = "sessions"
    # For the sweep of sessions whose owners never return.
    __table_args__ = (Index("sessions_expires_at", "expires_at"),)

    user_id: str = Field(
        sa_column=Column(Text, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, nullable=False)
    )
    id: UUID = Field(sa_column=Column(Uuid, primary_key=True))
    created_at: datetime = Field(sa_column=_created_at())
    last_used_at: datetime = Field(sa_column=_created_at())
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    user_agent: str | None = Field(sa_column=Column(Text))
    ip: str | None = Field(sa_column=Column(Text))
    uses_cookie: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=false())
    )
    """Whether its refresh token goes into a cookie, out of the reach of scripts."""
    refresh_generation: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    """Counts how often all refresh tokens of the session were voided; only those of this count are good."""


class RefreshToken(SQLModel, table=True):
    """A refresh token, known by its SHA-256 alone; a spent one is kept so that its reuse is noticed."""

    __tablename__ = "refresh_tokens"
    __table_args__ = (
        ForeignKeyConstraint(
            ["user_id", "session_id"],
            ["sessions.user_id", "sessions.id"],
            name="refresh_tokens_session_fkey",
            ondelete="CASCADE",
        ),
        Index("refresh_tokens_by_session", "user_id", "session_id", "spent_at"),
        # For tokens that don't say whose they are: those issued before migration 0009.
        Index("refresh_tokens_by_digest", "digest"),
    )

    user_id: str = Field(sa_column=Column(Text, primary_key=True))
    digest: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    session_id: UUID = Field(sa_column=Column(Uuid, nullable=False))
    created_at: datetime = Field(sa_column=_created_at())
    spent_at: datetime | None = Field(sa_column=Column(DateTime(timezone=True)))
    """The moment of the first use."""
    uses: int = Field(sa_column=Column(SmallInteger, nullable=False, server_default=text("0")))
    generation: int = Field(sa_column=Column(Integer, nullable=False, server_default=text("0")))
    """The session's `refresh_generation` when the token was issued; it never changes."""


class KnownAddress(SQLModel, table=True):
    """An address from which a user has signed in; failed sign-ins elsewhere do not lock it out."""

    __tablename__ = "known_addresses"
    # For the number of accounts that share an address.
    __table_args__ = (Index("known_addresses_by_address", "address", "last_used_at"),)

    user_id: str = Field(
        sa_column=Column(Text, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, nullable=False)
    )
    address: str = Field(sa_column=Column(Text, primary_key=True))
    last_used_at: datetime = Field(sa_column=_created_at())


users: Table = SQLModel.metadata.tables["users"]
emails: Table = SQLModel.metadata.tables["emails"]
sessions: Table = SQLModel.metadata.tables["sessions"]
refresh_tokens: Table = SQLModel.metadata.tables["refresh_tokens"]
known_addresses: Table = SQLModel.metadata.tables["known_addresses"]
