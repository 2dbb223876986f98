"""PostgreSQL: the `Database` that runs compiled statements, the schema, and the embedded server."""

from asyncpg import InsufficientPrivilegeError

from backend.database.database import Database, Row, Transaction
from backend.database.errors import (
    DatabaseError,
    NodeAwayError,
    NotUniqueError,
    PoolFullError,
    UnreachableError,
)
from backend.database.statement import Statement, WideStatement

__all__ = [
    "Database",
    "DatabaseError",
    "InsufficientPrivilegeError",
    "NodeAwayError",
    "NotUniqueError",
    "PoolFullError",
    "Row",
    "Statement",
    "Transaction",
    "UnreachableError",
    "WideStatement",
]
