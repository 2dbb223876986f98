"""The pool alone, on connections to a real server: its places, its queue, and closed connections."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import asyncpg
import pytest

from backend.database import PoolFullError
from backend.database.connection import Connection
from backend.database.embedded import EmbeddedServer
from backend.database.pool import WAITING_PER_CONNECTION, Pool
from backend.database.url import connect_arguments
from tests.conftest import Postgres
from tests.waiting import until_async

Result = TypeVar("Result")


class Scene:
    """A server, and the connections that a pool has made on it."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._arguments = connect_arguments(server.url)
        self.made: list[Connection] = []
        self.refuses = False

    async def connect(self) -> Connection:
        """Make a connection, as `Database` does it for a pool."""
        if self.refuses:
            raise ConnectionRefusedError
        connection = await asyncpg.connect(**self._arguments, connection_class=Connection)
        self.made.append(connection)
        return connection

    @property
    def open(self) -> int:
        """The number of open connections."""
        return sum(not connection.is_closed() for connection in self.made)

    @asynccontextmanager
    async def pool(self, size: int = 1, idle_seconds: float = 60) -> AsyncIterator[Pool]:
        """Run a pool for the length of the block; all its places must be free at the end, none lost."""
        pool = Pool(self.connect, size=size, idle_seconds=idle_seconds)
        try:
            yield pool
            await self._check(pool, size)
        finally:
            await pool.close()
            for connection in self.made:
                connection.terminate()

    async def _check(self, pool: Pool, size: int) -> None:
        self.refuses = False
        taken = await asyncio.wait_for(asyncio.gather(*(pool.take() for _ in range(size))), 10)
        assert len({*taken}) == size
        assert (pool.in_use, pool.waiting, self.open) == (size, 0, size)
        for connection in taken:
            pool.give(connection)
        await pool.close()
        assert (pool.in_use, self.open) == (0, 0)


@pytest.fixture
def scene(server: EmbeddedServer) -> Scene:
    return Scene(server)


def play(test: Coroutine[Any, Any, Result]) -> Result:
    """Run a test on an event loop of its own, with a time limit."""

    async def in_time() -> Result:
        async with asyncio.timeout(15):
            return await test

    return asyncio.run(in_time())


async def ask(pool: Pool) -> "asyncio.Task[Connection]":
    """Ask for a connection, and return while the task waits in the queue."""
    task = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    assert pool.waiting
    return task


def test_there_are_never_more_connections_than_places_whatever_becomes_of_them(scene: Scene) -> None:
    """Fifty tasks ask for three places at once, thirty times; some fail, time out or lose the connection."""
    chance = random.Random(7)  # noqa: S311  # no secret, but the same each time
    size, most = 3, 0

    async def use(pool: Pool) -> None:
        nonlocal most
        async with asyncio.timeout(chance.choice([0.0, 0.002, 0.02, None])):
            connection = await pool.take()
        most = max(most, pool.in_use, scene.open)
        await asyncio.sleep(chance.choice([0, 0.001]))
        if chance.random() < 0.1:
            connection.terminate()
        (pool.discard if chance.random() < 0.1 else pool.give)(connection)

    async def run() -> None:
        async with scene.pool(size) as pool:
            for _ in range(30):
                done = await asyncio.gather(*(use(pool) for _ in range(50)), return_exceptions=True)
                assert {type(error) for error in done if error is not None} <= {TimeoutError}
                assert pool.waiting == 0
            assert most == size

    play(run())


def test_who_waits_is_served_in_the_order_of_asking_and_before_who_comes_later(scene: Scene) -> None:
    served: list[int] = []

    async def use(pool: Pool, number: int) -> None:
        connection = await pool.take()
        served.append(number)
        # Every second attempt fails, because a place must be handed on as well as a connection.
        (pool.discard if number % 2 else pool.give)(connection)

    async def run() -> None:
        async with scene.pool() as pool:
            first = await pool.take()
            users = [asyncio.create_task(use(pool, number)) for number in range(10)]
            await until_async(lambda: pool.waiting == 10)
            pool.give(first)
            late = asyncio.create_task(use(pool, 10))
            await asyncio.gather(*users, late)
            assert served == [*range(11)]

    play(run())


def hand_on_a_connection(pool: Pool, connection: Connection) -> None:
    pool.give(connection)


def hand_on_a_place(pool: Pool, connection: Connection) -> None:
    connection.terminate()
    pool.give(connection)


@pytest.mark.parametrize("hand_on", [hand_on_a_connection, hand_on_a_place])
@pytest.mark.parametrize("cancelled", ["long before", "just before", "just after"])
def test_who_is_cancelled_while_waiting_takes_no_place_with_them(
    scene: Scene, hand_on: Callable[[Pool, Connection], None], cancelled: str
) -> None:
    """The cancellation comes before or after the place, or in the same step of the event loop."""

    async def run() -> None:
        async with scene.pool() as pool:
            connection = await pool.take()
            waiting, next_one = await ask(pool), await ask(pool)
            if cancelled == "just after":
                hand_on(pool, connection)
            waiting.cancel()
            if cancelled == "long before":
                await until_async(waiting.done)
            if cancelled != "just after":
                hand_on(pool, connection)
            with pytest.raises(asyncio.CancelledError):
                await waiting
            pool.give(await asyncio.wait_for(next_one, 10))

    play(run())


def test_a_connection_that_failed_is_never_handed_out_again_nor_those_that_were_idle_then(
    scene: Scene,
) -> None:
    async def run() -> None:
        async with scene.pool(3) as pool:
            failed, *others = [await pool.take() for _ in range(3)]
            for other in others:
                pool.give(other)
            pool.discard(failed)
            fresh = [await pool.take() for _ in range(3)]
            assert {*fresh}.isdisjoint({failed, *others})
            assert all([await connection.fetchval("SELECT 1") == 1 for connection in fresh])
            for connection in fresh:
                pool.give(connection)

    play(run())


def test_a_connection_that_the_server_cut_while_it_was_idle_is_not_handed_out(scene: Scene) -> None:
    async def run() -> None:
        async with scene.pool(2) as pool:
            cut, witness = await pool.take(), await scene.connect()
            pool.give(cut)
            await witness.execute("SELECT pg_terminate_backend($1)", cut.get_server_pid())
            await until_async(cut.is_closed)
            await witness.close()
            fresh = await pool.take()
            assert await fresh.fetchval("SELECT 1") == 1
            pool.give(fresh)

    play(run())


def test_while_it_is_being_closed_a_connection_keeps_its_place(scene: Scene) -> None:
    async def run() -> None:
        async with scene.pool() as pool:
            failed = await pool.take()
            pool.discard(failed)
            next_one = await ask(pool)
            assert (pool.in_use, len(scene.made)) == (1, 1)
            pool.give(await next_one)
            assert failed.is_closed()

    play(run())


def test_where_connecting_fails_the_place_goes_to_the_next(scene: Scene) -> None:
    async def run() -> None:
        async with scene.pool() as pool:
            first = await pool.take()
            waiting = [await ask(pool) for _ in range(3)]
            scene.refuses = True
            pool.discard(first)
            for task in waiting:
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.wait_for(task, 10)
            assert pool.in_use == 0

    play(run())


def test_more_may_not_wait_than_can_be_served_soon(scene: Scene) -> None:
    async def run() -> None:
        async with scene.pool() as pool:
            first = await pool.take()
            waiting = [asyncio.create_task(pool.take()) for _ in range(WAITING_PER_CONNECTION)]
            await until_async(lambda: pool.waiting == WAITING_PER_CONNECTION)
            with pytest.raises(PoolFullError, match="pool_exhausted"):
                await pool.take()
            pool.give(first)
            for task in waiting:
                pool.give(await task)

    play(run())


def test_the_last_used_is_taken_first_and_what_stays_idle_is_closed(scene: Scene) -> None:
    async def run() -> None:
        async with scene.pool(3, idle_seconds=0.4) as pool:
            connections = [await pool.take() for _ in range(3)]
            for connection in connections:
                pool.give(connection)
            busy = await pool.take()
            assert busy is connections[-1]
            await until_async(lambda: scene.open == 1)
            assert not busy.is_closed()
            pool.give(busy)
            await until_async(lambda: scene.open == 0)
            assert pool.in_use == 0

    play(run())


def test_closing_waits_for_what_is_being_closed_and_leaves_nothing_open(
    scene: Scene, server: EmbeddedServer
) -> None:
    async def run() -> list[int]:
        pool = Pool(scene.connect, size=4, idle_seconds=60)
        failed, *idle = [await pool.take() for _ in range(4)]
        pids = [connection.get_server_pid() for connection in (failed, *idle)]
        stuck = asyncio.create_task(failed.execute("SELECT pg_sleep(60)"))
        await asyncio.sleep(0)
        stuck.cancel()
        with suppress(asyncio.CancelledError):
            await stuck
        pool.discard(failed)
        for connection in idle:
            pool.give(connection)
        await pool.close()
        assert (scene.open, pool.in_use) == (0, 0)
        return pids

    pids = play(run())
    deadline = time.monotonic() + 10
    while Postgres(server.url).sql("SELECT FROM pg_stat_activity WHERE pid = ANY($1)", pids):
        assert time.monotonic() < deadline
