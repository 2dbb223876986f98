"""How statements reach PostgreSQL: one round trip each, sent again only where that does no harm.

Whatever keeps PostgreSQL from answering becomes `UnreachableError`; a write is never done twice.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement
from loguru import logger

from backend.database.errors import NotUniqueError, UnreachableError
from backend.database.hosts import Hosts
from backend.database.pool import Pool
from backend.database.session import UNPREPARED, Connection, notice_silence
from backend.database.statement import Statement
from backend.database.url import connect_arguments, is_transaction_pooler
from backend.settings import Settings
from backend.telemetry import metrics

Row = asyncpg.Record

UNREACHABLE: Final = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""Server down, starting, stopping, full, out of memory or connections, too slow, or not ours any more."""

UNDONE: Final = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.ForeignKeyViolationError,  # its user was deleted meanwhile, and will not be found
    *UNPREPARED,
)
"""What PostgreSQL says when it has surely done nothing: then a write may be sent again as well."""

FAILURES: Final = (*UNREACHABLE, *UNDONE)

DOUBTS: Final = (TimeoutError, asyncpg.ReadOnlySQLTransactionError)
"""What a primary that was replaced does: then another host, where there is one, is asked first."""

STATEMENTS: Final = 200
"""More than there are, so that each connection prepares each of them once."""

_PAUSES_SECONDS: Final = (0.0, 0.05, 0.2, 0.8, math.inf)
"""Between attempts; the first comes at once, for a connection that died while it was idle."""


class Database:
    """Runs statements, each on its own, on at most `DATABASE_POOL_SIZE` connections."""

    def __init__(self, settings: Settings) -> None:
        assert settings.database_url is not None
        url = settings.database_url.get_secret_value()
        prepared = settings.database_prepared_statements
        is_prepared = prepared == "on" or (prepared == "auto" and not is_transaction_pooler(url))
        self._prepares_anyway = prepared == "on"
        self._timeout = settings.database_timeout_seconds
        arguments = connect_arguments(url) | {
            "statement_cache_size": STATEMENTS if is_prepared else 0,
            "max_cached_statement_lifetime": 0,  # or each is prepared anew every five minutes
        }
        self._hosts = Hosts(arguments, seconds=self._timeout)
        self.pool = Pool(
            self._connect, size=settings.database_pool_size, idle_seconds=settings.database_idle_seconds
        )

    async def _connect(self) -> Connection:
        try:
            connection = await self._hosts.connect()
        except asyncpg.PostgresError as error:
            # Whatever the server says to a greeting, it means that there is no database for us.
            raise ConnectionError(type(error).__name__) from error
        if self._hosts.is_pooler and not self._prepares_anyway:
            self._stop_preparing()
        notice_silence(connection, self._timeout / 2)
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close()

    async def one(self, statement: Statement, **values: Any) -> Row | None:
        """Return the first row, or None; raises `UnreachableError`."""
        rows = await self._run(statement, values)
        return rows[0] if rows else None

    def all(self, statement: Statement, **values: Any) -> Awaitable[Sequence[Row]]:
        """Return all rows; raises `UnreachableError` within `DATABASE_TIMEOUT_SECONDS`."""
        return self._run(statement, values)

    async def _run(self, statement: Statement, values: dict[str, Any]) -> Sequence[Row]:
        arguments = statement.arguments(values)
        now = asyncio.get_running_loop().time
        deadline = now() + self._timeout
        for pause in _PAUSES_SECONDS:
            connection = None
            try:
                connection = self.pool.take_idle() or await self._take(deadline)
                return await self._send(connection, statement, arguments, deadline - now())
            except FAILURES as error:
                if isinstance(error, UNPREPARED):
                    self._stop_preparing()
                is_harmless = connection is None or statement.only_reads or isinstance(error, UNDONE)
                if not is_harmless or now() + pause >= deadline:
                    raise UnreachableError(reason=type(error).__name__) from error
            metrics.DATABASE_RETRIES.inc()
            await asyncio.sleep(pause)
        raise AssertionError("the last pause ends it")

    def _stop_preparing(self) -> None:
        if self._hosts.stop_preparing():
            logger.warning(
                "DATABASE_URL leads to a pooler that shares sessions: statements are no longer prepared; "
                "set DATABASE_PREPARED_STATEMENTS=off to begin so"
            )

    async def _take(self, deadline: float) -> Connection:
        async with asyncio.timeout_at(deadline):
            return await self.pool.take()

    async def _send(
        self, connection: Connection, statement: Statement, arguments: list[Any], seconds: float
    ) -> Sequence[Row]:
        try:
            rows = await connection.fetch(statement.sql, *arguments, timeout=seconds)
        except BaseException as error:
            if isinstance(error, asyncpg.PostgresError) and not isinstance(error, FAILURES):
                self.pool.give(connection)
            else:
                self._discard(connection, error)
            raise
        self.pool.give(connection)
        return rows

    def _discard(self, connection: Connection, error: BaseException) -> None:
        if isinstance(error, DOUBTS):
            self._hosts.doubt(connection)
        self.pool.discard(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["Transaction"]:
        """Run several statements as one, all or none; raises `UnreachableError`.

        Each has `DATABASE_TIMEOUT_SECONDS`, BEGIN and COMMIT too: asyncpg's own would wait for ever for a
        server that is silent, as the server would for us, with our locks.
        """
        milliseconds = math.ceil(self._timeout * 1000)
        begin = (
            "BEGIN ISOLATION LEVEL READ COMMITTED; "  # a pooler's sessions may have another
            f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"
        )
        now = asyncio.get_running_loop().time
        deadline = now() + self._timeout
        try:
            connection = await self._take(deadline)
            try:
                await connection.execute(begin, timeout=deadline - now())
                yield Transaction(connection, self._timeout)
                await connection.execute("COMMIT", timeout=self._timeout)
            except BaseException as error:
                self._discard(connection, error)  # without COMMIT PostgreSQL takes back what was done
                raise
            self.pool.give(connection)
        except asyncpg.UniqueViolationError as error:
            raise NotUniqueError from error
        except FAILURES as error:
            raise UnreachableError(reason=type(error).__name__) from error


class Transaction:
    """Runs statements within one transaction of `Database.transaction`.

    The statement is prepared here and without a name, because behind a transaction pooler this session may
    not have what the connection prepared before, and a transaction that met an error can't be continued.
    """

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        self._last: tuple[Statement, PreparedStatement[Row]] | None = None

    async def one(self, statement: Statement, **values: Any) -> Row | None:
        """Return the first row, or None."""
        arguments = statement.arguments(values)
        if self._last is None or self._last[0] is not statement:
            prepared = await self._connection.prepare(statement.sql, name="", timeout=self._seconds)
            self._last = statement, prepared
        return await self._last[1].fetchrow(*arguments, timeout=self._seconds)
