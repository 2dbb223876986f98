"""The key of tasks starts with the id, so that one index serves the owner and `ANYBODYS_TASK`."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.drop_constraint("tasks_pkey", "tasks")
    op.create_primary_key("tasks_pkey", "tasks", ["id", "user_id"])
    op.drop_index("tasks_by_id", table_name="tasks")


def downgrade() -> None:
    """Take back."""
    op.create_index("tasks_by_id", "tasks", ["id"])
    op.drop_constraint("tasks_pkey", "tasks")
    op.create_primary_key("tasks_pkey", "tasks", ["user_id", "id"])
