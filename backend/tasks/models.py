"""The table of tasks, with the limits of the API as constraints.

`user_id` comes first in its key and its indexes, because Citus spreads the rows by it (README, "Past one
machine").
"""

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    Table,
    Text,
    false,
    func,
    text,
)
from sqlmodel import Field, SQLModel


def _now() -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=False, server_default=func.now())


class Task(SQLModel, table=True):
    """Something to be done by the one user who owns it."""

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint("char_length(title) BETWEEN 1 AND 200", name="tasks_title_length"),
        CheckConstraint("char_length(description) <= 1000", name="tasks_description_length"),
        # For the look that tells another user's task from none.
        Index("tasks_by_id", "id"),
        Index("tasks_by_created", "user_id", "created_at", "id"),
        Index("tasks_by_status_created", "user_id", "completed", "created_at", "id"),
        Index("tasks_by_title", "user_id", "title_key", "id"),
        Index("tasks_by_status_title", "user_id", "completed", "title_key", "id"),
        Index(
            "tasks_by_idempotency_key",
            "user_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
    )

    user_id: str = Field(
        sa_column=Column(Text, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, nullable=False)
    )
    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    """Unique over all users."""
    title: str = Field(sa_column=Column(Text, nullable=False))
    title_key: str = Field(sa_column=Column(Text(collation="C"), nullable=False))
    """The case-folded title: ordered by code point, it sorts the same whatever the database's locale."""
    description: str | None = Field(sa_column=Column(Text))
    completed: bool = Field(sa_column=Column(Boolean, nullable=False, server_default=false()))
    created_at: datetime = Field(sa_column=_now())
    updated_at: datetime = Field(sa_column=_now())
    idempotency_key: str | None = Field(sa_column=Column(Text))
    idempotency_digest: bytes | None = Field(sa_column=Column(LargeBinary))
    """SHA-256 of what the request asked for, where it had a key."""


tasks: Table = SQLModel.metadata.tables["tasks"]
