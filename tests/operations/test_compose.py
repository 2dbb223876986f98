"""The role that docker-compose.yml makes for the service, on a real PostgreSQL."""

import asyncio
import re
import subprocess
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from backend.database.embedded import EmbeddedServer, embedded_server
from backend.database.embedded.place import binaries
from tests.programs import passable_directory
from tests.service import JWT_SECRET, ROOT, Service, free_port, running

PASSWORD = 'it\'s "odd" $HOME \\ %'


def role_sql() -> str:
    (block,) = re.findall(r"ROLE_SQL: \|\n((?: {8}.*\n)+)", (ROOT / "docker-compose.yml").read_text())
    return textwrap.dedent(block)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server as the official image makes it: `postgres` with a password, a database, and then the SQL."""
    port = free_port()
    with passable_directory(prefix="compose-") as directory:
        access = directory / "pg_hba.conf"
        access.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        access.chmod(0o644)
        options = {"listen_addresses": "127.0.0.1", "port": str(port), "hba_file": str(access)}
        with embedded_server(directory / "data", {**options, "fsync": "off"}) as server:
            initialise(server, port)
            yield port


def initialise(server: EmbeddedServer, port: int) -> None:
    psql: list[str | Path] = [binaries() / "psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-U", "postgres"]
    psql += ["-h", str(server.data_dir.parent), "-p", str(port)]
    environment = {"POSTGRES_PASSWORD": PASSWORD}
    prepare = "\\getenv password POSTGRES_PASSWORD\nALTER ROLE postgres PASSWORD :'password';"
    for database, sql in (("postgres", f"{prepare}\nCREATE DATABASE tasks;"), ("tasks", role_sql())):
        subprocess.run([*psql, "-d", database], input=sql, env=environment, text=True, check=True)


async def connected(port: int, user: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        host="127.0.0.1", port=port, user=user, password=PASSWORD, database="tasks", ssl=False
    )


def refused(port: int, statement: str) -> bool:
    async def attempt() -> None:
        connection = await connected(port, "tasks")
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    with suppress(asyncpg.InsufficientPrivilegeError):
        asyncio.run(attempt())
        return False
    return True


@pytest.fixture
def service(port: int, tmp_path: Path) -> Iterator[Service]:
    url = f"postgresql://tasks@127.0.0.1:{port}/tasks?sslmode=disable"
    with running(tmp_path / "log", DATABASE_URL=url, PGPASSWORD=PASSWORD, JWT_SECRET=JWT_SECRET) as service:
        yield service


def test_the_service_migrates_and_runs_as_the_role_of_compose(service: Service) -> None:
    service.register().create()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE DATABASE another",
        "CREATE ROLE another",
        "CREATE SCHEMA another",
        "CREATE TEMPORARY TABLE another ()",
        "COPY (SELECT 1) TO PROGRAM 'cat'",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT * FROM pg_authid",
        "SET ROLE postgres",
    ],
)
def test_the_role_of_compose_may_do_nothing_beyond_its_schema(port: int, statement: str) -> None:
    assert refused(port, statement)


def test_the_role_of_compose_owns_just_its_schema(port: int) -> None:
    async def owned() -> list[str]:
        connection = await connected(port, "tasks")
        try:
            schemas = "SELECT nspname::text FROM pg_namespace WHERE pg_get_userbyid(nspowner) = 'tasks'"
            databases = "SELECT datname::text FROM pg_database WHERE pg_get_userbyid(datdba) = 'tasks'"
            return [row[0] for row in await connection.fetch(f"{schemas} UNION ALL {databases}")]
        finally:
            await connection.close()

    assert asyncio.run(owned()) == ["public"]


def test_the_superuser_of_compose_can_not_log_in_over_the_network(port: int) -> None:
    async def attempt() -> None:
        await (await connected(port, "postgres")).close()

    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(attempt())
