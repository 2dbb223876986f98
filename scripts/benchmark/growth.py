"""The benchmark `growth`: PostgreSQL's CPU per request with ten thousand tasks and with a million.

The cost of a request must not grow with the table.
"""

import argparse
import http.client
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product

from scripts.benchmark.bench import Bench, progress
from scripts.benchmark.postgres import Database
from scripts.benchmark.report import table
from scripts.benchmark.subject import Subject, ours
from scripts.benchmark.traffic import TASKS_EACH, fill, request, traffic

SIZES, LARGE = (10**4, 10**6), 10**7
HEAVY_TASKS = 20_020
"""The tasks of one more user, whose page 1,000 of 20 tasks is the last full one."""
ACTIVE_USERS = 500
"""The number of users who send requests, at every size."""
FIRST_USER = {"side by side": 2, "scattered": 1}
"""By layout of tasks: `fill` puts those of an even user on one page, those of an odd one on twenty."""
READS, CREATE, PAGES = ("get", "list 20"), "create", ("page 1", "page 1,000")
OPERATIONS = (*(f"{read}, {layout}" for read, layout in product(READS, FIRST_USER)), CREATE, *PAGES)
WARM_UP_SECONDS = 3
"""Enough for PostgreSQL's processes to map the pages that they read, which costs CPU once per page."""

_NEXT = re.compile(r"<(.+)>")


def run(bench: Bench, options: argparse.Namespace) -> None:
    """Measure each size, and the first and the thousandth page at each; prints a table, writes JSON."""
    with ExitStack() as stack:
        sizes = (*SIZES, LARGE) if options.large else SIZES
        subjects = [stack.enter_context(_subject(bench, size)) for size in sizes]
        figures = bench.compare(
            subjects,
            OPERATIONS,
            rounds=options.rounds,
            seconds=options.seconds,
            warm_up_seconds=WARM_UP_SECONDS,
        )
    rows = [
        (f"{operation}, {title}", found.p50_ms, found.app_cpu_us, found.postgres_cpu_us, ratio)
        for operation, by_size in figures.items()
        for title, found in by_size.items()
        for ratio in [found.postgres_cpu_us / by_size[subjects[0].title].postgres_cpu_us]
    ]
    print(f"\n{table(['', 'p50 ms', 'app µs', 'PostgreSQL µs', 'of the smallest'], rows)}\n")
    deep = [
        (f"page 1,000, {title}", last.p50_ms / first.p50_ms, last.postgres_cpu_us / first.postgres_cpu_us)
        for title, first in figures[PAGES[0]].items()
        for last in [figures[PAGES[1]][title]]
    ]
    print(table(["of page 1", "p50", "PostgreSQL"], deep))
    bench.save("growth", {"operations": figures})


@contextmanager
def _subject(bench: Bench, size: int) -> Iterator[Subject]:
    progress(f"inserting {size:,} tasks")
    database = bench.postgres.new(f"bench_{size}")
    fill(database, users=size // TASKS_EACH, heavy_tasks=HEAVY_TASKS)
    with ours(database, bench.workshop, title=f"{size:,} tasks") as subject:
        requests = {**_requests(database, size // TASKS_EACH), **_pages(subject)}
        yield replace(subject, traffic=replace(subject.traffic, requests=requests))


def _requests(database: Database, users: int) -> dict[str, Sequence[bytes]]:
    step = len(FIRST_USER) * users // ACTIVE_USERS
    sent = {
        layout: traffic(database, range(first, users + 1, step)).requests
        for layout, first in FIRST_USER.items()
    }
    reads = {f"{read}, {layout}": sent[layout][read] for read, layout in product(READS, sent)}
    return {**reads, CREATE: [request for layout in sent for request in sent[layout][CREATE]]}


def _pages(subject: Subject) -> dict[str, Sequence[bytes]]:
    paths = (f"/tasks?limit={TASKS_EACH}", _thousandth_page(subject))
    token = subject.traffic.heavy_token
    return {page: [request("GET", path, token)] for page, path in zip(PAGES, paths, strict=True)}


def _thousandth_page(subject: Subject) -> str:
    """Return the path of page 1,000. It reads 20 pages of 999, because a cursor holds no page size."""
    path, stride = "/tasks?limit=999", "limit=999"
    connection = http.client.HTTPConnection("127.0.0.1", subject.port)
    for _ in range(TASKS_EACH):
        connection.request("GET", path, headers={"Authorization": f"Bearer {subject.traffic.heavy_token}"})
        response = connection.getresponse()
        response.read()
        link = _NEXT.match(response.headers["Link"])
        assert link is not None
        path = link[1]
    connection.close()
    return path.replace(stride, f"limit={TASKS_EACH}")
