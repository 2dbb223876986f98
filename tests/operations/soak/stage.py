"""The service of a soak, with access to its processes, its embedded PostgreSQL and its Redis."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx2
import psutil

from backend.database.url import connect_arguments
from tests.operations.soak.users import User
from tests.service import Service
from tests.test_rate_limits import Redis

WORKERS, POOL_SIZE = 2, 5
OURS = "soak"
"""The application name of the test's own connections to PostgreSQL."""


@dataclass
class Stage:
    """A service with its embedded PostgreSQL, its users, and a Redis where there is one."""

    service: Service
    data_dir: Path
    users: list[User]
    redis: Redis | None

    @property
    def supervisor(self) -> psutil.Process:
        return psutil.Process(self.service.process.pid)

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes that serve."""
        with suppress(psutil.NoSuchProcess):
            return [child for child in self.supervisor.children() if _is_worker(child)]
        return []

    @property
    def postmaster(self) -> int | None:
        """Its process id, if it runs."""
        with suppress(FileNotFoundError, IndexError):
            return int(self._postmaster_file()[0])
        return None

    def _postmaster_file(self) -> list[str]:
        return (self.data_dir / "postgres" / "data" / "postmaster.pid").read_text().splitlines()

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Any]:
        """Connect past the service."""
        socket_dir = self._postmaster_file()[4]
        url = f"postgresql://postgres@/postgres?host={quote(socket_dir, safe='')}&application_name={OURS}"
        connection = await asyncpg.connect(**connect_arguments(url))
        try:
            yield connection
        finally:
            connection.terminate()  # `close` would fail if the server has gone

    @asynccontextmanager
    async def writes_held_up(self) -> AsyncIterator[None]:
        """Make every statement on tasks wait for the length of the block."""
        async with self.database() as database:
            await database.execute("BEGIN; LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
            yield

    async def connections(self) -> int:
        """Return the number of the service's connections to its database."""
        async with self.database() as database:
            return int(await database.fetchval(f"SELECT count(*) FROM {_OF_THE_SERVICE}"))  # noqa: S608  # ours

    async def cut_connections(self) -> None:
        async with self.database() as database:
            await database.execute(f"SELECT pg_terminate_backend(pid) FROM {_OF_THE_SERVICE}")  # noqa: S608  # ours

    async def is_ready(self) -> bool:
        """Ask for readiness over a connection of its own, which any worker may take."""
        try:
            async with httpx2.AsyncClient(trust_env=False, verify=False) as client:  # plain HTTP
                response = await client.get(f"{self.service.url}/health/ready", timeout=5)
        except httpx2.TransportError:
            return False
        return response.status_code == httpx2.codes.OK


_OF_THE_SERVICE = f"pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> '{OURS}'"


def _is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(process.cmdline())
    return False
