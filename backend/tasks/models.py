"""The table of tasks, with the limits of the API as constraints.

Its key includes `user_id` and its indexes start with it, because Citus distributes the rows by it (README,
"Past one machine").
"""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, Column, Identity, Index, Table, Text, false, func, text
from sqlmodel import Field, SQLModel

NOW = {"server_default": func.now()}


class Task(SQLModel, table=True):
    """A task of one user."""

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint("char_length(title) BETWEEN 1 AND 200", name="tasks_title_length"),
        CheckConstraint("char_length(description) <= 1000", name="tasks_description_length"),
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

    id: int = Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    """The id is unique over all users.

    It precedes `user_id` in the primary key, because `ANYBODYS_TASK` knows the id alone. A second index for
    that statement would cost each update 3 % of PostgreSQL's time.
    """
    user_id: str = Field(sa_type=Text, primary_key=True, foreign_key="users.id", ondelete="CASCADE")
    title: str = Field(sa_type=Text)
    title_key: str = Field(sa_type=Text(collation="C"))
    """The case-folded title. It sorts by code point, because the order must not depend on the locale."""
    description: str | None = Field(sa_type=Text)
    completed: bool = Field(sa_column_kwargs={"server_default": false()})
    created_at: datetime = Field(sa_column_kwargs=NOW)
    updated_at: datetime = Field(sa_column_kwargs=NOW)
    idempotency_key: str | None = Field(sa_type=Text)
    idempotency_digest: bytes | None
    """The SHA-256 of the request's fields; null for a request without a key."""


tasks: Table = SQLModel.metadata.tables["tasks"]
