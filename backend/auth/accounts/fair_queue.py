"""A fair queue before the hash threads: client addresses take turns, so that none delays the others.

While another address waits, an address begins at most one job per thread before it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from backend.web.errors import ServiceUnavailableError

_Result = TypeVar("_Result")


class Turns:
    """Runs jobs on `threads` threads of an executor. Other jobs wait, in a queue for each address.

    At most `limit` jobs run or wait. At the limit the address with the most waiting jobs loses its newest.
    """

    def __init__(self, executor: Executor, *, threads: int, limit: int) -> None:
        self._executor, self._threads, self._limit = executor, threads, limit
        self._running: list[str] = []
        """The address of each running job."""
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """The waiting jobs by address, in the order of the addresses' turns."""

    @property
    def count(self) -> int:
        """The number of jobs that run or wait."""
        return len(self._running) + sum(map(len, self._waiting.values()))

    async def run(self, address: str, work: Callable[[], _Result]) -> _Result:
        """Return what `work` returns; raises `ServiceUnavailableError` when the queue is full."""
        if self.count >= self._limit:
            self._make_room(address)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(address, deque()).append(turn)
        self._begin()
        try:
            await turn
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            if not turn.cancelled() and turn.exception() is None:
                self._end(address)

    def _begin(self) -> None:
        """Begin jobs while threads are free, one of each address in turn."""
        while self._waiting and len(self._running) < self._threads:
            address = next(iter(self._waiting))
            turns = self._waiting.pop(address)
            turn = turns.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                self._running.append(address)
            if turns:
                self._waiting[address] = turns

    def _end(self, address: str) -> None:
        self._running.remove(address)
        if address in self._waiting:
            # Behind the others, which may have waited for this job.
            self._waiting[address] = self._waiting.pop(address)
        self._begin()

    def _make_room(self, address: str) -> None:
        longest = max(self._waiting.values(), key=len)
        if len(self._waiting.get(address, ())) + 1 >= len(longest):
            raise _full()
        newest = longest.pop()
        if not newest.done():  # it may be cancelled
            newest.set_exception(_full())


def _full() -> ServiceUnavailableError:
    return ServiceUnavailableError(reason="hash_queue_full", retry_after=5)
