"""The faults of a soak: one at a time, in random order, each with the failures that it excuses."""

import asyncio
import signal
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from random import Random

import psutil

from tests.operations.soak.journal import Failure, Journal, UnansweredError
from tests.operations.soak.stage import WORKERS, Stage
from tests.operations.soak.users import User
from tests.service import PASSWORD
from tests.waiting import until_async

RECOVERY_SECONDS = 10.0
"""The time from the end of a fault until the service stays ready, including a restart of PostgreSQL.

Half of it is for a machine that is busy with other tests.
"""
READY_IN_A_ROW = 5
"""The number of successful probes in a row. Any worker may answer each."""
REPLACEMENT_SECONDS = 60.0
"""The time limit to replace one worker or all of them, on a busy machine too."""
MOST_HELD_UP_SECONDS = 0.5
"""Statements are held for up to this time before the fault, because it must hit running ones."""
SLOW_CLIENTS, BETWEEN_BYTES = 40, 0.05
SIGN_INS_EACH = 8


async def connections_cut(stage: Stage, chance: Random) -> None:
    async with stage.writes_held_up():
        await sleep(chance.uniform(0, MOST_HELD_UP_SECONDS))
        await stage.cut_connections()


async def postgres_killed(stage: Stage, chance: Random) -> None:
    """Kill PostgreSQL, which the service must restart."""
    killed = stage.postmaster
    assert killed is not None
    async with stage.writes_held_up():
        await sleep(chance.uniform(0, MOST_HELD_UP_SECONDS))
        psutil.Process(killed).kill()


async def worker_killed(stage: Stage, chance: Random) -> None:
    """Kill a worker. PostgreSQL still runs the statements that the worker has sent."""
    killed = chance.choice(stage.workers)
    async with stage.writes_held_up():
        await sleep(chance.uniform(0, MOST_HELD_UP_SECONDS))
        killed.kill()
    await until_async(
        lambda: len({*stage.workers} - {killed}) == WORKERS,
        REPLACEMENT_SECONDS,
        "new worker for a killed one",
    )


async def workers_replaced(stage: Stage, _: Random) -> None:
    """Restart all workers in turn: every request gets its response.

    The exception is a request that is sent on an idle connection just as an unused worker closes it. HTTP/1.1
    gives the client no way to know whether the request arrived (RFC 9112 section 9.5).
    """
    before = {*stage.workers}
    holding_up = asyncio.create_task(_hold_up_writes(stage))
    stage.supervisor.send_signal(signal.SIGHUP)
    try:
        await until_async(
            lambda: len(stage.workers) == WORKERS and not before & {*stage.workers},
            REPLACEMENT_SECONDS,
            "new workers after SIGHUP",
        )
    finally:
        holding_up.cancel()


async def _hold_up_writes(stage: Stage) -> None:
    """Hold up writes repeatedly, so that requests are in progress when a worker gets its signal."""
    while True:
        async with stage.writes_held_up():
            await sleep(1)
        await sleep(0.1)


async def tasks_locked(stage: Stage, chance: Random) -> None:
    """Lock the tasks for less than `DATABASE_TIMEOUT_SECONDS`. Requests wait, and none fails."""
    async with stage.writes_held_up():
        await sleep(chance.uniform(1, 2))


async def slow_clients(stage: Stage, chance: Random) -> None:
    """Open many connections that send single bytes slowly, and close midway."""
    await asyncio.gather(*(_trickle(stage, chance.uniform(1, 3)) for _ in range(SLOW_CLIENTS)))


async def _trickle(stage: Stage, seconds: float) -> None:
    port = int(stage.service.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    request = b"POST /auth/login HTTP/1.1\r\nContent-Length: 999\r\n\r\n{"
    with suppress(OSError):
        for byte in request[: round(seconds / BETWEEN_BYTES)]:
            writer.write(bytes([byte]))
            await writer.drain()
            await sleep(BETWEEN_BYTES)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def many_sign_ins(stage: Stage, _: Random) -> None:
    """Sign in all users at once, several times."""
    await asyncio.gather(*(_sign_in(user) for user in stage.users for _ in range(SIGN_INS_EACH)))


async def _sign_in(user: User) -> None:
    with suppress(UnansweredError):
        await user.send("POST", "/auth/login", "200", json={"email": user.email, "password": PASSWORD})


async def redis_hangs(stage: Stage, chance: Random) -> None:
    assert stage.redis is not None
    stage.redis.signal(signal.SIGSTOP)
    try:
        await sleep(chance.uniform(1, 3))
    finally:
        stage.redis.signal(signal.SIGCONT)


Fault = Callable[[Stage, Random], Awaitable[None]]

EXCUSES: dict[Fault, frozenset[Failure]] = {
    connections_cut: frozenset({Failure.UNAVAILABLE}),
    postgres_killed: frozenset({Failure.UNAVAILABLE}),
    worker_killed: frozenset({Failure.LOST}),
    workers_replaced: frozenset({Failure.LOST}),
    tasks_locked: frozenset(),
    slow_clients: frozenset(),
    many_sign_ins: frozenset({Failure.OVERLOADED}),
    redis_hangs: frozenset(),
}
MOST_EXCUSED: dict[Fault, float] = {workers_replaced: WORKERS}
REPLACING: frozenset[Fault] = frozenset({worker_killed, workers_replaced})


@dataclass
class Faults:
    """Causes faults repeatedly. After `last_replacement` it replaces no more workers."""

    stage: Stage
    journal: Journal
    chance: Random
    last_replacement: float
    pause: float
    """The average seconds between two faults."""

    async def strike(self, until_then: float) -> None:
        """Return after the given time, once each kind of fault has occurred."""
        for fault in self._shuffled():
            await self._strike_once(fault)
        while time.monotonic() < until_then:
            for fault in self._shuffled():
                is_too_late = fault in REPLACING and time.monotonic() > self.last_replacement
                if time.monotonic() < until_then and not is_too_late:
                    await self._strike_once(fault)

    def _shuffled(self) -> Iterator[Fault]:
        known = [fault for fault in EXCUSES if fault is not redis_hangs or self.stage.redis is not None]
        yield from self.chance.sample(known, len(known))

    async def _strike_once(self, fault: Fault) -> None:
        await sleep(self.chance.uniform(0, 2 * self.pause))
        name = getattr(fault, "__name__", "").replace("_", " ")
        with self.journal.fault(name, EXCUSES[fault], MOST_EXCUSED.get(fault, inf)):
            try:
                await fault(self.stage, self.chance)
                await self._recover(name)
            except TimeoutError as error:
                self.journal.blame(str(error))

    async def _recover(self, name: str) -> None:
        """Wait until the service is ready, and stays so."""
        began, in_a_row = time.monotonic(), 0
        while in_a_row < READY_IN_A_ROW:
            in_a_row = in_a_row + 1 if await self.stage.is_ready() else 0
            if time.monotonic() - began > RECOVERY_SECONDS:
                raise TimeoutError(f"not ready {RECOVERY_SECONDS} s after {name}")
            await sleep(0.05)
        recovery = time.monotonic() - began
        self.journal.longest_recovery = max(self.journal.longest_recovery, recovery)
