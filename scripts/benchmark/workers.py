"""The benchmark `workers`: one process of the service against two, on the same machine."""

import argparse

from scripts.benchmark.bench import Bench, progress
from scripts.benchmark.report import table
from scripts.benchmark.subject import ours
from scripts.benchmark.traffic import fill

OPERATIONS = ("get", "list 20", "create")
USERS, HEAVY_TASKS = 1000, 1000
MIB = 2**20


def run(bench: Bench, options: argparse.Namespace) -> None:
    """Measure WORKERS=1 and WORKERS=2; prints a table, writes JSON."""
    progress("starting")
    template = bench.postgres.new("template")
    fill(template, users=USERS, heavy_tasks=HEAVY_TASKS)
    one, two = (bench.postgres.copy(template, f"bench_{number}") for number in ("one", "two"))
    with (
        ours(one, bench.workshop, title="1 worker", WORKERS="1") as single,
        ours(two, bench.workshop, title="2 workers", WORKERS="2") as double,
    ):
        figures = bench.compare([single, double], OPERATIONS, rounds=options.rounds, seconds=options.seconds)
        memory = {subject.title: subject.memory() / MIB for subject in (single, double)}
    rows = [
        (f"{operation}, {title}", found.requests_per_second, found.p50_ms, found.p99_ms, found.app_cpu_us)
        for operation, by_subject in figures.items()
        for title, found in by_subject.items()
    ]
    print(f"\n{table(['', 'requests/s', 'p50 ms', 'p99 ms', 'app µs'], rows)}")
    print(f"\n{table(['memory of all processes', 'MiB'], memory.items())}")
    bench.save("workers", {"operations": figures, "memory_mib": memory})
