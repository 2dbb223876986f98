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
"""From the end of a fault until the service is ready and stays so; PostgreSQL starts again meanwhile.

Half of it is for a machine that is busy with other tests.
"""
READY_IN_A_ROW = 5
"""Probes, each of whichever worker takes it."""
REPLACEMENT_SECONDS = 60.0
"""Of one worker or of all, also on a machine that has much else to do."""
MOST_HELD_UP_SECONDS = 0.5
"""Statements wait for a moment before they are cut off, so that there are some."""
SLOW_CLIENTS, BETWEEN_BYTES = 40, 0.05
SIGN_INS_EACH = 8


async def connections_cut(stage: Stage, chance: Random) -> None:
    async with stage.writes_held_up():
        await sleep(chance.uniform(0, MOST_HELD_UP_SECONDS))
        await stage.cut_connections()


async def postgres_killed(stage: Stage, chance: Random) -> None:
    """The service starts it again by itself."""
    killed = stage.postmaster
    assert killed is not None
    async with stage.writes_held_up():
        await sleep(chance.uniform(0, MOST_HELD_UP_SECONDS))
        psutil.Process(killed).kill()


async def worker_killed(stage: Stage, chance: Random) -> None:
    """What it has sent to the database is done after its end."""
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
    """A rolling restart: whatever is under way is answered, and all that is asked.

    But for a request that sets out on an idle connection at the very moment at which a worker that nobody
    asks any more closes it: HTTP/1.1 cannot tell the one from the other (RFC 9112 section 9.5).
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
    """Again and again, so that much is under way whenever a worker is told to go."""
    while True:
        async with stage.writes_held_up():
            await sleep(1)
        await sleep(0.1)


async def tasks_locked(stage: Stage, chance: Random) -> None:
    """For less than `DATABASE_TIMEOUT_SECONDS`: all wait, and none fails."""
    async with stage.writes_held_up():
        await sleep(chance.uniform(1, 2))


async def slow_clients(stage: Stage, chance: Random) -> None:
    """Many who send a byte now and then, and go away in the middle."""
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
    """Everybody at once, several times over."""
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
    """Strikes again and again; once `last_replacement` is past, no worker is replaced any more."""

    stage: Stage
    journal: Journal
    chance: Random
    last_replacement: float
    pause: float
    """Between two faults, in seconds, on the average."""

    async def strike(self, until_then: float) -> None:
        """Return when it is late enough, and each kind has had its turn."""
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
