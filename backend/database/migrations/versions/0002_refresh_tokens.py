"""Refresh tokens count their uses, are voided by generation, and are pruned by age."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column(
        "sessions",
        sa.Column("refresh_generation", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )
    op.add_column(
        "refresh_tokens", sa.Column("uses", sa.SmallInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column(
        "refresh_tokens", sa.Column("generation", sa.Integer(), server_default=sa.text("0"), nullable=False)
    )
    op.create_index("refresh_tokens_session_id_spent_at", "refresh_tokens", ["session_id", "spent_at"])
    op.drop_index("refresh_tokens_session_id", table_name="refresh_tokens")


def downgrade() -> None:
    """Take back."""
    # The older schema has no generation, so voided tokens are deleted: they must not become valid again.
    op.execute(
        "DELETE FROM refresh_tokens USING sessions "
        "WHERE sessions.id = session_id AND generation <> refresh_generation"
    )
    op.create_index("refresh_tokens_session_id", "refresh_tokens", ["session_id"])
    op.drop_index("refresh_tokens_session_id_spent_at", table_name="refresh_tokens")
    op.drop_column("refresh_tokens", "generation")
    op.drop_column("refresh_tokens", "uses")
    op.drop_column("sessions", "refresh_generation")
