"""Tasks store the idempotency key of the request that created them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("tasks", sa.Column("idempotency_key", sa.Text(), nullable=True))
    op.add_column("tasks", sa.Column("idempotency_digest", sa.LargeBinary(), nullable=True))
    op.create_index(
        "tasks_by_idempotency_key",
        "tasks",
        ["user_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_index("tasks_by_idempotency_key", table_name="tasks")
    op.drop_column("tasks", "idempotency_digest")
    op.drop_column("tasks", "idempotency_key")
