"""PostgreSQL: one `Database` that runs statements compiled once, its schema, and the embedded server."""

from backend.database.connection import Database, NotUniqueError, Row
from backend.database.statement import Statement

__all__ = ["Database", "NotUniqueError", "Row", "Statement"]
