"""Several hosts in one URL: the host that gets the connection, and the delay that the others may cause."""

import asyncio
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import column, insert, select, table

from backend.database import Database, Statement, UnreachableError
from backend.database.embedded import EmbeddedServer
from backend.database.hosts import Hosts
from backend.database.revision import SchemaError, is_current
from backend.database.url import connect_arguments
from backend.settings import Settings
from tests.operations.replication import Cluster, Node, replicated
from tests.programs import needs_silent_queues
from tests.service import JWT_SECRET, free_port

NOTES = table("notes", column("number"))
WRITE, READ = Statement(insert(NOTES).values(number=1)), Statement(select(NOTES.c.number))
AT_ONCE = 3
"""The most seconds that an answering host takes on a busy machine."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with replicated() as nodes:
        nodes.primary.database().sql("CREATE TABLE notes (number int)")
        yield nodes


@contextmanager
def silence(*, accepts: bool) -> Iterator[int]:
    """Yield a port that never answers: the connection is made and nothing comes, or not even that."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100 if accepts else 0)
        for _ in range(0 if accepts else 3):  # one fills the queue, and then packets are dropped
            client = stack.enter_context(socket.socket())
            client.setblocking(False)  # noqa: FBT003  # Python's own signature
            with suppress(BlockingIOError):
                client.connect(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[int]:
    with silence(accepts=True) as port:
        yield port


def hosts_of(url: str, seconds: float = 8) -> Hosts:
    return Hosts(connect_arguments(url), seconds=seconds)


async def port_of(hosts: Hosts) -> tuple[int, float]:
    """Connect; return the port of the chosen host, and the seconds that it took."""
    start = time.monotonic()
    connection = await hosts.connect()
    try:
        return await connection.fetchval("SHOW port"), time.monotonic() - start
    finally:
        await connection.close()


def came_to(node: Node, found: tuple[int, float], after: float = 0) -> bool:
    port, seconds = found
    return int(port) == node.port and after <= seconds < after + AT_ONCE


# One attempt


@pytest.mark.parametrize(
    ("attributes", "first", "expected"),
    [
        ("any", "standby", "standby"),
        ("read-write", "standby", "primary"),
        ("primary", "standby", "primary"),
        ("standby", "primary", "standby"),
        ("read-only", "primary", "standby"),
        ("prefer-standby", "primary", "primary"),
    ],
)
def test_the_first_host_that_has_the_attributes_is_taken(
    cluster: Cluster, attributes: str, first: str, expected: str
) -> None:
    nodes = [cluster.primary.port, cluster.standby.port]
    nodes.sort(key=lambda port: port != getattr(cluster, first).port)
    url = cluster.url(free_port(), *nodes, target_session_attrs=attributes)
    assert came_to(getattr(cluster, expected), asyncio.run(port_of(hosts_of(url))))


@pytest.mark.parametrize("accepts", [True, pytest.param(False, marks=needs_silent_queues)])
def test_a_silent_host_delays_the_next_by_its_share_of_the_time(cluster: Cluster, accepts: bool) -> None:
    with silence(accepts=accepts) as silent:
        nodes = (silent, cluster.standby.port, cluster.primary.port)
        url = cluster.url(*nodes, target_session_attrs="read-write")
        assert came_to(cluster.primary, asyncio.run(port_of(hosts_of(url, seconds=9))), after=3)


def test_connect_timeout_is_of_each_host(silent: int, cluster: Cluster) -> None:
    """The timeout applies to each host, as in libpq. Without it each host has 30 seconds."""
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no answer.*no answer"):
        asyncio.run(port_of(hosts_of(cluster.url(silent, silent, connect_timeout="2"), seconds=60)))
    assert 2 <= time.monotonic() - start < 4 + AT_ONCE


def test_a_host_that_refuses_us_is_passed_over(cluster: Cluster, server: EmbeddedServer) -> None:
    """The other host answers but lacks the database, as a new machine does."""
    other = quote(str(server.data_dir.parent), safe="")
    url = cluster.url(cluster.primary.port).replace("@", f"@{other}:5432,")
    assert came_to(cluster.primary, asyncio.run(port_of(hosts_of(url))))


def test_one_error_names_every_host_in_time(cluster: Cluster, silent: int) -> None:
    dead, standby = free_port(), cluster.standby.port
    url = cluster.url(silent, dead, standby, target_session_attrs="read-write")
    start = time.monotonic()
    with pytest.raises(ConnectionError) as raised:
        asyncio.run(port_of(hosts_of(url, seconds=6)))
    assert time.monotonic() - start < 6
    assert re.fullmatch(
        f"127.0.0.1:{silent}: no answer; 127.0.0.1:{dead}: connect call failed .*; "
        f"127.0.0.1:{standby}: not what target_session_attrs asks for",
        str(raised.value),
    )


def test_a_single_host_has_all_of_the_time(cluster: Cluster, silent: int) -> None:
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="no answer"):
        asyncio.run(port_of(hosts_of(cluster.url(silent), seconds=1)))
    assert 1 <= time.monotonic() - start < 1 + AT_ONCE
    with pytest.raises(ConnectionError, match='database "others" does not exist'):
        asyncio.run(port_of(hosts_of(cluster.url(cluster.primary.port).replace("/tasks", "/others"))))


def test_each_host_gets_its_own_password_of_the_password_file(tmp_path: Path) -> None:
    """The file of libpq's documentation, section "The Password File"; the first host is down."""
    sent = list[bytes]()

    async def ask_for_password(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(4), "big")
        await reader.readexactly(size - 4)
        writer.write(b"R" + struct.pack("!II", 8, 3))  # in clear text
        _, size = struct.unpack("!cI", await reader.readexactly(5))
        sent.append(await reader.readexactly(size - 4))
        writer.close()

    async def connect() -> None:
        async with await asyncio.start_server(ask_for_password, "127.0.0.1", 0) as server:
            ports = (free_port(), server.sockets[0].getsockname()[1])
            file = tmp_path / "passwords"
            file.write_text("".join(f"127.0.0.1:{port}:*:*:of {port}\n" for port in ports))
            file.chmod(0o600)
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
            with pytest.raises(ConnectionError):
                await hosts_of(f"postgresql://ada@{hosts}/d?sslmode=disable&passfile={file}").connect()
            assert sent == [f"of {ports[1]}\0".encode()]

    asyncio.run(connect())


# The order of the next


def test_the_host_that_was_good_last_time_is_tried_first(cluster: Cluster, silent: int) -> None:
    hosts = hosts_of(cluster.url(silent, cluster.primary.port), seconds=8)

    async def connect_twice() -> None:
        assert came_to(cluster.primary, await port_of(hosts), after=4)
        assert came_to(cluster.primary, await port_of(hosts))

    asyncio.run(connect_twice())


def test_a_promotion_is_noticed_while_the_old_primary_is_silent(silent: int) -> None:
    with replicated() as nodes:
        hosts = hosts_of(nodes.url(silent, nodes.standby.port, target_session_attrs="read-write"))

        async def connect_and_promote() -> None:
            with pytest.raises(ConnectionError):
                await hosts.connect()
            await asyncio.to_thread(nodes.standby.promote)
            assert came_to(nodes.standby, await port_of(hosts))

        asyncio.run(connect_and_promote())


def test_a_host_that_fell_silent_is_tried_after_the_others(cluster: Cluster) -> None:
    hosts = hosts_of(cluster.url())

    async def doubt() -> None:
        connection = await hosts.connect()
        for _ in range(2):  # as many statements as failed on it
            hosts.put_last(connection.address)
        await connection.close()
        assert came_to(cluster.standby, await port_of(hosts))

    asyncio.run(doubt())


# The service with several hosts


def database(url: str, seconds: float) -> Database:
    return Database(
        Settings(database_url=url, jwt_secret=JWT_SECRET, database_timeout_seconds=seconds, _env_file=None)
    )


def test_a_write_reaches_the_primary_where_the_url_names_the_standby_first(cluster: Cluster) -> None:
    """The URL does not set target_session_attrs."""

    async def write() -> None:
        async with database(cluster.url(cluster.standby.port, cluster.primary.port), 5) as opened:
            before = len(await opened.all(READ))
            await opened.all(WRITE)
            assert len(await opened.all(READ)) > before

    asyncio.run(write())


def test_a_write_reaches_a_primary_that_takes_longer_to_answer_than_its_standby(cluster: Cluster) -> None:
    """A remote primary answers later, and so does one that starts on demand."""

    async def pass_on_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2)
        ours, theirs = await asyncio.open_connection("127.0.0.1", cluster.primary.port)
        await asyncio.gather(copy(reader, theirs), copy(ours, writer))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def write() -> None:
        async with await asyncio.start_server(pass_on_late, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with database(cluster.url(port, cluster.standby.port), 10) as opened:
                await asyncio.gather(*(opened.all(WRITE) for _ in range(5)))

    asyncio.run(write())


def test_without_a_host_it_is_an_unreachable_database_in_time(cluster: Cluster, silent: int) -> None:
    url = cluster.url(silent, cluster.standby.port, free_port(), target_session_attrs="read-write")

    async def read() -> None:
        async with database(url, 1) as opened:
            with pytest.raises(UnreachableError):
                await opened.all(READ)

    start = time.monotonic()
    asyncio.run(read())
    assert time.monotonic() - start < 1 + AT_ONCE


def test_a_start_passes_a_silent_host_over_too(cluster: Cluster, silent: int) -> None:
    url = cluster.url(silent, cluster.primary.port, connect_timeout="2")
    assert asyncio.run(is_current(url)) is False
    with pytest.raises(
        SchemaError, match=f"^DATABASE_URL: .*127.0.0.1:{silent}: no answer; .*{cluster.standby.port}: not "
    ):
        asyncio.run(
            is_current(
                cluster.url(silent, cluster.standby.port, connect_timeout="2", target_session_attrs="primary")
            )
        )
