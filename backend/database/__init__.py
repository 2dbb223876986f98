"""PostgreSQL: one `Database` that runs statements compiled once, its schema, and the embedded server."""

from backend.database.connection import Database, Row
from backend.database.errors import DatabaseError, PoolFullError, UnreachableError
from backend.database.statement import Statement

__all__ = ["Database", "DatabaseError", "PoolFullError", "Row", "Statement", "UnreachableError"]
