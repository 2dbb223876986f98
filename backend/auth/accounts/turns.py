"""Work on a few threads, for which addresses take turns: one address with much to do delays no other.

An address goes to the end of the line when work of its own begins and when it ends. So it is let in once
on each thread, at most, before an address that has come meanwhile.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from backend.web.errors import ServiceUnavailableError

_Result = TypeVar("_Result")
_Turn = asyncio.Future[None]


class Turns:
    """Runs work on `threads` threads of an executor, and keeps the rest waiting, by address.

    At most `limit` are running or waiting. Past it the address with the most waiting loses its newest.
    """

    def __init__(self, executor: Executor, *, threads: int, limit: int) -> None:
        self._executor = executor
        self._free = self._threads = threads
        self._limit = limit
        self._waiting: OrderedDict[str, deque[_Turn]] = OrderedDict()
        """By address, the next one first; an address with nothing waiting is not in it."""

    @property
    def count(self) -> int:
        """The number that is running or waiting."""
        return self._threads - self._free + sum(map(len, self._waiting.values()))

    async def run(self, address: str, work: Callable[[], _Result]) -> _Result:
        """Return what `work` returns; raises `ServiceUnavailableError` when too much is waiting."""
        await self._turn(address)
        running = asyncio.get_running_loop().run_in_executor(self._executor, work)
        running.add_done_callback(lambda _: self._end(address))
        # Nothing stops a thread: its place is free when it ends, though nobody waits for it any more.
        return await asyncio.shield(running)

    async def _turn(self, address: str) -> None:
        if self.count >= self._limit:
            self._make_room(address)
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(address, deque()).append(turn)
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._remove(address, turn)
            elif turn.exception() is None:
                self._end(address)
            raise

    def _make_room(self, address: str) -> None:
        longest = max(self._waiting, key=lambda other: len(self._waiting[other]))
        if len(self._waiting.get(address, ())) + 1 >= len(self._waiting[longest]):
            raise _full()
        newest = self._waiting[longest][-1]
        self._remove(longest, newest)
        if not newest.done():
            newest.set_exception(_full())

    def _let_in(self) -> None:
        while self._free and self._waiting:
            address = next(iter(self._waiting))
            turn = self._waiting[address][0]
            self._remove(address, turn)
            self._to_the_end(address)
            if not turn.done():
                self._free -= 1
                turn.set_result(None)

    def _end(self, address: str) -> None:
        self._free += 1
        self._to_the_end(address)
        self._let_in()

    def _to_the_end(self, address: str) -> None:
        if address in self._waiting:
            self._waiting.move_to_end(address)

    def _remove(self, address: str, turn: _Turn) -> None:
        """Take `turn` out of the line, if it is still there."""
        turns = self._waiting.get(address, deque())
        if turn in turns:
            turns.remove(turn)
        if not turns:
            self._waiting.pop(address, None)


def _full() -> ServiceUnavailableError:
    return ServiceUnavailableError(reason="hash_queue_full", retry_after=5)
