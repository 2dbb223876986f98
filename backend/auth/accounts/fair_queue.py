"""A fair queue before the hash threads: client addresses take turns, so that none delays the others.

An address has at most one job per thread that runs or stands in the common queue. Its other jobs wait
behind those. Another address therefore waits for at most one job of it per thread.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from backend.web.errors import ServiceUnavailableError

_Result = TypeVar("_Result")


class Turns:
    """Runs jobs on `threads` threads of an executor. Other jobs wait, in a queue for each address.

    At most `limit` jobs run or wait. At the limit the address with the most waiting jobs loses its newest.
    """

    def __init__(self, executor: Executor, *, threads: int, limit: int) -> None:
        self._executor, self._threads, self._limit = executor, threads, limit
        self._line = asyncio.Semaphore(threads)
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By address, while it has jobs: its places on the threads and in the common queue."""
        self._waiting: dict[str, list[asyncio.Task[Any]]] = {}
        """The waiting jobs by address, the newest last; an address without one is absent."""
        self._running = 0

    @property
    def count(self) -> int:
        """The number of jobs that run or wait."""
        return self._running + sum(map(len, self._waiting.values()))

    async def run(self, address: str, work: Callable[[], _Result]) -> _Result:
        """Return what `work` returns; raises `ServiceUnavailableError` when the queue is full."""
        if self.count >= self._limit:
            self._make_room(address)
        task = asyncio.create_task(self._work(address, work))
        self._waiting.setdefault(address, []).append(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise _full() from None
            # A thread cannot be stopped: its place is free when it ends, although nothing awaits it.
            if task in self._waiting.get(address, ()):
                self._drop(address, task)
            raise

    async def _work(self, address: str, work: Callable[[], _Result]) -> _Result:
        place = self._places.setdefault(address, asyncio.Semaphore(self._threads))
        async with place, self._line:
            self._forget(address, asyncio.current_task())
            self._running += 1
            try:
                return await asyncio.get_running_loop().run_in_executor(self._executor, work)
            finally:
                self._running -= 1

    def _make_room(self, address: str) -> None:
        longest = max(self._waiting, key=lambda other: len(self._waiting[other]))
        if len(self._waiting.get(address, ())) + 1 >= len(self._waiting[longest]):
            raise _full()
        self._drop(longest, self._waiting[longest][-1])

    def _drop(self, address: str, task: asyncio.Task[Any]) -> None:
        self._forget(address, task)
        task.cancel()

    def _forget(self, address: str, task: asyncio.Task[Any] | None) -> None:
        self._waiting[address] = [other for other in self._waiting[address] if other is not task]
        if not self._waiting[address]:
            del self._waiting[address]


def _full() -> ServiceUnavailableError:
    return ServiceUnavailableError(reason="hash_queue_full", retry_after=5)
