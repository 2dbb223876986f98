"""Index of the known addresses by address, to count the accounts of one."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_index(
        "known_addresses_by_address", "known_addresses", ["address", "last_used_at"], unique=False
    )


def downgrade() -> None:
    """Take back."""
    op.drop_index("known_addresses_by_address", table_name="known_addresses")
