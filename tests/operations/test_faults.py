"""The database fails: acknowledged writes stay, others happen at most once, and no request gets stuck.

All tests share one service without a restart, which has recovered at the end of each test. On a cluster
(`TEST_CITUS_URL`) the coordinator's connections and network fail. Its server must not, because it is not of
these tests.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import asyncpg
import httpx2
import psutil
import pytest

from backend.database.embedded import EmbeddedServer, embedded_server
from backend.database.url import connect_arguments
from tests.conftest import Postgres
from tests.database import citus
from tests.operations.proxy import Loss, Proxy
from tests.operations.writers import at_work
from tests.programs import needs_own_server, needs_user_timeout, passable_directory
from tests.service import JWT_SECRET, PASSWORD, Account, Service, running, start
from tests.tasks.test_user_scoped import every_request
from tests.tokens import resigned
from tests.waiting import until

TIMEOUT_SECONDS, POOL_SIZE = 2, 5
SLACK_SECONDS = 4
"""Extra seconds for each response, on a machine that runs other tests as well."""
RECOVERY_SECONDS = 5 + SLACK_SECONDS
CLERKS = 6
OTHERS = (
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    " AND datname = current_database() AND application_name NOT LIKE 'citus%'"
)
"""The sessions of clients, without those among the nodes of a cluster."""

_numbers = count(1)


class Server:
    """A PostgreSQL for these tests alone, with durable writes; or a database of a Citus cluster."""

    def __init__(self, starting: Callable[[], AbstractContextManager[EmbeddedServer]] | None) -> None:
        self._starting = starting
        self._stack = ExitStack()
        self._server: EmbeddedServer
        self.url = self._stack.enter_context(citus.cluster()).create("faults") if starting is None else ""
        self.start()

    def start(self) -> None:
        """Start it, and wait until it takes connections. A cluster runs already."""
        if self._starting is not None:
            self._server = self._stack.enter_context(self._starting())
            self.url = self._server.url

    def end(self, how: signal.Signals) -> None:
        """End it: SIGINT is `pg_ctl stop`, SIGQUIT `pg_ctl stop -m immediate`."""
        postmaster = psutil.Process(self._server.pid)
        postmaster.send_signal(how)
        psutil.wait_procs([postmaster], 30)

    def close(self) -> None:
        """End it for good."""
        self._stack.close()

    def sql(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """Run one statement, past the proxy and the service."""
        return Postgres(self.url).sql(statement, *values)

    @contextmanager
    def sessions(self) -> Iterator["Sessions"]:
        """Open sessions past the service, which end with the block."""
        with asyncio.Runner() as runner:
            others = Sessions(runner, connect_arguments(self.url))
            yield others
            others.close()


@dataclass
class Sessions:
    """Connections of another client to the same server."""

    runner: asyncio.Runner
    arguments: dict[str, Any]
    connections: list[asyncpg.Connection] = field(default_factory=list)

    def open(self) -> None:
        """Open one more."""
        self.connections.append(self.runner.run(asyncpg.connect(**self.arguments)))

    def take_all(self) -> None:
        """Open as many as the server allows, and again in place of those that were just ending."""
        for _ in range(3):
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    self.open()
            time.sleep(0.2)

    def sql(self, statement: str) -> list[asyncpg.Record]:
        """Run one statement on the first, in the transaction that it may be in."""
        return self.runner.run(self.connections[0].fetch(statement))

    def close(self) -> None:
        """Close them all."""
        for connection in self.connections:
            self.runner.run(connection.close())
        self.connections.clear()


@dataclass
class Clerk:
    """A client that writes and reads all the time, and records the responses."""

    account: Account
    tasks: str
    refusal: int
    acknowledged: dict[str, int] = field(default_factory=dict)
    """The ids of the tasks, by title."""
    unacknowledged: list[str] = field(default_factory=list)
    reads: int = 0
    refused_reads: int = 0

    def work(self, is_over: Event) -> None:
        """Work until it is over; raises for a response that is neither a success nor an expected refusal."""
        while not is_over.is_set():
            self.write(f"Task {next(_numbers)}")
            for _ in range(2):
                self.read()

    def write(self, title: str) -> None:
        answer = self._ask("POST", self.tasks, json={"title": title})
        if answer.status_code == 201:
            self.acknowledged[title] = answer.json()["id"]
        else:
            self.unacknowledged.append(title)

    def read(self) -> None:
        title, task_id = next(reversed(self.acknowledged.items()), ("", 0))
        answer = self._ask("GET", f"{self.tasks}/{task_id}")
        self.reads += 1
        if answer.status_code == self.refusal:
            self.refused_reads += 1
        elif title:
            assert answer.json()["title"] == title

    def _ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        begun = time.monotonic()
        answer = self.account.client.request(method, path, **options)
        assert time.monotonic() - begun < TIMEOUT_SECONDS + SLACK_SECONDS
        if answer.is_error and answer.status_code != 404:
            assert_unavailable(answer, self.refusal)
        return answer


def assert_unavailable(answer: httpx2.Response, status: int = 503) -> None:
    """Assert that it is the error response for an unreachable database."""
    assert (answer.status_code, answer.json()["code"]) == (status, "database_unavailable"), answer.text
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


@dataclass
class Scene:
    """The service, its database, and the network between them."""

    server: Server
    proxy: Proxy
    service: Service

    def somebody(self) -> Account:
        """Return a new account whose client has a working connection."""
        return self.service.register()

    @contextmanager
    def clerks(self) -> Iterator[list[Clerk]]:
        """Let clerks work through the block, half of them on each surface, and check their records."""
        accounts = [self.somebody() for _ in range(CLERKS)]
        clerks = [
            Clerk(account, f"/api/{account.id}/tasks", 500) if number % 2 else Clerk(account, "/tasks", 503)
            for number, account in enumerate(accounts)
        ]
        with at_work(*(clerk.work for clerk in clerks)):
            yield clerks
        self.check_books(clerks)

    def check_books(self, clerks: list[Clerk]) -> None:
        """Assert that each acknowledged write exists once, and each other write at most once."""
        for clerk in clerks:
            rows = self.server.sql("SELECT id, title FROM tasks WHERE user_id = $1", clerk.account.id)
            found = Counter(row["title"] for row in rows)
            assert {*found.values()} == {1}
            assert clerk.acknowledged.keys() <= found.keys()
            assert found.keys() <= clerk.acknowledged.keys() | {*clerk.unacknowledged}
            assert clerk.acknowledged.items() <= {row["title"]: row["id"] for row in rows}.items()

    def terminate_all(self) -> None:
        """Make the server end every connection, as on a failover."""
        for row in self.server.sql(OTHERS):
            self.server.sql("SELECT pg_terminate_backend($1::int)", row["pid"])

    def wait_for_no_connections(self) -> None:
        """Wait until the service has seen that all its connections are gone."""
        process = psutil.Process(self.service.process.pid)
        until(lambda: not any(c.raddr and c.raddr.port == self.proxy.port for c in process.net_connections()))


@contextmanager
def staged(
    directory: Path, log: Path, options: Mapping[str, str], *, on_cluster: bool = False, **settings: str
) -> Iterator[Scene]:
    """Run the service, its database and the proxy for the length of the block."""
    starting = None if on_cluster else partial(embedded_server, directory, options)
    with closing(Server(starting)) as server, closing(Proxy.before(server.url)) as proxy:
        settings = {"DATABASE_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS), **settings}
        with running(log, DATABASE_URL=proxy.url, JWT_SECRET=JWT_SECRET, **settings) as service:
            yield Scene(server, proxy, service)


@pytest.fixture(scope="module")
def shared_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One scene for all tests, with so few connections that requests wait for them."""
    log, options = tmp_path_factory.mktemp("faults") / "log", {"max_connections": "20"}
    with (
        passable_directory() as directory,
        staged(
            directory, log, options, on_cluster=bool(citus.URL), DATABASE_POOL_SIZE=str(POOL_SIZE)
        ) as scene,
    ):
        yield scene


@pytest.fixture
def scene(shared_scene: Scene) -> Iterator[Scene]:
    """The shared scene. After each test it must work again, with no unexpected line in the log."""
    yield shared_scene
    shared_scene.proxy.forget()
    shared_scene.server.start()
    ready = shared_scene.service.client()
    until(lambda: ready.get("/health/ready").status_code == 200, RECOVERY_SECONDS)
    shared_scene.somebody().create()
    errors = shared_scene.service.lines(level="ERROR")
    assert [line for line in errors if line["event"] != "http.request"] == []


def each_writes(clerks: list[Clerk], *, times: int = 1, seconds: float = 30) -> None:
    """Wait until each clerk has had so many more writes acknowledged."""
    goals = [len(clerk.acknowledged) + times for clerk in clerks]
    until(lambda: all(len(c.acknowledged) >= goal for c, goal in zip(clerks, goals, strict=True)), seconds)


def each_is_refused(clerks: list[Clerk]) -> None:
    """Wait until each clerk has got the error for an unreachable database."""
    known = [len(clerk.unacknowledged) for clerk in clerks]
    until(lambda: all(len(c.unacknowledged) > n for c, n in zip(clerks, known, strict=True)))


def assert_alive_but_not_ready(scene: Scene, account: Account) -> None:
    """Assert that requests without need of the database get their responses at once."""
    client = scene.service.client()
    dead = resigned(account.tokens["access_token"], exp=int(time.time()) - 1)
    begun = time.monotonic()
    assert client.get("/health").status_code == 200
    for path in ("/tasks", f"/api/{account.id}/tasks", "/auth/me"):
        for token, code in (("a.b.c", "invalid_token"), (dead, "token_expired")):
            refused = client.get(path, headers={"Authorization": f"Bearer {token}"})
            assert (refused.status_code, refused.json()["code"]) == (401, code)
    assert time.monotonic() - begun < TIMEOUT_SECONDS + SLACK_SECONDS
    assert_unavailable(client.get("/health/ready"))


# The server


@needs_own_server
def test_a_database_that_cannot_be_reached_is_503_and_500_where_the_user_is_in_the_path(scene: Scene) -> None:
    """`Retry-After` on both; a token that has expired is 401 all the same."""
    account = scene.somebody()
    expired = scene.service.client(resigned(account.tokens["access_token"], exp=int(time.time()) - 1))
    scene.server.end(signal.SIGINT)
    for surface, status in (("/tasks", 503), (f"/api/{account.id}/tasks", 500)):
        for method, url, options in every_request(surface, 1):
            assert expired.request(method, url, **options).status_code == 401
            assert_unavailable(account.client.request(method, url, **options), status)


@needs_own_server
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_each_acknowledged_write_is_there_once_however_the_database_ends(
    scene: Scene, how: signal.Signals
) -> None:
    """A fast stop, an immediate stop and a kill. The service recovers by itself."""
    with scene.clerks() as clerks:
        each_writes(clerks, times=3)
        scene.server.end(how)
        each_is_refused(clerks)
        assert_alive_but_not_ready(scene, clerks[0].account)
        scene.server.start()
        each_writes(clerks, seconds=RECOVERY_SECONDS)
        each_writes(clerks, times=3)


@needs_own_server
def test_it_survives_a_crash_of_the_server_that_mends_itself(scene: Scene) -> None:
    """After one backend is killed PostgreSQL ends all others, recovers, and refuses connections meanwhile."""
    with scene.clerks() as clerks:
        each_writes(clerks)
        victims = [row["pid"] for row in scene.server.sql(OTHERS)]
        os.kill(victims[0], signal.SIGKILL)
        until(lambda: not any(psutil.pid_exists(pid) for pid in victims))
        each_writes(clerks, times=3)


def test_no_read_fails_when_the_server_ends_every_connection(scene: Scene) -> None:
    with scene.clerks() as clerks:
        for _ in range(8):
            scene.terminate_all()
            goals = [clerk.reads + 4 for clerk in clerks]
            until(lambda: all(c.reads >= goal for c, goal in zip(clerks, goals, strict=True)))  # noqa: B023
        each_writes(clerks)
    assert [clerk.refused_reads for clerk in clerks] == [0] * CLERKS


@needs_own_server
def test_connections_that_the_server_cut_while_they_were_idle_cost_no_request(scene: Scene) -> None:
    account = scene.somebody()
    scene.server.sql("ALTER SYSTEM SET idle_session_timeout = '1s'")
    scene.server.sql("SELECT pg_reload_conf()")
    scene.terminate_all()
    try:
        for _ in range(3):
            scene.wait_for_no_connections()
            account.create()
    finally:
        scene.server.sql("ALTER SYSTEM RESET idle_session_timeout")
        scene.server.sql("SELECT pg_reload_conf()")
    assert len(account.client.get("/tasks").json()) == 3


@needs_own_server
def test_a_server_out_of_connections_is_one_that_cannot_be_reached_until_it_has_some(scene: Scene) -> None:
    account = scene.somebody()
    with scene.server.sessions() as others:
        scene.terminate_all()
        scene.wait_for_no_connections()
        others.take_all()
        assert_unavailable(account.client.post("/tasks", json={"title": "Not now"}))
        assert_unavailable(account.client.get(f"/api/{account.id}/tasks"), 500)
        assert_alive_but_not_ready(scene, account)
    with scene.clerks() as clerks:
        each_writes(clerks, seconds=RECOVERY_SECONDS)
    assert account.client.get("/tasks").json() == []


def test_a_statement_that_takes_too_long_is_given_up_and_does_not_pile_up_on_the_server(
    scene: Scene,
) -> None:
    """A lock makes it slow. A refused write is not done a second time after the lock is gone."""
    scene.terminate_all()  # the server still has sessions of connections that went silent in another test
    scene.wait_for_no_connections()
    with scene.clerks() as clerks:
        each_writes(clerks)
        with scene.server.sessions() as other:
            other.open()
            other.sql("BEGIN")
            other.sql("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
            for _ in range(2):
                each_is_refused(clerks)
                assert len(other.sql(OTHERS)) <= POOL_SIZE
        each_writes(clerks, seconds=RECOVERY_SECONDS)


# The network


@pytest.mark.parametrize("returns", [Proxy.heal, Proxy.forget])
def test_a_network_that_falls_silent_stops_nothing_for_longer_than_the_timeout(
    scene: Scene, returns: Callable[[Proxy], None]
) -> None:
    """In one case the network delivers late, in the other the old connections stay dead."""
    with scene.clerks() as clerks:
        each_writes(clerks)
        scene.proxy.fall_silent()
        each_is_refused(clerks)
        assert_alive_but_not_ready(scene, clerks[0].account)
        returns(scene.proxy)
        each_writes(clerks, seconds=RECOVERY_SECONDS)


@needs_user_timeout
def test_a_read_on_a_connection_whose_packets_are_dropped_succeeds_on_another(
    scene: Scene, tmp_path: Path
) -> None:
    """A router may forget a connection. The timeout is the default one."""
    with running(tmp_path / "log", DATABASE_URL=scene.proxy.url, JWT_SECRET=JWT_SECRET) as service:
        account = service.register()
        task = account.create()
        scene.proxy.drop_packets()
        scene.proxy.accept_connections()
        assert account.client.get("/tasks").json() == [task]
        account.create()


@pytest.mark.parametrize("loss", [Loss.CUT_BEFORE, Loss.CUT_AFTER])
def test_a_write_whose_answer_is_lost_is_refused_and_never_sent_again(scene: Scene, loss: Loss) -> None:
    account = scene.somebody()
    for tasks, status in (("/tasks", 503), (f"/api/{account.id}/tasks", 500)):
        title = f"Task {next(_numbers)}"
        scene.proxy.lose(title.encode(), loss)
        assert_unavailable(account.client.post(tasks, json={"title": title}), status)
        assert scene.proxy.lost.is_set()
        (found,) = scene.server.sql("SELECT count(*) FROM tasks WHERE title = $1", title)
        assert found["count"] == (loss is Loss.CUT_AFTER)


def test_a_toggle_whose_answer_is_lost_is_not_undone_by_another(scene: Scene) -> None:
    account = scene.somebody()
    task = account.create()
    scene.proxy.lose(task["id"].to_bytes(8, "big"), Loss.CUT_AFTER)
    assert_unavailable(account.client.patch(f"/tasks/{task['id']}/complete"))
    assert account.client.get(f"/tasks/{task['id']}").json()["completed"]


@pytest.mark.parametrize("loss", [Loss.CUT_BEFORE, Loss.CUT_AFTER])
def test_a_read_whose_answer_is_lost_is_sent_again(scene: Scene, loss: Loss) -> None:
    account = scene.somebody()
    task = account.create()
    for path, expected in (("/tasks", [task]), (f"/api/{account.id}/tasks/{task['id']}", task)):
        scene.proxy.lose(account.id.encode(), loss)
        assert account.client.get(path).json() == expected
        assert scene.proxy.lost.is_set()


@pytest.mark.parametrize("marker", [b"BEGIN", b"FOR NO KEY UPDATE", b"COMMIT"])
def test_a_transaction_on_a_network_that_falls_silent_ends_in_time_too(scene: Scene, marker: bytes) -> None:
    """The server ends it too, so that no lock keeps the user from signing in."""
    account = scene.somebody()
    scene.terminate_all()
    scene.wait_for_no_connections()
    scene.proxy.lose(marker, Loss.SILENCE)
    data = {"current_password": PASSWORD, "new_password": f"{PASSWORD}, anew"}
    begun = time.monotonic()
    assert_unavailable(account.client.post("/auth/password", json=data))
    assert scene.proxy.lost.is_set()
    assert time.monotonic() - begun < TIMEOUT_SECONDS + SLACK_SECONDS
    scene.proxy.forget()
    credentials = {"email": account.email, "password": PASSWORD}
    client = scene.service.client()
    until(lambda: client.post("/auth/login", json=credentials).status_code == 200, RECOVERY_SECONDS)


# The disk


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A small file system."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root can mount a small disk, and only Linux has tmpfs")
    with passable_directory(prefix="disk-") as directory:
        mounted = ["mount", "-t", "tmpfs", "-o", "size=120m,mode=755", "tmpfs", str(directory)]
        if subprocess.run(mounted, check=False, capture_output=True).returncode:
            pytest.skip("this container may not mount")
        try:
            yield directory
        finally:
            subprocess.run(["umount", directory], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on it, and return the file to delete."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
    assert shutil.disk_usage(disk).free == 0
    return ballast


@needs_own_server
def test_a_full_disk_is_a_database_that_cannot_be_reached_until_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    """Reads go on meanwhile, and refused writes leave nothing behind."""
    options = {"max_wal_size": "32MB", "min_wal_size": "32MB"}
    with staged(small_disk, tmp_path / "log", options) as scene, scene.clerks() as clerks:
        each_writes(clerks)
        ballast = fill(small_disk)
        each_is_refused(clerks)
        assert scene.service.client().get("/health/ready").status_code == 200
        goals = [clerk.reads + 4 for clerk in clerks]
        until(lambda: all(c.reads >= goal for c, goal in zip(clerks, goals, strict=True)))
        ballast.unlink()
        each_writes(clerks, times=3, seconds=RECOVERY_SECONDS)
    assert [clerk.refused_reads for clerk in clerks] == [0] * CLERKS


# The start


def test_a_database_that_goes_away_while_the_service_starts_is_waited_for(
    scene: Scene, tmp_path: Path
) -> None:
    """The server falls silent after the connection is made, when the first statement arrives."""
    scene.proxy.lose(b"alembic_version", Loss.CUT_BEFORE)
    with running(tmp_path / "log", DATABASE_URL=scene.proxy.url, JWT_SECRET=JWT_SECRET) as service:
        assert scene.proxy.lost.is_set()
        (line,) = service.lines(level="WARNING")
        assert "the database cannot be reached" in line["event"]


def test_a_database_that_falls_silent_while_the_service_starts_ends_it_with_one_line(
    scene: Scene, tmp_path: Path
) -> None:
    scene.proxy.lose(b"alembic_version", Loss.SILENCE)
    settings = {"DATABASE_URL": scene.proxy.url, "JWT_SECRET": JWT_SECRET}
    service = start(tmp_path / "log", **settings, DATABASE_START_TIMEOUT_SECONDS="1")
    try:
        assert service.process.wait(30) == 1
    finally:
        service.process.kill()
    (line,) = [line for line in service.log.read_text().splitlines() if not line.startswith("{")]
    assert line.startswith("tasks-api: DATABASE_URL: the database cannot be reached: ")
