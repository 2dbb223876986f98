"""The pool of connections, and the one way in which statements reach PostgreSQL.

Whatever keeps PostgreSQL from answering becomes `DatabaseUnavailableError`; a write is never sent twice.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import asyncpg

from backend.database.statement import Statement
from backend.database.url import connect_arguments, is_transaction_pooler
from backend.errors import DatabaseUnavailableError
from backend.settings import Settings

Row = asyncpg.Record

UNREACHABLE = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""Server down, starting, stopping, full, out of memory or connections, or not ours any more."""

_BACKOFF_SECONDS = (0.05, 0.25)


class _Connection(asyncpg.Connection):
    """A connection that is handed on as it is: no statement of ours leaves anything to reset."""

    def get_reset_query(self) -> str:
        return ""


class Database:
    """Runs statements, each on its own, on at most `DATABASE_POOL_SIZE` connections."""

    def __init__(self, settings: Settings) -> None:
        assert settings.database_url is not None
        url = settings.database_url.get_secret_value()
        prepared = settings.database_prepared_statements
        if prepared == "auto":
            prepared = "off" if is_transaction_pooler(url) else "on"
        self._timeout = settings.database_timeout_seconds
        self._pool = asyncpg.create_pool(
            **connect_arguments(url),
            min_size=0,
            max_size=settings.database_pool_size,
            statement_cache_size=1000 if prepared == "on" else 0,
            connection_class=_Connection,
        )

    async def __aenter__(self) -> Self:
        await self._pool
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.wait_for(self._pool.close(), self._timeout)
        except TimeoutError:
            self._pool.terminate()

    async def one(self, statement: Statement, **values: Any) -> Row | None:
        """Return the first row, or None; raises `DatabaseUnavailableError`."""
        rows = await self.all(statement, **values)
        return rows[0] if rows else None

    async def all(self, statement: Statement, **values: Any) -> Sequence[Row]:
        """Return all rows; raises `DatabaseUnavailableError` within `DATABASE_TIMEOUT_SECONDS`."""
        arguments = statement.arguments(values)
        try:
            async with asyncio.timeout(self._timeout):
                return await self._run(statement, arguments)
        except UNREACHABLE as error:
            raise DatabaseUnavailableError(reason=type(error).__name__) from error

    async def _run(self, statement: Statement, arguments: list[Any]) -> Sequence[Row]:
        for pause in _BACKOFF_SECONDS:
            is_sent = False
            try:
                async with self._pool.acquire() as connection:
                    is_sent = True
                    return await connection.fetch(statement.sql, *arguments)
            except UNREACHABLE:
                if is_sent and not statement.only_reads:
                    raise
            await asyncio.sleep(pause)
        async with self._pool.acquire() as connection:
            return await connection.fetch(statement.sql, *arguments)
