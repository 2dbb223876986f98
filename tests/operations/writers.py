"""Clients that write tasks without a pause, and record each acknowledged write with its time."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from threading import Event

import httpx2

from tests.conftest import Postgres
from tests.service import Account
from tests.waiting import until

NO_ANSWER = 0
"""The recorded status of a request whose connection ended."""


class Writer:
    """A client that creates one task after another, also after errors."""

    def __init__(self, account: Account, name: str) -> None:
        self.account, self._name = account, name
        self.sent: list[str] = []
        self.acknowledged: dict[str, float] = {}
        """The moment of each success, by title."""
        self.refusals: list[int] = []
        """The statuses of all other responses."""

    def write(self, stop: Event) -> None:
        """Create tasks until `stop` is set."""
        for number in count():
            if stop.is_set():
                return
            title = f"{self._name}, task {number}"
            self.sent.append(title)
            status = self._create(title)
            if status == 201:
                self.acknowledged[title] = time.monotonic()
            else:
                self.refusals.append(status)
                stop.wait(0.05)

    def _create(self, title: str) -> int:
        try:
            return self.account.client.post("/tasks", json={"title": title}).status_code
        except httpx2.TransportError:
            return NO_ANSWER

    def wrote_since(self, moment: float) -> list[float]:
        """Return the moments of the successes after this one."""
        return [at for at in list(self.acknowledged.values()) if at > moment]


@contextmanager
def writing(accounts: list[Account]) -> Iterator[list[Writer]]:
    """Write for the length of the block; fails if one of the writers did."""
    writers = [Writer(account, f"Writer {number}") for number, account in enumerate(accounts)]
    with at_work(*(writer.write for writer in writers)):
        yield writers


@contextmanager
def at_work(*jobs: Callable[[Event], None]) -> Iterator[None]:
    """Run these jobs for the length of the block, each until its event is set; fails if one failed."""
    is_over = Event()
    with ThreadPoolExecutor(len(jobs)) as threads:
        done = [threads.submit(job, is_over) for job in jobs]
        try:
            yield
        finally:
            is_over.set()
            for future in done:
                future.result(60)


def wait_for_writes(writers: list[Writer], tasks: int, since: float = 0) -> None:
    """Wait until each of them has had so many tasks acknowledged."""
    until(lambda: all(len(writer.wrote_since(since)) >= tasks for writer in writers))


def check_books(writers: list[Writer], database: Postgres) -> None:
    """Assert that each acknowledged write exists once, and each other write at most once."""
    rows = database.sql("SELECT title, count(*) FROM tasks WHERE title LIKE 'Writer %' GROUP BY title")
    found = {row["title"]: row["count"] for row in rows}
    assert set(found.values()) == {1}
    assert {title for writer in writers for title in writer.acknowledged} <= found.keys()
    assert found.keys() <= {title for writer in writers for title in writer.sent}
