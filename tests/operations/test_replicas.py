"""Several processes behind HAProxy are one service: they share PostgreSQL and Redis, and nothing else."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.conftest import Postgres
from tests.operations.haproxy import balanced
from tests.operations.writers import NO_ANSWER, check_books, wait_for_writes, writing
from tests.programs import needs_loopback_addresses
from tests.service import JWT_SECRET, PASSWORD, Service, running
from tests.test_rate_limits import Redis
from tests.waiting import until

REPLICAS, WRITERS, TASKS_EACH_TIME = 3, 6, 5
HOME, ELSEWHERE = "127.0.0.5", "127.0.0.6"


@pytest.fixture(scope="module")
def database(new_database: Callable[[], Postgres]) -> Postgres:
    return new_database()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replicas")


@pytest.fixture(scope="module")
def shared(database: Postgres, directory: Path) -> Iterator[dict[str, str]]:
    """The settings of every replica, which trusts a proxy on this machine; with the Redis that they name."""
    server = Redis(directory)
    try:
        server.start()
        yield {
            "DATABASE_URL": database.url,
            "JWT_SECRET": JWT_SECRET,
            "RATE_LIMIT_ENABLED": "true",
            "RATE_LIMIT_STORAGE_URI": server.url,
            "FORWARDED_ALLOW_IPS": "127.0.0.1",
        }
    finally:
        server.kill()
        server.client.close()


@pytest.fixture(scope="module")
def replicas(shared: dict[str, str], directory: Path) -> Iterator[list[Service]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running(directory / f"log{n}", **shared)) for n in range(REPLICAS)]


@pytest.fixture(scope="module")
def proxy(replicas: list[Service], directory: Path) -> Iterator[Service]:
    with balanced(replicas, directory) as running_proxy:
        yield running_proxy


def wrote(service: Service) -> bool:
    return bool(service.lines(event="task.created"))


def at(address: str) -> httpx2.HTTPTransport:
    """Return a way to the service for a client that really is at `address`."""
    return httpx2.HTTPTransport(local_address=address)


def test_a_session_that_ends_on_one_replica_is_dead_on_all_at_once(
    replicas: list[Service], proxy: Service
) -> None:
    """R4: sign-out and a change of password, seen by the very next request anywhere."""
    for path, body in (
        ("/auth/logout", None),
        ("/auth/password", {"current_password": PASSWORD, "new_password": "q7 Zp!x0 new"}),
    ):
        account = proxy.register()
        credentials = {"email": account.email, "password": PASSWORD}
        other = proxy.client().post("/auth/login", json=credentials).raise_for_status().json()
        ended = account.tokens if body is None else other
        clients = [service.client(ended["access_token"]) for service in (*replicas, proxy)]
        assert [client.get("/tasks").status_code for client in clients] == [200] * (REPLICAS + 1)
        ending = replicas[0].client(account.tokens["access_token"])
        assert ending.post(path, json=body).is_success
        assert [client.get("/tasks").status_code for client in clients] == [401] * (REPLICAS + 1)


@needs_loopback_addresses
def test_wrong_guesses_count_across_replicas(replicas: list[Service], proxy: Service) -> None:
    """After ten guesses at any replicas, every replica refuses more. The owner can sign in from home."""
    home = proxy.client(transport=at(HOME))
    credentials = {"email": "owner@example.com", "password": PASSWORD}
    home.post("/auth/register", json=credentials).raise_for_status()
    wrong = {**credentials, "password": "a wrong password"}
    guesser = proxy.client(transport=at(ELSEWHERE))
    assert [guesser.post("/auth/login", json=wrong).status_code for _ in range(12)] == [401] * 10 + [429] * 2
    assert all(service.lines(event="auth.login_failed", ip=ELSEWHERE) for service in replicas)
    for service in replicas:
        direct = service.client(headers={"X-Forwarded-For": ELSEWHERE})
        assert direct.post("/auth/login", json=wrong).status_code == 429
    assert home.post("/auth/login", json=credentials).status_code == 200


@needs_loopback_addresses
def test_the_log_has_the_address_that_haproxy_saw(replicas: list[Service], proxy: Service) -> None:
    """The log has neither HAProxy's address nor the address that the client claims."""
    client = proxy.client(transport=at(HOME), headers={"X-Forwarded-For": "192.0.2.1"})
    ids = [client.get("/tasks").headers["X-Request-ID"] for _ in range(REPLICAS)]
    lines = [service.lines(event="http.request", path=None) for service in replicas]
    seen = {line["request_id"]: line["ip"] for found in lines for line in found}
    assert [seen[request_id] for request_id in ids] == [HOME] * REPLICAS


def test_a_rolling_restart_of_every_process_under_load_fails_no_request(
    shared: dict[str, str], new_database: Callable[[], Postgres], tmp_path: Path
) -> None:
    database = new_database()
    settings = shared | {"DATABASE_URL": database.url, "SHUTDOWN_DRAIN_SECONDS": "5"}
    with ExitStack() as stack:
        old = [stack.enter_context(running(tmp_path / f"old{n}", **settings)) for n in range(2)]
        proxy = stack.enter_context(balanced(old, tmp_path))
        with writing([proxy.register() for _ in range(WRITERS)]) as writers:
            for replica in old:
                wait_for_writes(writers, TASKS_EACH_TIME, since=time.monotonic())
                assert replica.stop() == 0
                port = replica.url.rpartition(":")[2]
                new = stack.enter_context(running(tmp_path / f"log{port}", **settings, PORT=port))
                until(partial(wrote, new))
    assert [writer.refusals for writer in writers] == [[]] * WRITERS
    check_books(writers, database)


def test_a_killed_replica_takes_no_more_with_it_than_what_it_was_answering(
    replicas: list[Service], shared: dict[str, str], database: Postgres, tmp_path: Path
) -> None:
    """A client loses the request that was answered, which HAProxy answers with 502 or closes (RFC 9112).

    It may lose one more, because the kernel closes the sockets of the killed process one after another.
    """
    with (
        running(tmp_path / "log", **shared) as doomed,
        balanced([doomed, *replicas], tmp_path) as proxy,
    ):
        accounts = [proxy.register() for _ in range(WRITERS)]
        for account in accounts:
            account.client.event_hooks = {}  # an answer of HAProxy's own is none that the service documents
        with writing(accounts) as writers:
            wait_for_writes(writers, TASKS_EACH_TIME)
            doomed.process.kill()
            wait_for_writes(writers, TASKS_EACH_TIME, since=time.monotonic())
    assert doomed.lines(event="task.created")
    assert {status for writer in writers for status in writer.refusals} <= {502, NO_ANSWER}
    assert max(len(writer.refusals) for writer in writers) <= 2
    check_books(writers, database)
