"""Keys and indexes start with the user, because Citus distributes by user; emails get their own table."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

KEYS = {"tasks": "id", "sessions": "id", "refresh_tokens": "digest", "mail_tokens": "digest"}
"""The columns that were the primary keys."""


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "emails",
        sa.Column("email_key", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
    )
    op.execute("INSERT INTO emails SELECT email_key, id FROM users WHERE email_key IS NOT NULL")
    op.create_primary_key("emails_pkey", "emails", ["email_key"])
    op.drop_constraint("users_email_key_key", "users")
    op.add_column("refresh_tokens", sa.Column("user_id", sa.Text()))
    op.execute("UPDATE refresh_tokens SET user_id = sessions.user_id FROM sessions WHERE id = session_id")
    op.alter_column("refresh_tokens", "user_id", nullable=False)
    op.drop_constraint("refresh_tokens_session_id_fkey", "refresh_tokens")
    for table, key in KEYS.items():
        op.drop_constraint(f"{table}_pkey", table)
        op.create_primary_key(f"{table}_pkey", table, ["user_id", key])
    op.create_foreign_key(
        "refresh_tokens_session_fkey",
        *("refresh_tokens", "sessions", ["user_id", "session_id"], ["user_id", "id"]),
        ondelete="CASCADE",
    )
    op.create_index("refresh_tokens_by_session", "refresh_tokens", ["user_id", "session_id", "spent_at"])
    op.drop_index("refresh_tokens_session_id_spent_at", table_name="refresh_tokens")
    op.drop_index("sessions_user_id", table_name="sessions")
    op.drop_index("mail_tokens_user_id", table_name="mail_tokens")
    op.create_index("tasks_by_id", "tasks", ["id"])
    # Without statistics on `user_id`, PostgreSQL plans a list once, because one plan suits all users.
    # The statement leaves the type as it is, but drops the statistics that ANALYZE has collected.
    op.execute("ALTER TABLE tasks ALTER user_id TYPE text, ALTER user_id SET STATISTICS 0")
    op.create_index("refresh_tokens_by_digest", "refresh_tokens", ["digest"])
    op.create_index("mail_tokens_by_digest", "mail_tokens", ["digest"])


def downgrade() -> None:
    """Take back."""
    op.execute("ALTER TABLE tasks ALTER user_id SET STATISTICS -1")
    op.drop_index("mail_tokens_by_digest", table_name="mail_tokens")
    op.drop_index("refresh_tokens_by_digest", table_name="refresh_tokens")
    op.drop_index("tasks_by_id", table_name="tasks")
    op.create_index("mail_tokens_user_id", "mail_tokens", ["user_id"])
    op.create_index("sessions_user_id", "sessions", ["user_id"])
    op.create_index("refresh_tokens_session_id_spent_at", "refresh_tokens", ["session_id", "spent_at"])
    op.drop_index("refresh_tokens_by_session", table_name="refresh_tokens")
    op.drop_constraint("refresh_tokens_session_fkey", "refresh_tokens")
    for table, key in KEYS.items():
        op.drop_constraint(f"{table}_pkey", table)
        op.create_primary_key(f"{table}_pkey", table, [key])
    op.create_foreign_key(
        "refresh_tokens_session_id_fkey",
        *("refresh_tokens", "sessions", ["session_id"], ["id"]),
        ondelete="CASCADE",
    )
    op.drop_column("refresh_tokens", "user_id")
    op.create_unique_constraint("users_email_key_key", "users", ["email_key"])
    op.drop_table("emails")
