"""PostgreSQL: the `Database` that runs compiled statements, the schema, and the embedded server."""

from backend.database.connection import Database, Row
from backend.database.errors import DatabaseError, NotUniqueError, PoolFullError, UnreachableError
from backend.database.statement import Statement

__all__ = [
    "Database",
    "DatabaseError",
    "NotUniqueError",
    "PoolFullError",
    "Row",
    "Statement",
    "UnreachableError",
]
