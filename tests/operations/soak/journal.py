"""Counts answers and faults of a soak, and records as wrong each failure that no current fault excuses."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from statistics import quantiles
from typing import Any

import httpx2

MOST_KEPT = 50
"""The most wrongs that are reported in full, because further ones are alike."""


class Failure(Enum):
    """The ways in which a request may fail through no fault of its own."""

    LOST = "connection lost"
    UNAVAILABLE = "database unavailable"
    OVERLOADED = "overloaded"


REFUSALS = {
    "503 database_unavailable": Failure.UNAVAILABLE,
    "500 database_unavailable": Failure.UNAVAILABLE,
    "503 service_unavailable": Failure.OVERLOADED,
    "503 overloaded": Failure.OVERLOADED,
}
"""The prefix of the route determines the first or the second."""


class UnansweredError(Exception):
    """A request failed, and the current fault excuses it. Its effect is unknown."""


@dataclass
class Window:
    """The time from a fault to the recovery from it, by `time.monotonic`."""

    excuses: frozenset[Failure]
    began_at: float
    ended_at: float = inf
    left: float = inf
    """The number of failures that are still excused."""


@dataclass
class Journal:
    """Counts, and everything that was wrong."""

    began_at: float = field(default_factory=time.monotonic)
    began_cpu: float = field(default_factory=time.process_time)
    answers: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """The seconds of each response."""
    longest_recovery: float = 0
    _windows: list[Window] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Print a line, with the seconds since the beginning."""
        sys.stdout.write(f"{time.monotonic() - self.began_at:7.1f} s  {line}\n")
        sys.stdout.flush()

    def blame(self, what: str) -> None:
        """Record a wrong."""
        if len(self.wrong) < MOST_KEPT:
            self.wrong.append(f"{time.monotonic() - self.began_at:.1f} s: {what}")
            self.say(f"WRONG: {what}")

    @contextmanager
    def fault(self, name: str, excuses: frozenset[Failure], most: float = inf) -> Iterator[Window]:
        """Excuse these failures, at most `most` of them, until the end of the block."""
        self.faults[name] += 1
        window = Window(excuses, time.monotonic(), left=most)
        self._windows.append(window)
        try:
            yield window
        finally:
            window.ended_at = time.monotonic()

    def judge(self, response: httpx2.Response, since: float, *expected: str) -> None:
        """Take an answer; raises `UnansweredError` for a failure that is excused."""
        said = described(response)
        self.answers[said] += 1
        self.seconds.append(time.monotonic() - since)
        if said not in expected:
            where = f"{response.request.method} {response.request.url.path}"
            self._judge_failure(_failure(response, said), f"{where}: {said}, not {expected}", since)

    def judge_loss(self, request: str, error: httpx2.TransportError, since: float) -> None:
        """Take the loss of a connection; raises `UnansweredError`. No fault excuses one that says nothing."""
        failure = None if isinstance(error, httpx2.TimeoutException) else Failure.LOST
        self._judge_failure(failure, f"{request}: {error!r}", since)

    def _judge_failure(self, failure: Failure | None, what: str, since: float) -> None:
        windows = (window for window in self._windows if window.ended_at >= since and window.left > 0)
        excusing = next((window for window in windows if failure in window.excuses), None)
        if failure is not None and excusing is not None:
            excusing.left -= 1
            self.excused[failure.value] += 1
        else:
            self.blame(what)
        raise UnansweredError

    def summary(self) -> str:
        """Return the counts, one kind to a line."""
        median, last_hundredth = _percentiles(self.seconds)
        rate = len(self.seconds) / (time.monotonic() - self.began_at)
        lines = {
            "answers": f"{len(self.seconds):,}, {rate:.0f} a second; {_told(self.answers)}",
            "time": f"median {median * 1000:.1f} ms, 99 % within {last_hundredth * 1000:.0f} ms",
            "faults": f"{self.faults.total()}: {_told(self.faults)}",
            "failed meanwhile": _told(self.excused) or "nothing",
            "longest recovery": f"{self.longest_recovery:.1f} s",
            "wrong": str(len(self.wrong)),
        }
        return "\n".join(f"{name + ':':18}{value}" for name, value in lines.items())


def described(response: httpx2.Response) -> str:
    """Return the status, and the code of an error: `404 task_not_found`."""
    if not response.is_error:
        return str(response.status_code)
    is_json = response.headers.get("content-type") == "application/json"
    body: Any = response.json() if is_json else {}
    return f"{response.status_code} {body.get('code', 'without a code')}"


def _failure(response: httpx2.Response, said: str) -> Failure | None:
    """Return the failure that a response stands for; None for a response that is no known failure."""
    is_scoped = response.request.url.path.startswith("/api/")
    if "Retry-After" not in response.headers or said.startswith("500") is not (
        is_scoped and REFUSALS.get(said) is Failure.UNAVAILABLE
    ):
        return None
    return REFUSALS.get(said)


def _percentiles(values: list[float]) -> tuple[float, float]:
    hundredths = quantiles([*values, 0, 0], n=100)  # of no values, too
    return hundredths[49], hundredths[98]


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} × {name}" for name, count in counts.most_common())
