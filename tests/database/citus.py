"""Databases spread over the nodes of a real Citus cluster, for a run with `TEST_CITUS_URL`.

It is the URL of a coordinator's database whose `pg_dist_node` names the workers. Its role may make databases
on all of them. Each database costs a node some connections: `max_connections = 600` and
`max_worker_processes = 200` are enough for a run.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg

from backend.database import distribute, schema
from backend.database.url import connect_arguments

URL = os.environ.get("TEST_CITUS_URL", "")
ACTIVITY = "citus_stat_activity" if URL else "pg_stat_activity"
"""The view of activity on all nodes."""
SHARDS = 4
"""The number of shards of each table, because Citus takes seconds to make its default of 32."""


class Cluster:
    """The nodes of the cluster, and the databases that were made on them."""

    def __init__(self) -> None:
        self._names: list[str] = []
        nodes = "SELECT nodename, nodeport FROM pg_dist_node WHERE isactive AND shouldhaveshards"
        self.workers: list[tuple[Any, ...]] = [
            tuple(row) for row in asyncio.run(_sql(connect_arguments(URL), nodes))
        ]
        """Host and port of each, as a new database gets them; a test may put a proxy in the place of one."""
        self._coordinator = connect_arguments(URL)
        own = (self._coordinator["host"][0], self._coordinator["port"][0])
        self._nodes = [own, *(worker for worker in self.workers if worker != own)]

    def create(self, name: str, *, spread: bool = True) -> str:
        """Make a migrated database, with distributed tables if `spread`; return its URL."""
        self._names.append(name)
        asyncio.run(self._create(name))
        url = f"/{name}".join(URL.rsplit(f"/{self._coordinator['database']}", 1))
        asyncio.run(schema.migrate(url))
        if spread:
            asyncio.run(distribute.distribute(url, print, print))
        return url

    async def _create(self, name: str) -> None:
        for node in self._nodes:
            await _sql(self._on(node), f"CREATE DATABASE {name}")
            await _sql(self._on(node, name), "CREATE EXTENSION citus")
        own = self._on(self._nodes[0], name)
        await _sql(own, f"ALTER DATABASE {name} SET citus.shard_count = {SHARDS}")
        await _sql(own, "SELECT citus_set_coordinator_host($1, $2)", *self._nodes[0])
        for worker in self.workers:
            await _sql(own, "SELECT citus_add_node($1, $2)", *worker)

    def drop(self) -> None:
        """Drop all databases that `create` made, and what a lost coordinator left prepared in them."""
        while self._names:
            name = self._names.pop()
            asyncio.run(_sql(self._on(self._nodes[0], name), "SELECT recover_prepared_transactions()"))
            for node in self._nodes:
                asyncio.run(_sql(self._on(node), f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    def _on(self, node: tuple[Any, ...], database: str | None = None) -> dict[str, Any]:
        host, port = node
        changes = {"host": [host], "port": [port], "database": database or self._coordinator["database"]}
        return self._coordinator | changes


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Yield the cluster; what was made on it goes at the end."""
    running = Cluster()
    try:
        yield running
    finally:
        running.drop()


async def _sql(arguments: dict[str, Any], statement: str, *values: Any) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(**arguments)
    try:
        return list(await connection.fetch(statement, *values))
    finally:
        await connection.close()
