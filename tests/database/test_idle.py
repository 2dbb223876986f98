"""An idle service sends nothing to the database, so that a serverless one, such as Neon's, suspends."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from backend.database.embedded import EmbeddedServer
from tests.conftest import Postgres
from tests.service import Account, Service
from tests.tasks.test_concurrency import at_once

IDLE_SECONDS = 1
SPARE_SECONDS = 15
"""Extra seconds for a machine that runs other tests as well."""
PROBED_SECONDS = 1.5

Connections = list[dict[str, Any]]


@pytest.fixture
def quiet(new_database: Callable[[], Postgres]) -> Postgres:
    return new_database()


@pytest.fixture
def sleepy(new_service: Callable[..., Service], quiet: Postgres) -> Service:
    """A service that closes idle connections after a second."""
    return new_service(DATABASE_URL=quiet.url, DATABASE_IDLE_SECONDS=str(IDLE_SECONDS), WORKERS="2")


def connections(server: Postgres, database: Postgres) -> Connections:
    """Return the last statement of each connection to a database and its time, read over another database."""
    name = database.url.partition("?")[0].rpartition("/")[2]
    return server.sql(
        "SELECT pid, query, query_start, state_change FROM pg_stat_activity"
        " WHERE datname = $1 AND backend_type = 'client backend' ORDER BY pid",
        name,
    )


def ever_opened(server: Postgres, database: Postgres) -> int:
    """Return the number of connections that clients have made to a database so far."""
    name = database.url.partition("?")[0].rpartition("/")[2]
    (row,) = server.sql("SELECT sessions FROM pg_stat_database WHERE datname = $1", name)
    return int(row["sessions"])


def probe(service: Service, seconds: float) -> None:
    """Send the requests of orchestrators, scrapers and browsers for so many seconds."""
    client, deadline = service.client(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in ("/health", "/metrics", "/docs", "/openapi.json", "/nowhere"):
            assert client.get(path).status_code in {200, 404}
        assert client.get("/tasks").status_code == 401
        time.sleep(0.1)


def until_none_is_left(server: Postgres, database: Postgres, seconds: float) -> Connections:
    deadline = time.monotonic() + seconds
    while (found := connections(server, database)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_an_idle_service_holds_no_connection_and_makes_none_until_there_is_work(
    server: EmbeddedServer, quiet: Postgres, sleepy: Service
) -> None:
    """The service has several processes."""
    outside = Postgres(server.url)
    users = [sleepy.register() for _ in range(8)]
    answers = at_once(*(partial(user.client.get, "/tasks") for user in users * 2))
    assert {answer.status_code for answer in answers} == {200}
    assert until_none_is_left(outside, quiet, IDLE_SECONDS + SPARE_SECONDS) == []
    opened = ever_opened(outside, quiet)
    assert opened > 0
    probe(sleepy, PROBED_SECONDS)
    assert (connections(outside, quiet), ever_opened(outside, quiet)) == ([], opened)

    answers = at_once(*(partial(user.client.post, "/tasks", json={"title": "Awake"}) for user in users))
    assert {answer.status_code for answer in answers} == {201}


def test_a_connection_that_waits_for_work_is_sent_nothing(
    server: EmbeddedServer, service: Service, database: Postgres, ada: Account
) -> None:
    """The pool sends no ping and no reset."""
    ada.create()
    before = connections(Postgres(server.url), database)
    probe(service, PROBED_SECONDS)
    after = connections(Postgres(server.url), database)
    assert after
    assert [connection for connection in after if connection not in before] == []


def test_a_database_that_went_to_sleep_by_itself_takes_the_first_write(
    server: EmbeddedServer, database: Postgres, ada: Account
) -> None:
    """The suspended database closed the connections, and a write is never sent twice."""
    outside = Postgres(server.url)
    for _ in range(5):
        ada.create()
        for connection in connections(outside, database):
            outside.sql("SELECT pg_terminate_backend($1, 10000)", connection["pid"])  # and wait
        assert until_none_is_left(outside, database, 10) == []
    assert len(ada.client.get("/tasks").json()) == 5
