"""Samples memory, files and connections of the service's processes in a soak, because none may grow."""

import time
from asyncio import sleep
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

import asyncpg
import psutil

from backend.web.rate_limits import STORAGE_CONNECTIONS
from tests.operations.soak.journal import Journal
from tests.operations.soak.stage import POOL_SIZE, WORKERS, Stage

SAMPLE_SECONDS = 2.0
WARM_UP_SECONDS = 120.0
"""A process is not judged before this time, because it still grows to its normal size."""
MOST_GROWTH = 4 * 2**20
"""The allowed growth in bytes between two quarters of a worker's time."""
NO_DATABASE = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    IndexError,
)
"""The errors while PostgreSQL is down. `IndexError` means that its pid file is being written."""
MOST_NEW_FILES = POOL_SIZE + STORAGE_CONNECTIONS + 5
"""The new files of a process without clients: connections to the database and Redis, and 5 others."""


@dataclass
class Sample:
    """The memory, files and connections of a process at one time."""

    memory: int
    files: int


@dataclass
class Vitals:
    """Samples of each process, and how many connections there were at most."""

    stage: Stage
    journal: Journal
    most_connections: int = 0
    files_at_rest: int = 0
    _samples: dict[psutil.Process, list[Sample]] = field(default_factory=lambda: defaultdict(list))

    def rest(self) -> None:
        """Note how many files a process has open that has not served yet."""
        self.files_at_rest = max(process.num_fds() for process in self._family)

    @property
    def _family(self) -> list[psutil.Process]:
        return [self.stage.supervisor, *self.stage.workers]

    async def watch(self) -> None:
        """Take samples until cancelled."""
        while True:
            self._sample()
            with suppress(*NO_DATABASE):
                await self._count_connections()
            await sleep(SAMPLE_SECONDS)

    def _sample(self) -> None:
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                self._samples[process].append(_sample_of(process))

    async def _count_connections(self) -> None:
        workers = {*self.stage.workers}
        connections = await self.stage.connections()
        if connections > WORKERS * POOL_SIZE:
            await sleep(1)  # those that were cut may not have ended yet
            connections = min(connections, await self.stage.connections())
        # While one is replaced there are more, and those of one that was killed take a moment to end.
        if len(workers) == WORKERS and all(len(self._samples[worker]) > 1 for worker in workers):
            self.most_connections = max(self.most_connections, connections)

    def judge(self) -> None:
        """Compare early and late in the time of each process; all clients have gone."""
        if self.most_connections > WORKERS * POOL_SIZE:
            self.journal.blame(f"{self.most_connections} connections of {WORKERS} pools of {POOL_SIZE}")
        for process in self._family:
            early, late = self._compared(process)
            is_warm = time.time() - process.create_time() > WARM_UP_SECONDS
            if is_warm and late.memory - early.memory > MOST_GROWTH:
                self.journal.blame(f"the memory of {process.pid} grew from {_told(early)} to {_told(late)}")
            if process.num_fds() - self.files_at_rest > MOST_NEW_FILES:
                files = f"{self.files_at_rest} files at rest, now {process.num_fds()}"
                self.journal.blame(f"{process.pid} had {files}, without a client")

    def _compared(self, process: psutil.Process) -> tuple[Sample, Sample]:
        """Return the medians of the second quarter of its time, past its warm-up, and of the last."""
        samples = self._samples[process] or [_sample_of(process)]
        quarter = max(1, len(samples) // 4)
        return _median(samples[quarter : 2 * quarter] or samples), _median(samples[-quarter:])

    def summary(self) -> str:
        """Return what was judged, a line for each process."""
        lines = [f"{'connections:':18}{self.most_connections} at most, of {WORKERS * POOL_SIZE}"]
        for process in self._family:
            early, late = self._compared(process)
            lived = time.time() - process.create_time()
            who = "supervisor:" if process == self.stage.supervisor else f"worker {process.pid}:"
            lines.append(f"{who:18}{_told(early)}, then {_told(late)}, in {lived:.0f} s")
        return "\n".join(lines)


def _sample_of(process: psutil.Process) -> Sample:
    with process.oneshot():
        return Sample(process.memory_info().rss, process.num_fds())


def _median(samples: list[Sample]) -> Sample:
    return Sample(
        round(median(sample.memory for sample in samples)),
        round(median(sample.files for sample in samples)),
    )


def _told(sample: Sample) -> str:
    return f"{sample.memory / 2**20:.1f} MiB and {sample.files} files"
