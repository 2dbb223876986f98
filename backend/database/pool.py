"""Lends connections to requests. Each process opens a limited number and closes those that stay idle.

asyncpg's own pool makes a request for one task cost 2.45 times the instructions of a bare ASGI application;
this one makes it cost 1.97 times (counted by callgrind). A failed connection is never lent again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from backend.database.connection import Connection
from backend.database.errors import PoolFullError

WAITING_PER_CONNECTION: Final = 50
"""Requests that may wait, for each connection of the pool. The pool refuses one more at once."""
WAITING_LONG_PER_CONNECTION: Final = 5
LONG_SECONDS: Final = 0.5
"""The same limit once the first of them has waited so long, because later ones would wait for seconds."""
CLOSING_SECONDS: Final = 1.0
"""The most time that a connection gets to cancel its statement and to end its session."""


class Pool:
    """Lends connections. A borrower takes a place with each, and gives or discards the connection once."""

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], *, size: int, idle_seconds: float
    ) -> None:
        self._connect, self._size, self._idle_seconds = connect, size, idle_seconds
        self._free = size
        """Places that nobody has. While any is free, no request waits."""
        self._idle: list[tuple[Connection, float]] = []
        self._waiting: dict[asyncio.Future[None], float] = {}
        """Requests that wait for a place, the first of them first, with the time of their arrival."""
        self._closing: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def in_use(self) -> int:
        """Connections that are at work, being made or being closed."""
        return self._size - self._free

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    def take_idle(self) -> Connection | None:
        """Return an idle connection without waiting, or None."""
        if self._free and (connection := self._pop_idle()):
            self._free -= 1
            return connection
        return None

    async def take(self) -> Connection:
        """Return a connection, idle or new; raises `PoolFullError`, or what connecting raises."""
        if self._free:
            self._free -= 1
        else:
            await self._wait_for_place()
        try:
            return self._pop_idle() or await self._connect()
        except BaseException:
            self._free_place()
            raise

    def _pop_idle(self) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    async def _wait_for_place(self) -> None:
        loop = asyncio.get_running_loop()
        if self._is_overloaded(loop.time()):
            raise PoolFullError(reason="pool_exhausted")
        place: asyncio.Future[None] = loop.create_future()
        self._waiting[place] = loop.time()
        try:
            await place
        except asyncio.CancelledError:
            self._waiting.pop(place, None)
            if not place.cancelled():  # the place came in the same step of the event loop
                self._free_place()
            raise

    def _is_overloaded(self, now: float) -> bool:
        waiting = len(self._waiting) / self._size
        if waiting < WAITING_LONG_PER_CONNECTION:
            return False
        longest = now - next(iter(self._waiting.values()))
        return waiting >= WAITING_PER_CONNECTION or longest > LONG_SECONDS

    def _free_place(self) -> None:
        while self._waiting:
            place = next(iter(self._waiting))
            del self._waiting[place]
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def give(self, connection: Connection) -> None:
        """Take back a connection that works."""
        if not connection.is_closed():
            self._idle.append((connection, asyncio.get_running_loop().time()))
            if self._sweep is None:
                self._sweep_later()
        self._free_place()

    def discard(self, connection: Connection) -> None:
        """Close a connection that failed, and the idle ones, which may have failed too."""
        self.discard_one(connection)
        self._discard_idle()

    def _discard_idle(self) -> None:
        while connection := self.take_idle():
            self.discard_one(connection)

    def discard_one(self, connection: Connection) -> None:
        """Close a connection that failed for a reason of its own. Its place is free when it is closed."""
        task = asyncio.create_task(self._close(connection))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, connection: Connection) -> None:
        with suppress(Exception):  # the connection is gone, whatever the error
            await connection.close(timeout=CLOSING_SECONDS)
        self._free_place()

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._idle_seconds / 4, self._close_unused)

    def _close_unused(self) -> None:
        self._sweep = None
        longest = asyncio.get_running_loop().time() - self._idle_seconds * 3 / 4
        while self._idle and self._idle[0][1] <= longest:
            self._idle.pop(0)[0].terminate()
        if self._idle:
            self._sweep_later()

    async def close(self) -> None:
        """Close what is idle and wait for what is being closed. Nobody may take a connection any more."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._discard_idle()
        await asyncio.gather(*self._closing)
