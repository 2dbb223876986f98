"""Bounds what one node of a Citus cluster can take of the pool, and refuses requests while it is away.

`Database` uses it where the tables are spread (README, "Past one machine"). The coordinator keeps answering
while a node is silent, so that it can be asked where a user's rows are and whether it reaches that node.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
from loguru import logger
from sqlalchemy import column, text

from backend.database.connection import Connection
from backend.database.errors import DatabaseError, NodeAwayError, PoolFullError, UnreachableError
from backend.database.pool import WAITING_PER_CONNECTION
from backend.database.statement import Statement, WideStatement

SEVERAL: Final = "several nodes"
"""Stands for a node where a statement asks all of them, and for transactions."""
NODE_ERRORS: Final = (TimeoutError, asyncio.CancelledError, asyncpg.PostgresConnectionError)
"""Errors of a connection that a node may have caused while the coordinator is well."""
CHECK_SECONDS: Final = 1.0
"""The most time that the coordinator takes to reach a node that is checked, and the pause between checks."""
REMEMBER_SECONDS: Final = 60.0
"""How long the nodes of users are remembered, because a rebalance moves users."""
REMEMBERED: Final = 10_000

_KEYS: Final = {"caller_id": "users", "user_id": "users", "email_key": "emails"}
"""The values that tell a statement's node, the first that it has, with the table that is spread by it."""
_IS_CITUS: Final = "SELECT 1 WHERE to_regclass('pg_dist_partition') IS NOT NULL"
_NODES: Final = (
    "SELECT nodename || ':' || nodeport AS node FROM pg_dist_node WHERE shouldhaveshards "
    "AND EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = to_regclass('users'))"
)
FIND: Final = Statement(
    text(
        "SELECT nodename || ':' || nodeport AS node FROM pg_dist_placement JOIN pg_dist_node USING (groupid) "
        "WHERE shardid = get_shard_id_for_distribution_column("
        "CAST(CAST(:table AS text) AS regclass), CAST(:key AS text))"
    ).columns(column("node"))
)
CHECK: Final = Statement(
    text(
        "SELECT citus_check_connection_to_node(CAST(:host AS text), CAST(:port AS int)) AS answers "
        "FROM (SELECT set_config('citus.node_connection_timeout', CAST(:milliseconds AS text), true)) AS _"
    ).columns(column("answers"))
)
"""Makes a connection of its own: unlike a statement on an old one, it leaves nothing behind when it fails."""

Run = Callable[[Statement, dict[str, Any]], Awaitable[asyncpg.Record | None]]
"""Runs a statement that the coordinator answers alone, and returns its first row."""


async def spread_over(connection: Connection, *, seconds: float) -> list[str]:
    """Return the nodes that the tables are spread over as `host:port`; none on plain PostgreSQL."""
    # `execute` prepares nothing, which a pooler's sessions might lose.
    if await connection.execute(_IS_CITUS, timeout=seconds) == "SELECT 0":
        return []
    return [row["node"] for row in await connection.fetch(_NODES, timeout=seconds)]


class Nodes:
    """Gives the statements of each node a limited number of places, and none while the node is away.

    A failed statement makes `check` ask whether the node answers. It is away from the first no until a yes.
    """

    def __init__(
        self, names: Iterable[str], check: Callable[[str], Awaitable[bool]], *, pool_size: int
    ) -> None:
        self._names, self._check = {*names}, check
        self._share = max(1, pool_size * 2 // 5)
        """Places of one node. A silent node and the transactions that it holds up leave some to others."""
        self._places = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(self._share))
        self._asking: Counter[str] = Counter()
        self._suspects: dict[str, bool] = {}
        """Nodes that are checked until they answer; True from the first time that they did not."""
        self._checking: asyncio.Task[None] | None = None
        self._remembered: dict[tuple[str, str], str | None] = {}
        self._forget_at = 0.0

    async def admit(self, statement: Statement, values: dict[str, Any], run: Run) -> str | None:
        """Return the node of a statement, None for the coordinator; raises `NodeAwayError`."""
        node = SEVERAL if isinstance(statement, WideStatement) else await self._find(values, run)
        is_away = any(self._suspects.values()) if node == SEVERAL else self._suspects.get(node or "")
        if is_away:
            raise NodeAwayError(reason="node_away")
        return node

    async def _find(self, values: dict[str, Any], run: Run) -> str | None:
        name = next((name for name in _KEYS if values.get(name) is not None), None)
        if name is None:
            return None
        now = asyncio.get_running_loop().time()
        if now > self._forget_at or len(self._remembered) >= REMEMBERED:
            self._remembered.clear()
            self._forget_at = now + REMEMBER_SECONDS
        key = _KEYS[name], values[name]
        if key not in self._remembered:
            row = await run(FIND, {"table": key[0], "key": key[1]})
            self._remembered[key] = row["node"] if row else None
        node = self._remembered[key]
        if node is not None:
            self._names.add(node)  # a node may have joined the cluster meanwhile
        return node

    @asynccontextmanager
    async def place(self, node: str, deadline: float) -> AsyncIterator[None]:
        """Hold one of the node's places; raises `PoolFullError`, or `UnreachableError` at the deadline."""
        if self._asking[node] >= self._share * (1 + WAITING_PER_CONNECTION):
            raise PoolFullError(reason="node_full")
        self._asking[node] += 1
        try:
            await self._wait(node, deadline)
            try:
                yield
            except (UnreachableError, asyncio.CancelledError):
                self._suspect(node)
                raise
            finally:
                self._places[node].release()
        finally:
            self._asking[node] -= 1

    async def _wait(self, node: str, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._places[node].acquire()
        except TimeoutError as error:
            raise UnreachableError(reason="node_busy") from error

    def _suspect(self, node: str) -> None:
        for name in self._names if node == SEVERAL else (node,):
            self._suspects.setdefault(name, False)
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check_suspects())

    async def _check_suspects(self) -> None:
        """Check them in turn, so that checks hold one connection at most, however many nodes are away."""
        try:
            while self._suspects:
                for node, was_away in tuple(self._suspects.items()):
                    is_away = self._suspects[node] = not await self._check(node)
                    if is_away != was_away:
                        state = "away; its users are refused" if is_away else "back"
                        logger.warning("DATABASE_URL: the node {} is {}", node, state)
                    if not is_away:
                        del self._suspects[node]
                await asyncio.sleep(CHECK_SECONDS)
        except DatabaseError:
            pass  # the coordinator does not answer, which says nothing of the nodes
        finally:
            self._suspects.clear()  # because without checks a node would be refused for ever

    async def close(self) -> None:
        """End the checks."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
