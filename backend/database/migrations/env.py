"""Runs migrations on the connection, and in the transaction, that `backend.database.schema` opened."""

from alembic import context
from sqlmodel import SQLModel

import backend.models  # noqa: F401  # fills SQLModel.metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
