"""The tables of accounts and sessions, with the limits of the API as constraints.

Keys and indexes start with `user_id`, because Citus distributes the rows by it (README, "Past one
machine"). A comment at each index without it names the query over all users that needs the index.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKeyConstraint,
    Index,
    SmallInteger,
    Table,
    Text,
    false,
    func,
    text,
)
from sqlmodel import Field, SQLModel

LOCAL = "local"
"""The issuer of users who registered at this service."""
EXTERNAL = "better-auth"
"""The issuer of all other users, for each kind of external token."""

HASH_COST = (
    "((substring(password_hash, "
    "'[$,=]([4-9]|0[4-9]|[12][0-9]|3[01])[$][./A-Za-z0-9]{22}[$]?[./A-Za-z0-9]{31}$'))::integer)"
)
"""The cost of a stored hash of either scheme, in SQL; null for a missing or malformed hash."""


NOW = {"server_default": func.now()}
FALSE = {"server_default": false()}
ZERO = {"server_default": text("0")}


class User(SQLModel, table=True):
    """A user, who owns tasks. `issuer` is the authority for the user's identity, and never changes."""

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
        # `HIGHEST_COST` reads this index after a failed sign-in.
        Index("users_password_cost", text(HASH_COST)),
    )

    id: str = Field(sa_type=Text, primary_key=True)
    issuer: str = Field(sa_type=Text)
    email: str | None = Field(sa_type=Text)
    email_key: str | None = Field(sa_type=Text)
    """The case-folded email of a local user, as in `emails`. Null for external users, who may share one."""
    email_verified: bool = Field(sa_column_kwargs=FALSE)
    pending_email: str | None = Field(sa_type=Text)
    """The new email of a change that is not confirmed yet."""
    disabled_at: datetime | None
    """The time when an operator disabled the user; null for an enabled user."""
    mail_voided_at: datetime | None
    """Mails requested before this time get no token, even while they wait in the outbox."""
    name: str | None = Field(sa_type=Text)
    password_hash: str | None = Field(sa_type=Text)
    created_at: datetime = Field(sa_column_kwargs=NOW)


class Email(SQLModel, table=True):
    """The email of a local user, unique over all users.

    The email has its own table, because Citus can enforce uniqueness only by the column that distributes
    the table. `users` is distributed by user, `emails` by email. Citus allows no foreign key between them.
    """

    __tablename__ = "emails"

    email_key: str = Field(sa_type=Text, primary_key=True)
    user_id: str = Field(sa_type=Text)


class Session(SQLModel, table=True):
    """One sign-in on one device. An access token is valid only while its session has a row."""

    __tablename__ = "sessions"
    # `EXPIRED_OWNERS` reads this index to find expired sessions of users who never return.
    __table_args__ = (Index("sessions_expires_at", "expires_at"),)

    user_id: str = Field(sa_type=Text, primary_key=True, foreign_key="users.id", ondelete="CASCADE")
    id: UUID = Field(primary_key=True)
    created_at: datetime = Field(sa_column_kwargs=NOW)
    last_used_at: datetime = Field(sa_column_kwargs=NOW)
    expires_at: datetime
    user_agent: str | None = Field(sa_type=Text)
    ip: str | None = Field(sa_type=Text)
    uses_cookie: bool = Field(sa_column_kwargs=FALSE)
    """True when the refresh token is in a cookie, which scripts cannot read."""
    refresh_generation: int = Field(sa_column_kwargs=ZERO)
    """The number of times that all refresh tokens were voided. Only tokens of this generation are valid."""


class RefreshToken(SQLModel, table=True):
    """A refresh token, stored as its SHA-256 alone. Spent tokens are kept, because their reuse must show."""

    __tablename__ = "refresh_tokens"
    __table_args__ = (
        ForeignKeyConstraint(
            ["user_id", "session_id"],
            ["sessions.user_id", "sessions.id"],
            name="refresh_tokens_session_fkey",
            ondelete="CASCADE",
        ),
        Index("refresh_tokens_by_session", "user_id", "session_id", "spent_at"),
        # The lookup of tokens issued before migration 0009 needs this index, because they carry no user id.
        Index("refresh_tokens_by_digest", "digest"),
    )

    user_id: str = Field(sa_type=Text, primary_key=True)
    digest: bytes = Field(primary_key=True)
    session_id: UUID
    created_at: datetime = Field(sa_column_kwargs=NOW)
    spent_at: datetime | None
    """The moment of the first use."""
    uses: int = Field(sa_type=SmallInteger, sa_column_kwargs=ZERO)
    generation: int = Field(sa_column_kwargs=ZERO)
    """The session's `refresh_generation` when the token was issued. It never changes."""


class KnownAddress(SQLModel, table=True):
    """An address from which a user has signed in. Failed sign-ins from other addresses do not lock it out."""

    __tablename__ = "known_addresses"
    # `COUNT_ACCOUNTS` reads this index.
    __table_args__ = (Index("known_addresses_by_address", "address", "last_used_at"),)

    user_id: str = Field(sa_type=Text, primary_key=True, foreign_key="users.id", ondelete="CASCADE")
    address: str = Field(sa_type=Text, primary_key=True)
    last_used_at: datetime = Field(sa_column_kwargs=NOW)


users: Table = SQLModel.metadata.tables["users"]
emails: Table = SQLModel.metadata.tables["emails"]
sessions: Table = SQLModel.metadata.tables["sessions"]
refresh_tokens: Table = SQLModel.metadata.tables["refresh_tokens"]
known_addresses: Table = SQLModel.metadata.tables["known_addresses"]
