"""Users, sessions and tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "users",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("email_key", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "issuer <> 'local' OR "
            "(email IS NOT NULL AND email_key IS NOT NULL AND password_hash IS NOT NULL)",
            name="users_local_complete",
        ),
        sa.CheckConstraint("char_length(id) BETWEEN 1 AND 255", name="users_id_length"),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="users_name_length"),
        sa.CheckConstraint("char_length(email) <= 254", name="users_email_length"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("email_key"),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "last_used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("user_agent", sa.Text(), nullable=True),
        sa.Column("ip", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("sessions_user_id", "sessions", ["user_id"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("title_key", sa.Text(collation="C"), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("completed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("char_length(description) <= 1000", name="tasks_description_length"),
        sa.CheckConstraint("char_length(title) BETWEEN 1 AND 200", name="tasks_title_length"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("tasks_by_created", "tasks", ["user_id", "created_at", "id"], unique=False)
    op.create_index(
        "tasks_by_status_created", "tasks", ["user_id", "completed", "created_at", "id"], unique=False
    )
    op.create_index(
        "tasks_by_status_title", "tasks", ["user_id", "completed", "title_key", "id"], unique=False
    )
    op.create_index("tasks_by_title", "tasks", ["user_id", "title_key", "id"], unique=False)
    op.create_table(
        "refresh_tokens",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("spent_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("digest"),
    )
    op.create_index("refresh_tokens_session_id", "refresh_tokens", ["session_id"], unique=False)
    op.create_table(
        "known_addresses",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column(
            "last_used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user_id", "address"),
    )
    op.create_index("sessions_expires_at", "sessions", ["expires_at"], unique=False)


def downgrade() -> None:
    """Take back."""
    op.drop_index("sessions_expires_at", table_name="sessions")
    op.drop_table("known_addresses")
    op.drop_index("refresh_tokens_session_id", table_name="refresh_tokens")
    op.drop_table("refresh_tokens")
    op.drop_index("tasks_by_title", table_name="tasks")
    op.drop_index("tasks_by_status_title", table_name="tasks")
    op.drop_index("tasks_by_status_created", table_name="tasks")
    op.drop_index("tasks_by_created", table_name="tasks")
    op.drop_table("tasks")
    op.drop_index("sessions_user_id", table_name="sessions")
    op.drop_table("sessions")
    op.drop_table("users")
