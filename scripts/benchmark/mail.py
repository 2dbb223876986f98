"""The benchmark `mail`: times of answers for known and unknown emails, and the cost of sending mail.

Equal times keep a stranger from finding out which emails have accounts.
"""

import argparse
import multiprocessing
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from socket import create_connection, socket

from scripts.benchmark.bench import Bench, progress
from scripts.benchmark.load import LoadError
from scripts.benchmark.postgres import Database
from scripts.benchmark.relay import relay
from scripts.benchmark.report import table
from scripts.benchmark.subject import Subject, ours
from scripts.benchmark.traffic import fill, request

SAMPLES = 2000
"""The number of requests of each kind. Each known email is used once, so that each causes a mail."""
USERS = SAMPLES + 100
MAILS = 1000
STARTS = 3
"""The number of starts with mail and without; the memory is the median of each."""
DRAIN_SECONDS = 120
MIB = 2**20
KNOWN, UNKNOWN = "forgot, known email", "forgot, unknown email"
AFTER = {KNOWN: "GET /auth/me right after a known one", UNKNOWN: "GET /auth/me right after an unknown one"}
CREATE = "POST /tasks, a commit as well"
PAIRS = ((KNOWN, UNKNOWN), (AFTER[KNOWN], AFTER[UNKNOWN]), (KNOWN, CREATE), (KNOWN, AFTER[KNOWN]))

Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Difference:
    """The mean difference in time between two requests of the same round, in microseconds."""

    mean_us: float
    standard_error_us: float


def run(bench: Bench, _: argparse.Namespace) -> None:
    """Measure answers, sending and memory; prints tables, writes JSON."""
    progress("starting")
    database = bench.postgres.new("bench_mail")
    fill(database, users=USERS, heavy_tasks=1)
    with _relaying() as url:
        with ours(database, bench.workshop, MAIL_URL=url, RATE_LIMIT_ENABLED="false") as subject:
            samples = _sample(subject)
            _wait_until_sent(database)
            rate = _mails_per_second(database, subject)
            busy = subject.memory() / MIB
        memory = {
            "idle, without MAIL_URL": _idle_memory(bench, database),
            "idle, with MAIL_URL": _idle_memory(bench, database, MAIL_URL=url),
            "after sending": busy,
        }
    _report(bench, samples, rate, memory)


def _report(bench: Bench, samples: Samples, rate: float, memory: dict[str, float]) -> None:
    medians = {kind: statistics.median(taken) * 1e3 for kind, taken in samples.items()}
    differences = {f"{one} - {other}": _difference(samples[one], samples[other]) for one, other in PAIRS}
    rows = [(name, found.mean_us, found.standard_error_us) for name, found in differences.items()]
    print(f"\n{table([f'{SAMPLES:,} samples each', 'p50 ms'], medians.items())}")
    print(f"\n{table(['difference', 'mean µs', 'standard error µs'], rows)}")
    print(f"\n{table(['memory', 'MiB'], memory.items())}\n\nThe outbox sends {rate:.0f} mails per second.")
    bench.save(
        "mail",
        {
            "p50_ms": medians,
            "differences": {name: vars(found) for name, found in differences.items()},
            "mails_per_second": rate,
            "memory_mib": memory,
        },
    )


@contextmanager
def _relaying() -> Iterator[str]:
    """Run an SMTP server in a process whose CPU time is not measured; yield its MAIL_URL."""
    spawn = multiprocessing.get_context("spawn")
    ours_, theirs = spawn.Pipe()
    process = spawn.Process(target=relay, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"smtp://127.0.0.1:{ours_.recv()}?starttls=off"
    finally:
        process.terminate()
        process.join()


def _sample(subject: Subject) -> Samples:
    """Send each kind of request in each round, in random order, and return the times in seconds."""
    token = subject.traffic.heavy_token
    profile, create = (
        request("GET", "/auth/me", token),
        request("POST", "/tasks", token, {"title": "Buy milk"}),
    )
    samples: Samples = {kind: [] for kind in (KNOWN, UNKNOWN, *AFTER.values(), CREATE)}
    with create_connection(("127.0.0.1", subject.port)) as connection:
        for number in range(1, SAMPLES + 1):
            requests = {KNOWN: _forgot(f"user{number}"), UNKNOWN: _forgot(f"none{number}"), CREATE: create}
            for kind in random.sample(list(requests), len(requests)):
                samples[kind].append(_seconds(connection, requests[kind]))
                if kind in AFTER:
                    samples[AFTER[kind]].append(_seconds(connection, profile))
            progress(f"round {number:,} of {SAMPLES:,}")
    return samples


def _seconds(connection: socket, sent: bytes) -> float:
    started = time.perf_counter()
    connection.sendall(sent)
    answer = connection.recv(65536)
    taken = time.perf_counter() - started
    if not answer.startswith(b"HTTP/1.1 20"):
        raise LoadError(f"an answer begins with {answer[:40]!r}")
    return taken


def _forgot(name: str) -> bytes:
    return request("POST", "/auth/password/forgot", data={"email": f"{name}@example.com"})


def _difference(one: list[float], other: list[float]) -> Difference:
    differences = [(first - second) * 1e6 for first, second in zip(one, other, strict=True)]
    return Difference(statistics.mean(differences), statistics.stdev(differences) / SAMPLES**0.5)


def _mails_per_second(database: Database, subject: Subject) -> float:
    """Return the rate at which one process sends a full outbox."""
    progress(f"sending {MAILS:,} mails")
    database.sql(
        "INSERT INTO outbox (kind, email, email_key) SELECT 'verify', email, email_key FROM users LIMIT $1",
        MAILS,
    )
    started = time.perf_counter()
    with create_connection(("127.0.0.1", subject.port)) as connection:
        connection.sendall(_forgot("nobody"))  # makes the service read the outbox
        connection.recv(65536)
        _wait_until_sent(database)
    return MAILS / (time.perf_counter() - started)


def _wait_until_sent(database: Database) -> None:
    for attempt in count():
        if not database.sql("SELECT id FROM outbox WHERE done_at IS NULL LIMIT 1"):
            return
        if attempt > DRAIN_SECONDS * 10:
            raise LoadError("the outbox is not sent")
        time.sleep(0.1)


def _idle_memory(bench: Bench, database: Database, **settings: str) -> float:
    """Return the memory of a process that has served nothing, in MiB."""
    found = []
    for _ in range(STARTS):
        with ours(database, bench.workshop, **settings) as subject:
            time.sleep(1)
            found.append(subject.memory() / MIB)
    return statistics.median(found)
