"""The PostgreSQL server of a benchmark, as durable as in production, and the databases on it."""

import asyncio
from dataclasses import dataclass
from typing import Any

import asyncpg

from backend.database import schema
from backend.database.embedded import EmbeddedServer
from backend.database.url import connect_arguments
from scripts.benchmark.meter import family_cpu_seconds


@dataclass(frozen=True)
class Database:
    """A database, on which `sql` runs statements."""

    name: str
    url: str

    def sql(self, statement: str, *values: Any) -> list[asyncpg.Record]:
        """Run one statement and return its rows."""
        return asyncio.run(self._sql(statement, values))

    async def _sql(self, statement: str, values: tuple[Any, ...]) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(**connect_arguments(self.url))
        try:
            rows: list[asyncpg.Record] = await connection.fetch(statement, *values)
            return rows
        finally:
            await connection.close()


class Postgres:
    """The server: creates databases, and returns its CPU time."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server

    def new(self, name: str) -> Database:
        """Create a database with the schema of the service, by its migrations."""
        database = self.empty(name)
        asyncio.run(schema.migrate(database.url))
        return database

    def empty(self, name: str) -> Database:
        """Create a database without a schema."""
        return self._create(f"CREATE DATABASE {name}", name)

    def copy(self, template: Database, name: str) -> Database:
        """Copy a database, which must have no connections."""
        return self._create(f"CREATE DATABASE {name} TEMPLATE {template.name}", name)

    def _create(self, statement: str, name: str) -> Database:
        Database("postgres", self._server.url).sql(statement)
        return Database(name, self._server.url.replace("/postgres?", f"/{name}?"))

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its processes."""
        return family_cpu_seconds(self._server.pid)
