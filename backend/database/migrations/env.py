"""Runs migrations on the connection, and in the transaction, that `backend.database.schema` opened."""

from alembic import context
from sqlmodel import SQLModel

import backend.auth.mail.models
import backend.auth.models
import backend.tasks.models  # noqa: F401  # all three fill SQLModel.metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
