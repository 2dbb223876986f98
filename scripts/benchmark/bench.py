"""`Bench` measures a subject: it puts a load on it, computes the figures, and saves results as JSON."""

import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, Self

from scripts.benchmark import load
from scripts.benchmark.load import Load, LoadError, Outcome
from scripts.benchmark.postgres import Postgres
from scripts.benchmark.subject import Subject
from scripts.benchmark.traffic import Traffic

CONNECTIONS = 16


@dataclass(frozen=True)
class Figures:
    """The cost of one kind of request; CPU in microseconds, latencies in milliseconds."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    app_cpu_us: float
    postgres_cpu_us: float


class Bench:
    """Runs loads in a process of their own, whose CPU time is not measured."""

    def __init__(self, postgres: Postgres, directory: Path, workshop: Path) -> None:
        self.postgres, self.directory, self.workshop = postgres, directory, workshop
        self._loads = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loads.shutdown()

    def put(self, *loads: Load) -> list[Outcome]:
        """Run these loads at the same time, and return their outcomes."""
        return self._loads.submit(load.run, *loads).result()

    def compare(
        self,
        subjects: Sequence[Subject],
        operations: Iterable[str],
        *,
        rounds: int,
        seconds: float,
        warm_up_seconds: float = 0.3,
    ) -> dict[str, dict[str, Figures]]:
        """Return medians by operation and subject, of rounds in random order with one load at a time."""
        pairs = list(product(operations, subjects))
        measured: dict[tuple[str, str], list[Figures]] = {}
        for operation, subject in pairs:
            self.measure(subject, operation, warm_up_seconds)
        for number in range(1, rounds + 1):
            for done, (operation, subject) in enumerate(random.sample(pairs, len(pairs)), 1):
                progress(
                    f"round {number} of {rounds}: {done} of {len(pairs)}, {operation} of {subject.title}"
                )
                figures = self.measure(subject, operation, seconds)
                measured.setdefault((operation, subject.title), []).append(figures)
        progress("")
        medians: dict[str, dict[str, Figures]] = {}
        for operation, subject in pairs:
            medians.setdefault(operation, {})[subject.title] = _median(measured[operation, subject.title])
        return medians

    def measure(self, subject: Subject, operation: str, seconds: float) -> Figures:
        """Run one load on one subject, and restore its database."""
        traffic: Traffic = subject.traffic
        app, postgres = subject.cpu_seconds(), self.postgres.cpu_seconds()
        try:
            [outcome] = self.put(Load(subject.port, traffic.requests[operation], seconds, CONNECTIONS))
            outcome.expect(201 if operation == "create" else 200)
        except (LoadError, OSError) as error:
            raise LoadError(f"{operation} of {subject.title}: {error}\n{subject.last_words()}") from error
        app, postgres = subject.cpu_seconds() - app, self.postgres.cpu_seconds() - postgres
        traffic.clean_up(operation)
        count = len(outcome.answers)
        return Figures(
            requests_per_second=count / outcome.seconds,
            p50_ms=outcome.percentile(0.5) * 1e3,
            p99_ms=outcome.percentile(0.99) * 1e3,
            app_cpu_us=app / count * 1e6,
            postgres_cpu_us=postgres / count * 1e6,
        )

    def save(self, name: str, results: dict[str, Any]) -> None:
        """Write the results and a description of the machine as JSON."""
        machine = {
            "at": datetime.now(UTC),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "load_average": os.getloadavg(),
        }
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps({"machine": machine, **results}, indent=2, default=_plain) + "\n")
        print(f"\n{path}")


def _median(measured: Sequence[Figures]) -> Figures:
    names = [field.name for field in fields(Figures)]
    return Figures(*(statistics.median(getattr(figures, name) for figures in measured) for name in names))


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Figures) else str(value)


def progress(text: str) -> None:
    """Show the progress in one line, which the next call overwrites."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
