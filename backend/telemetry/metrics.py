"""Metrics for Prometheus, by route template: no label holds a user, an id or an address.

Several workers write their metrics to files in one directory, so that each can answer with the sum of all.
"""

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

# The `_created` series would double the counters and histograms with the time of the first event.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client has no types for it

REQUESTS = Counter("http_requests_total", "Requests served", ("method", "route", "status"))
# Without the status, because a histogram has fifteen series for each set of labels; the counter has it.
DURATION = Histogram(
    "http_request_duration_seconds", "Time to the last byte of an answer", ("method", "route")
)
REQUESTS_UNDER_WAY = Gauge(
    "http_requests_under_way", "Requests not answered yet", multiprocess_mode="livesum"
)
DATABASE_RETRIES = Counter("database_retries_total", "Statements that were sent once more")
POOL_IN_USE = Gauge(
    "database_connections_in_use", "Connections at work, being made or closed", multiprocess_mode="livesum"
)
POOL_WAITING = Gauge(
    "database_requests_waiting", "Requests that wait for a connection", multiprocess_mode="livesum"
)
HASHES_WAITING = Gauge(
    "password_hashes_waiting", "Passwords being hashed or waiting for it", multiprocess_mode="livesum"
)
SIGN_INS = Counter("sign_ins_total", "Sign-ins by password: succeeded, or the error's code", ("outcome",))
KEY_FETCHES = Counter("jwks_fetches_total", "Fetches of another issuer's keys", ("outcome",))
LOG_LINES_LOST = Counter("log_lines_lost_total", "Lines that standard output did not take")

SAMPLE_SECONDS: Final = 1.0
"""The greatest age of another worker's gauges."""

_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it when it is imported
# One thread, because several scrapes at once would hold the interpreter's lock too long for requests.
_WRITER = ThreadPoolExecutor(1, thread_name_prefix="metrics")
_KNOWN_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def observe(method: str, route: str | None, status: int, seconds: float) -> None:
    """Count one request; `route` is its template, None where none matched."""
    requests, duration = _of(method if method in _KNOWN_METHODS else "other", route or "unmatched", status)
    requests.inc()
    duration.observe(seconds)


@cache
def _of(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(method, route, status), DURATION.labels(method, route)


@contextmanager
def shared_by_workers() -> Iterator[None]:
    """Set the directory in which the processes that start within the block add up their metrics."""
    with TemporaryDirectory(prefix="tasks-api-metrics-") as directory:
        os.environ[_DIRECTORY] = directory
        yield


async def exposition() -> tuple[bytes, str]:
    """Return the metrics in Prometheus' text format, and its content type.

    A thread writes the text, because that of a hundred routes would block the event loop for too long.
    """
    return await asyncio.get_running_loop().run_in_executor(_WRITER, _exposition)


def _exposition() -> tuple[bytes, str]:
    directory = os.environ.get(_DIRECTORY)
    if directory is None:
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    _forget_the_dead(Path(directory))
    registry = CollectorRegistry()
    MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _forget_the_dead(directory: Path) -> None:
    """Drop the gauges of workers that have ended; their counters stay in the sum."""
    for file in directory.glob("gauge_live*_*.db"):
        worker = int(file.stem.rpartition("_")[2])
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            mark_process_dead(worker, str(directory))  # type: ignore[no-untyped-call]
