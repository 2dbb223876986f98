"""PostgreSQL: one `Database` that runs statements compiled once, its schema, and the embedded server."""

from backend.database.connection import Database, Row, Transaction
from backend.database.errors import DatabaseError, NotUniqueError, PoolFullError, UnreachableError
from backend.database.statement import Statement

__all__ = [
    "Database",
    "DatabaseError",
    "NotUniqueError",
    "PoolFullError",
    "Row",
    "Statement",
    "Transaction",
    "UnreachableError",
]
