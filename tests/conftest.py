"""One embedded PostgreSQL for the whole run, databases on it, and one service that most tests share."""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from backend.database.embedded import EmbeddedServer, embedded_server
from backend.database.url import connect_arguments
from tests import forks
from tests.database import citus
from tests.programs import passable_directory, require
from tests.service import JWT_SECRET, Account, Service, command, running

pytest_plugins = ["tests.better_auth.fixtures"]

_numbers = count(1)
gc.disable()  # until `pytest_collection_finish`, because imports leave no garbage


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `scripts/soak`."""
    parser.addoption("--soak", metavar="SECONDS", type=int, default=0, help="soak for so long (test_soak)")
    parser.addoption("--soak-seed", metavar="SEED", type=int, help="what decides about chance in it")


def pytest_configure() -> None:
    """Let the process that services are forked from import while tests are collected.

    A shell has programs in the background ignore SIGINT, and they would pass that on to the services.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    forks.prepare()


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look for what the test needs of the system."""
    for mark in item.iter_markers("needs"):
        require(*mark.args, **mark.kwargs)


@pytest.hookimpl(trylast=True)  # after plugins that change the order
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests of all recorded responses last, and leave out tests of a cluster if there is none."""
    on_cluster = [] if citus.URL else [item for item in items if item.get_closest_marker("cluster")]
    config.hook.pytest_deselected(items=on_cluster)
    items[:] = [item for item in items if item not in on_cluster]
    items.sort(key=lambda item: "_of_the_suite" in item.name)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over modules and tests, which took a sixth of the CPU time of pytest."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """A PostgreSQL server of this run's own; what is written to it need not survive."""
    settings = {"fsync": "off", "synchronous_commit": "off", "max_connections": "300"}
    with passable_directory() as directory, embedded_server(directory, settings) as running_server:
        yield running_server


class Postgres:
    """A database, and SQL on it past the service."""

    def __init__(self, url: str) -> None:
        self.url = url

    def sql(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Run one statement and return its rows."""
        return asyncio.run(self._sql(statement, values))

    async def _sql(self, statement: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(**connect_arguments(self.url))
        try:
            return [dict(row) for row in await connection.fetch(statement, *values)]
        finally:
            await connection.close()


@contextmanager
def locked(database: Postgres, task_id: int) -> Iterator[None]:
    """Hold up every write of one task for the length of the block."""
    (owner,) = database.sql("SELECT user_id FROM tasks WHERE id = $1", task_id)  # Citus locks by user alone
    row = "SELECT FROM tasks WHERE id = $1 AND user_id = $2 FOR UPDATE"
    with holding(database, row, task_id, owner["user_id"]):
        yield


@contextmanager
def holding(database: Postgres, statement: str, *values: Any) -> Iterator[None]:
    """Keep the locks of a statement for the length of the block."""
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(asyncpg.connect(**connect_arguments(database.url)))
    loop.run_until_complete(connection.execute("BEGIN"))
    loop.run_until_complete(connection.execute(statement, *values))
    try:
        yield
    finally:
        loop.run_until_complete(connection.close())
        loop.close()


@pytest.fixture(scope="session")
def new_empty_database(server: EmbeddedServer) -> Callable[[], Postgres]:
    """Make an empty database each time it is called."""
    return lambda: _create_database(server, "")


@pytest.fixture(scope="session")
def new_database(server: EmbeddedServer) -> Iterator[Callable[[], Postgres]]:
    """Make a database each time it is called, migrated by Alembic once for all.

    With `TEST_CITUS_URL` each is on that cluster.
    """
    if citus.URL:
        with citus.cluster() as cluster:
            yield lambda: Postgres(cluster.create(f"test_{os.getpid()}_{next(_numbers)}"))
        return
    template = _create_database(server, "")
    assert command("migrate", DATABASE_URL=template.url, JWT_SECRET=JWT_SECRET).returncode == 0
    (row,) = template.sql("SELECT current_database()::text AS name")
    yield lambda: _create_database(server, f"TEMPLATE {row['name']}")


def _create_database(server: EmbeddedServer, how: str) -> Postgres:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    Postgres(server.url).sql(f"CREATE DATABASE {name} {how}")
    return Postgres(server.url.replace("/postgres?", f"/{name}?"))


@pytest.fixture(scope="session")
def database(new_database: Callable[[], Postgres]) -> Postgres:
    """The database of the shared service."""
    return new_database()


@pytest.fixture(scope="session")
def service(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service that most tests share, limits on guessing off."""
    log = tmp_path_factory.mktemp("service") / "log"
    with running(log, DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET) as running_service:
        yield running_service


@pytest.fixture
def new_service(new_database: Callable[[], Postgres], tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Run a service with settings of its own, on a database of its own unless one is given."""
    with ExitStack() as stack:

        def run(*arguments: str, program: Sequence[str] = (), **settings: str) -> Service:
            settings = {"DATABASE_URL": "", "JWT_SECRET": JWT_SECRET, **settings}
            settings["DATABASE_URL"] = settings["DATABASE_URL"] or new_database().url
            log = tmp_path / f"log{next(_numbers)}"
            return stack.enter_context(running(log, *arguments, program=program, **settings))

        yield run


@pytest.fixture
def ada(service: Service) -> Iterator[Account]:
    """An account without tasks."""
    account = service.register(name="Ada")
    yield account
    account.client.close()


@pytest.fixture
def bob(service: Service) -> Iterator[Account]:
    """A second account without tasks."""
    account = service.register(name="Bob")
    yield account
    account.client.close()
