"""Acknowledged writes survive each end of the service; a hundred users at once get no error."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx2
import psutil
import pytest

from tests.conftest import Postgres
from tests.operations.proxy import Loss, Proxy
from tests.programs import needs_own_server, passable_directory
from tests.service import Account, Service, running
from tests.tasks.test_idempotency import KEY, MILK
from tests.waiting import until

WRITERS, USERS = 6, 100
TASKS_EACH_TIME = 4


class Writer:
    """A client that creates, changes and deletes tasks until the service is gone."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.acknowledged: dict[str, dict[str, Any] | None] = {}
        """The tasks by title, as their last responses had them. None means deleted."""
        self.in_doubt = ""
        """The title of the task that was being written when the service went."""

    def write(self) -> None:
        """Return when the service is gone; anything but a success until then raises."""
        for number in count(len(self.acknowledged)):
            self.in_doubt = f"Task {number}"
            try:
                self._write_one(self.in_doubt, is_kept=number % 3 > 0)
            except httpx2.TransportError:
                return

    def _write_one(self, title: str, *, is_kept: bool) -> None:
        task = self.acknowledged[title] = self.account.create(title)
        path = f"/tasks/{task['id']}"
        changed = self.account.client.put(path, json={"description": title}).raise_for_status()
        self.acknowledged[title] = changed.json()
        if not is_kept:
            self.account.client.delete(path).raise_for_status()
            self.acknowledged[title] = None

    def check(self, client: httpx2.Client) -> None:
        """Assert that each acknowledged write exists exactly once, and that every task was sent."""
        tasks = client.get("/tasks").raise_for_status().json()
        found = {task["title"]: task for task in tasks}
        assert len(found) == len(tasks)
        assert found.keys() <= {*self.acknowledged, self.in_doubt}
        known = {title: task for title, task in self.acknowledged.items() if title != self.in_doubt}
        assert {title: found.get(title) for title in known} == known
        # The outcome of the last write is known from here on.
        self.acknowledged[self.in_doubt] = found.get(self.in_doubt)


def terminate(service: Service, _: Path) -> None:
    service.process.terminate()


def kill(service: Service, _: Path) -> None:
    service.process.kill()


def kill_with_its_database(service: Service, data_dir: Path) -> None:
    """Only the data directory remains of the service and its PostgreSQL."""
    service.process.kill()
    service.process.wait()
    postmaster = int((data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
    for process in (psutil.Process(postmaster), *psutil.Process(postmaster).children()):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def wait_for(writers: list[Writer], written: list[Future[None]], tasks: int) -> None:
    """Wait until each writer has had so many tasks acknowledged, or one of them has failed."""
    while min(len(writer.acknowledged) for writer in writers) < tasks:
        if any(future.done() for future in written):
            return
        time.sleep(0.01)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with passable_directory(prefix="durability-") as directory:
        yield directory / "data"


@needs_own_server
def test_each_acknowledged_write_is_there_once_however_the_service_ends(
    data_dir: Path, tmp_path: Path
) -> None:
    """The service ends during writes. The sessions survive too."""
    writers: list[Writer] = []
    for number, end in enumerate((kill, terminate, kill_with_its_database, None)):
        with running(tmp_path / f"log{number}", DATA_DIR=str(data_dir)) as service:
            writers = writers or [Writer(service.register()) for _ in range(WRITERS)]
            for writer in writers:
                writer.account.client = service.client(writer.account.tokens["access_token"])
                writer.check(writer.account.client)
            if end is None:
                break
            with ThreadPoolExecutor(WRITERS) as threads:
                written = [threads.submit(writer.write) for writer in writers]
                wait_for(writers, written, TASKS_EACH_TIME * (number + 1))
                end(service, data_dir)
            for future in written:
                future.result()
            service.stop()
    assert min(len(writer.acknowledged) for writer in writers) >= 3 * TASKS_EACH_TIME


def test_a_crash_between_commit_and_answer_and_the_key_sent_again_make_one_task(
    new_database: Callable[[], Postgres], new_service: Callable[..., Service]
) -> None:
    database = new_database()
    with closing(Proxy.before(database.url)) as network:
        service = new_service(DATABASE_URL=network.url)
        ada = service.register()
        network.lose(MILK["title"].encode(), Loss.NO_ANSWER)
        with ThreadPoolExecutor(1) as threads:
            asked = threads.submit(ada.client.post, "/tasks", json=MILK, headers=KEY)
            until(lambda: bool(database.sql("SELECT FROM tasks")))
            service.process.kill()
            with pytest.raises(httpx2.TransportError):
                asked.result()
        survivor = new_service(DATABASE_URL=network.url).client(ada.tokens["access_token"])
        again = survivor.post("/tasks", json=MILK, headers=KEY)
        assert (again.status_code, survivor.get("/tasks").json()) == (200, [again.json()])


def test_a_hundred_users_at_once_are_served_without_an_error_or_a_leak(
    new_database: Callable[[], Postgres], new_service: Callable[..., Service]
) -> None:
    """They register, create, list and update, all at the same moment."""
    database = new_database()
    service = new_service(DATABASE_URL=database.url, DATABASE_POOL_SIZE="20")
    ready = Barrier(USERS)

    def use(number: int) -> Account:
        ready.wait(30)
        account = service.register(name=f"User {number}")
        tasks = [account.create(f"Task {n} of user {number}") for n in range(3)]
        ready.wait(30)
        assert account.client.get("/tasks").json() == tasks
        changed = account.client.put(f"/tasks/{tasks[0]['id']}", json={"description": f"Of {number}"})
        toggled = account.client.patch(f"/tasks/{tasks[1]['id']}/complete")
        expected = [changed.raise_for_status().json(), toggled.raise_for_status().json(), tasks[2]]
        assert (expected[0]["description"], expected[1]["completed"]) == (f"Of {number}", True)
        assert account.client.get("/tasks").json() == expected
        assert account.client.get("/auth/me").json()["name"] == f"User {number}"
        return account

    with ThreadPoolExecutor(USERS) as threads:
        accounts = list(threads.map(use, range(USERS)))
    assert len({account.id for account in accounts}) == USERS
    assert database.sql("SELECT count(*), count(DISTINCT user_id) AS users FROM tasks") == [
        {"count": 3 * USERS, "users": USERS}
    ]
    assert {line["status"] for line in service.lines(event="http.request")} <= {200, 201}
    assert [line for line in service.lines() if line["level"] in {"WARNING", "ERROR"}] == []
    (connections,) = database.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        " AND application_name NOT LIKE 'citus%'"  # those among the nodes of a cluster
    )
    assert 1 <= connections["count"] <= 20
