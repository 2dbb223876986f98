"""The benchmark `compare`: the service, a minimal application, a typical FastAPI one and Fastify.

All of them have the same schema and the same data on one PostgreSQL server.
"""

import argparse
import sys
from contextlib import ExitStack

from scripts.benchmark.bench import Bench, Figures, progress
from scripts.benchmark.chart import bar_chart
from scripts.benchmark.postgres import Database
from scripts.benchmark.report import table
from scripts.benchmark.subject import (
    FASTIFY,
    LIMIT,
    USUAL,
    Subject,
    SubjectError,
    before,
    fastify,
    on_uvicorn,
    ours,
)
from scripts.benchmark.traffic import OPERATIONS, fill

USERS, HEAVY_TASKS = 1000, 1000
MIB = 2**20


def run(bench: Bench, options: argparse.Namespace) -> None:
    """Measure every operation on every subject; prints a table, writes JSON and a chart."""
    with ExitStack() as stack:
        subjects = _start(bench, stack, options.before)
        figures = bench.compare(subjects, OPERATIONS, rounds=options.rounds, seconds=options.seconds)
        memory = {subject.title: subject.memory() / MIB for subject in subjects}
    for operation, by_subject in figures.items():
        print(f"\n{_table(operation, by_subject)}")
    print(f"\n{table(['memory', 'MiB'], memory.items())}")
    bench.save("comparison", {"operations": figures, "memory_mib": memory})
    chart = bench.directory / "comparison.svg"
    chart.write_text(
        bar_chart(
            "CPU of the application per request, as multiples of the limit",
            {
                operation: {
                    title: found.app_cpu_us / by_subject[LIMIT].app_cpu_us
                    for title, found in by_subject.items()
                }
                for operation, by_subject in figures.items()
            },
        )
    )
    print(chart)


def _start(bench: Bench, stack: ExitStack, revision: str | None) -> list[Subject]:
    """Start the service, the limit, and either the service at `revision` or the other peers."""
    progress("filling the database")
    template = bench.postgres.new("template")
    _fill(template)

    def copy(name: str) -> Database:
        progress(f"starting {name}")
        return bench.postgres.copy(template, f"bench_{name}")

    subjects = [
        stack.enter_context(on_uvicorn(LIMIT, "limit", copy("limit"), bench.workshop)),
        stack.enter_context(ours(copy("ours"), bench.workshop)),
    ]
    if revision is not None:
        earlier = before(revision, bench.postgres, bench.workshop, _fill)
        return [*subjects, stack.enter_context(earlier)]
    try:
        subjects.append(stack.enter_context(fastify(copy("fastify"), bench.workshop, bench.directory)))
    except SubjectError as error:
        print(f"Without {FASTIFY}: {error}.", file=sys.stderr)
    subjects.append(stack.enter_context(on_uvicorn(USUAL, "usual", copy("usual"), bench.workshop)))
    return subjects


def _fill(database: Database) -> None:
    fill(database, users=USERS, heavy_tasks=HEAVY_TASKS)


def _table(operation: str, by_subject: dict[str, Figures]) -> str:
    limit = by_subject[LIMIT]
    return table(
        [operation, "requests/s", "p50 ms", "p99 ms", "PostgreSQL µs", "app µs", "of the limit's"],
        (
            (
                title,
                figures.requests_per_second,
                figures.p50_ms,
                figures.p99_ms,
                figures.postgres_cpu_us,
                figures.app_cpu_us,
                figures.app_cpu_us / limit.app_cpu_us,
            )
            for title, figures in by_subject.items()
        ),
    )
