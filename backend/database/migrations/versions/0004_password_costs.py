"""Index of the costs of the stored hashes, to find the highest."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COST = (
    "((substring(password_hash, "
    "'[$,=]([4-9]|0[4-9]|[12][0-9]|3[01])[$][./A-Za-z0-9]{22}[$]?[./A-Za-z0-9]{31}$'))::integer)"
)


def upgrade() -> None:
    """Apply."""
    op.create_index("users_password_cost", "users", [sa.text(COST)], unique=False)


def downgrade() -> None:
    """Take back."""
    op.drop_index("users_password_cost", table_name="users")
