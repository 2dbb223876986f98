"""`Database` and `Transaction` run statements on PostgreSQL, and repeat those that are safe to repeat.

A statement is one round trip. An error of any kind that keeps PostgreSQL from answering becomes
`UnreachableError`. No write is done twice.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Final, Self

import asyncpg
from loguru import logger

from backend.database.connection import STATEMENTS, UNPREPARED, Connection, notice_silence
from backend.database.errors import NodeAwayError, NotUniqueError, UnreachableError
from backend.database.hosts import Hosts
from backend.database.nodes import CHECK, CHECK_SECONDS, FIND, NODE_ERRORS, SEVERAL, Nodes, spread_over
from backend.database.pool import Pool
from backend.database.statement import Statement, WideStatement
from backend.database.url import connect_arguments
from backend.settings import Settings
from backend.telemetry import metrics

Row = asyncpg.Record

UNREACHABLE: Final = (
    OSError,
    UnicodeError,  # a host name that is no domain name, such as a..b
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
"""Errors of a server that is down, starting, stopping, full, too slow, read-only, or closed to our role."""

UNDONE: Final = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.ForeignKeyViolationError,  # another request deleted the user, whom the next attempt misses
    *UNPREPARED,
)
"""Errors after which PostgreSQL has certainly not applied the statement. Only then is a write sent again."""

FAILURES: Final = (*UNREACHABLE, *UNDONE)

LOSSES: Final = (*FAILURES, asyncio.CancelledError)
"""Errors after which other connections may be lost too. Any other error is of the transaction alone."""

DOUBTS: Final = (TimeoutError, asyncpg.ReadOnlySQLTransactionError)
"""Errors of a primary that was replaced by another host."""

_PAUSES_SECONDS: Final = (0.0, 0.05, 0.2, 0.8)
"""Pauses between attempts. The first is 0, because a connection may have died while it was idle."""


class Database:
    """Runs statements, each on its own, on at most `DATABASE_POOL_SIZE` connections."""

    def __init__(self, settings: Settings) -> None:
        assert settings.database_url is not None
        arguments = connect_arguments(settings.database_url.get_secret_value())
        sizes = {"on": STATEMENTS, "off": 0, "auto": arguments["statement_cache_size"]}
        self._setting = settings.database_prepared_statements
        self._prepares = sizes[self._setting] > 0
        self._timeout = settings.database_timeout_seconds
        arguments["statement_cache_size"] = sizes[self._setting]
        arguments["max_cached_statement_lifetime"] = 0  # unlimited; asyncpg's default is five minutes
        self._hosts = Hosts(arguments, seconds=self._timeout)
        self.pool = Pool(
            self._connect, size=settings.database_pool_size, idle_seconds=settings.database_idle_seconds
        )
        self._pool_size = settings.database_pool_size
        self._nodes: Nodes | None = None
        self._has_asked_for_nodes = False
        self._look = asyncio.Lock()

    async def _connect(self) -> Connection:
        try:
            connection = await self._hosts.connect()
            if not self._has_asked_for_nodes:
                await self._ask_for_nodes(connection)
        except asyncpg.PostgresError as error:
            # Any error of the server at this moment means that there is no database for us.
            raise ConnectionError(type(error).__name__) from error
        if connection.is_shared and self._setting != "on":
            self._stop_preparing()
        notice_silence(connection, self._timeout / 2)
        return connection

    async def _ask_for_nodes(self, connection: Connection) -> None:
        try:
            names = await spread_over(connection, seconds=self._timeout)
        except BaseException:
            connection.terminate()  # because the pool does not have it yet
            raise
        self._has_asked_for_nodes = True
        if names and self._nodes is None:
            self._nodes = Nodes(names, self._check, pool_size=self._pool_size)

    async def _check(self, node: str) -> bool:
        """Return whether the coordinator reaches the node; raises `UnreachableError` if itself is silent."""
        host, _, port = node.rpartition(":")
        values = {"host": host, "port": int(port), "milliseconds": str(int(CHECK_SECONDS * 1000))}
        row = await self._one_of_coordinator(CHECK, values, 2 * CHECK_SECONDS)
        return row is not None and row["answers"]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._nodes is not None:
            await self._nodes.close()
        await self.pool.close()

    async def one(self, statement: Statement, **values: Any) -> Row | None:
        """Return the first row, or None; raises `UnreachableError`."""
        rows = await self._run(statement, values)
        return rows[0] if rows else None

    def all(self, statement: Statement, **values: Any) -> Awaitable[Sequence[Row]]:
        """Return all rows; raises `UnreachableError` within `DATABASE_TIMEOUT_SECONDS`."""
        return self._run(statement, values)

    async def look(self, statement: WideStatement, *, seconds: float, **values: Any) -> Row | None:
        """Return the first row of a statement that asks every node; raises `UnreachableError`.

        On a cluster one runs at a time, because such statements could otherwise take all connections.
        One that has no answer within `seconds` raises `NodeAwayError` there.
        """
        if self._nodes is None:
            return await self.one(statement, **values)
        try:
            async with asyncio.timeout(seconds), self._look:
                return await self.one(statement, **values)
        except TimeoutError as error:
            raise NodeAwayError(reason="too_slow") from error

    def _run(self, statement: Statement, values: dict[str, Any]) -> Awaitable[Sequence[Row]]:
        deadline = asyncio.get_running_loop().time() + self._timeout
        if self._nodes is None:
            return self._repeat(statement, values, deadline)
        return self._run_on_node(self._nodes, statement, values, deadline)

    async def _run_on_node(
        self, nodes: Nodes, statement: Statement, values: dict[str, Any], deadline: float
    ) -> Sequence[Row]:
        node = await nodes.admit(statement, values, self._one_of_coordinator)
        if node is None:
            return await self._repeat(statement, values, deadline)
        async with nodes.place(node, deadline):
            return await self._repeat(statement, values, deadline)

    async def _one_of_coordinator(
        self, statement: Statement, values: dict[str, Any], seconds: float | None = None
    ) -> Row | None:
        deadline = asyncio.get_running_loop().time() + (seconds or self._timeout)
        rows = await self._repeat(statement, values, deadline)
        return rows[0] if rows else None

    async def _repeat(self, statement: Statement, values: dict[str, Any], deadline: float) -> Sequence[Row]:
        arguments = statement.arguments(values)
        now = asyncio.get_running_loop().time
        pauses = iter(_PAUSES_SECONDS)
        while True:
            connection = None
            try:
                connection = self.pool.take_idle() or await self._take(deadline)
                return await self._send(connection, statement, arguments, deadline - now())
            except FAILURES as error:
                if isinstance(error, UNPREPARED):
                    self._stop_preparing()
                is_harmless = connection is None or statement.only_reads or isinstance(error, UNDONE)
                pause = next(pauses, math.inf)
                if not is_harmless or now() + pause >= deadline:
                    raise UnreachableError(reason=type(error).__name__) from error
            metrics.DATABASE_RETRIES.inc()
            await asyncio.sleep(pause)

    def _stop_preparing(self) -> None:
        if self._prepares:
            self._prepares = False
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
        if not self._prepares:
            connection.stop_preparing()
        try:
            rows = await connection.fetch(statement.sql, *arguments, timeout=seconds)
        except BaseException as error:
            if isinstance(error, asyncpg.PostgresError) and not isinstance(error, FAILURES):
                self.pool.give(connection)
            else:
                self._discard(connection, error, statement)
            raise
        self.pool.give(connection)
        return rows

    def _discard(
        self, connection: Connection, error: BaseException, statement: Statement | None = None
    ) -> None:
        asks_node = self._nodes is not None and statement not in {FIND, CHECK}
        is_of_node = asks_node and isinstance(error, NODE_ERRORS) and not connection.is_closed()
        if is_of_node or not isinstance(error, LOSSES):
            self.pool.discard_one(connection)
            return
        if isinstance(error, DOUBTS):
            self._hosts.put_last(connection.address)
        self.pool.discard(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["Transaction"]:
        """Run several statements as one, all or none; raises `UnreachableError`.

        Each has `DATABASE_TIMEOUT_SECONDS`, BEGIN and COMMIT too, because asyncpg's own transactions wait
        without limit for a silent server. The server likewise ends a transaction that this process left idle.
        """
        milliseconds = math.ceil(self._timeout * 1000)
        begin = (
            "BEGIN ISOLATION LEVEL READ COMMITTED; "  # a pooler's sessions may have another
            f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}"
        )
        deadline = asyncio.get_running_loop().time() + self._timeout
        place = self._nodes.place(SEVERAL, deadline) if self._nodes else nullcontext()
        async with place, self._transaction(begin, deadline) as transaction:
            yield transaction

    @asynccontextmanager
    async def _transaction(self, begin: str, deadline: float) -> AsyncIterator["Transaction"]:
        now = asyncio.get_running_loop().time
        try:
            connection = await self._take(deadline)
            try:
                await connection.execute(begin, timeout=deadline - now())
                yield Transaction(connection, self._timeout, self._nodes)
                await connection.execute("COMMIT", timeout=self._timeout)
            except BaseException as error:
                self._discard(connection, error)  # PostgreSQL rolls back what has no COMMIT
                raise
            self.pool.give(connection)
        except asyncpg.UniqueViolationError as error:
            raise NotUniqueError from error
        except FAILURES as error:
            raise UnreachableError(reason=type(error).__name__) from error


class Transaction:
    """Runs statements within one transaction of `Database.transaction`.

    Statements are prepared here without a name. Behind a transaction pooler the session may lack what the
    connection prepared before, and a transaction can't go on after that error.
    """

    def __init__(self, connection: Connection, seconds: float, nodes: Nodes | None) -> None:
        self._connection, self._seconds, self._nodes = connection, seconds, nodes

    async def one(self, statement: Statement, **values: Any) -> Row | None:
        """Return the first row, or None; raises `NodeAwayError`."""
        if self._nodes is not None:
            await self._nodes.admit(statement, values, self._one)
        return await self._one(statement, values)

    async def _one(self, statement: Statement, values: dict[str, Any]) -> Row | None:
        prepared = await self._connection.prepare(statement.sql, name="", timeout=self._seconds)
        return await prepared.fetchrow(*statement.arguments(values), timeout=self._seconds)
