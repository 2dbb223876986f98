"""Generates load: keep-alive connections, each of which sends its next request after an answer."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter

import uvloop

NUMBER = "#" * 9

_NUMBER = NUMBER.encode()
_numbers = count()
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class LoadError(Exception):
    """The service did not answer as expected."""


@dataclass(frozen=True)
class Load:
    """The requests of a load and their port. It ends after `seconds` or `most` requests, whichever is first.

    `NUMBER` in a request is replaced by a new number each time it is sent.
    """

    port: int
    requests: Sequence[bytes]
    seconds: float
    connections: int
    pause_seconds: float = 0
    """Between an answer and the next request."""
    most: int = 50_000


@dataclass
class Outcome:
    """The outcome of a load: the status and the latency, in seconds, of each answer."""

    seconds: float = 0
    answers: list[tuple[int, float]] = field(default_factory=list)

    def expect(self, *statuses: int) -> None:
        """Raise `LoadError` unless each answer has one of these statuses."""
        seen = Counter(status for status, _ in self.answers)
        if not seen or seen.keys() - set(statuses):
            raise LoadError(f"answers by status: {dict(seen)}")

    def latencies(self, *statuses: int) -> list[float]:
        """Return the latencies of the answers with these statuses, or of all, the shortest first."""
        return sorted(latency for status, latency in self.answers if not statuses or status in statuses)

    def percentile(self, share: float) -> float:
        """Return the latency that this share of the answers did not exceed."""
        latencies = self.latencies()
        return latencies[int(share * (len(latencies) - 1))]


class _Connection(asyncio.Protocol):
    def __init__(self, load: Load, outcome: Outcome, deadline: float) -> None:
        self._load, self._outcome, self._deadline = load, outcome, deadline
        self._loop = asyncio.get_running_loop()
        self.done = self._loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # it is TCP
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._head, self._missing = b"", -1
        self._sent_at = perf_counter()
        request = random.choice(self._load.requests)  # noqa: S311  # no secret
        self._transport.write(request.replace(_NUMBER, b"%09d" % next(_numbers)))

    def data_received(self, data: bytes) -> None:
        if self._missing >= 0:
            self._missing -= len(data)
        else:
            self._head += data
            self._read_head()
        if self._missing == 0:
            self._finish(perf_counter())

    def _read_head(self) -> None:
        end = self._head.find(b"\r\n\r\n")
        if end >= 0:
            length = _LENGTH.search(self._head, 0, end)
            self._missing = end + 4 + (int(length[1]) if length else 0) - len(self._head)

    def _finish(self, now: float) -> None:
        self._outcome.answers.append((int(self._head[9:12]), now - self._sent_at))
        if now >= self._deadline or len(self._outcome.answers) >= self._load.most:
            self._transport.close()
        elif self._load.pause_seconds:
            self._loop.call_later(self._load.pause_seconds, self._send)
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(exc)


def run(*loads: Load) -> list[Outcome]:
    """Run these loads at the same time, and return their outcomes."""
    return uvloop.run(_run_all(loads))


async def _run_all(loads: Sequence[Load]) -> list[Outcome]:
    return await asyncio.gather(*map(_run, loads))


async def _run(load: Load) -> Outcome:
    outcome, started = Outcome(), perf_counter()
    deadline = started + load.seconds
    loop = asyncio.get_running_loop()
    connections = [
        await loop.create_connection(lambda: _Connection(load, outcome, deadline), "127.0.0.1", load.port)
        for _ in range(load.connections)
    ]
    await asyncio.gather(*(connection.done for _, connection in connections))
    outcome.seconds = perf_counter() - started
    return outcome
