"""A full queue for the database answers 503 at once, and the requests in the queue are served."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2
import pytest

from backend.database.pool import WAITING_PER_CONNECTION
from tests.conftest import Postgres, locked
from tests.programs import needs_own_server
from tests.service import Account, Service
from tests.waiting import until

pytestmark = needs_own_server


@pytest.fixture
def database(new_database: Callable[[], Postgres]) -> Postgres:
    return new_database()


@pytest.fixture
def narrow(new_service: Callable[..., Service], database: Postgres) -> Service:
    """A service of one connection, for which requests would wait for long."""
    return new_service(DATABASE_URL=database.url, DATABASE_POOL_SIZE="1", DATABASE_TIMEOUT_SECONDS="60")


@pytest.fixture
def queue() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(WAITING_PER_CONNECTION + 1) as threads:
        yield threads


def waiting(service: Service) -> int:
    text = service.client().get("/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith("database_requests_waiting ")]
    return int(float(line.split()[1]))


def toggle(account: Account, task_id: int) -> int:
    return account.client.patch(f"/tasks/{task_id}/complete").status_code


def is_refused(client: httpx2.Client, path: str) -> bool:
    """Return True if the request is refused at once, False if it gets a place in the queue."""
    try:
        refusal = client.get(path, timeout=0.3)
    except httpx2.ReadTimeout:
        return False
    assert (refusal.status_code, refusal.json()["code"]) == (503, "overloaded")
    assert int(refusal.headers["Retry-After"]) >= 1
    return True


@pytest.fixture
def ada(narrow: Service) -> Account:
    return narrow.register()


def test_past_the_queue_it_is_503_at_once_on_both_surfaces_and_the_queue_is_served(
    narrow: Service, ada: Account, database: Postgres, queue: ThreadPoolExecutor
) -> None:
    task = ada.create()
    with locked(database, task["id"]):
        queued = [queue.submit(toggle, ada, task["id"]) for _ in range(WAITING_PER_CONNECTION + 1)]
        until(lambda: waiting(narrow) > 0)
        for path in ("/tasks", f"/api/{ada.id}/tasks"):
            until(partial(is_refused, narrow.client(ada.tokens["access_token"]), path))
    answers = Counter(answer.result() for answer in queued)
    assert answers.keys() <= {200, 503}
    assert answers[200] > 1
    assert ada.client.get("/tasks").status_code == 200


def test_a_queue_that_does_not_move_takes_nobody_more(
    narrow: Service, ada: Account, database: Postgres, queue: ThreadPoolExecutor
) -> None:
    """It refuses new requests long before it is full, because they would time out in it."""
    task = ada.create()
    with locked(database, task["id"]):
        queued = [queue.submit(toggle, ada, task["id"]) for _ in range(WAITING_PER_CONNECTION // 2)]
        until(lambda: waiting(narrow) > 0)
        until(partial(is_refused, narrow.client(ada.tokens["access_token"]), "/tasks"))
        assert waiting(narrow) < WAITING_PER_CONNECTION
    assert 200 in {answer.result() for answer in queued}


def test_a_few_wait_as_long_as_they_may(
    narrow: Service, ada: Account, database: Postgres, queue: ThreadPoolExecutor
) -> None:
    task = ada.create()
    with locked(database, task["id"]):
        first = queue.submit(toggle, ada, task["id"])
        time.sleep(1)
        second = queue.submit(ada.client.get, "/tasks")
        time.sleep(1)
        third = queue.submit(ada.client.get, "/tasks")
        until(lambda: waiting(narrow) == 2)
    assert [first.result(), second.result().status_code, third.result().status_code] == [200, 200, 200]
