"""The benchmark `storm`: sign-ins keep every core hashing while other clients list tasks.

It also measures the answers of a full hash queue.
"""

import argparse
import asyncio
import os
from dataclasses import asdict, dataclass
from time import perf_counter

from backend.auth.accounts.passwords import PasswordHasher
from scripts.benchmark.bench import Bench, progress
from scripts.benchmark.load import Load, Outcome
from scripts.benchmark.report import table
from scripts.benchmark.subject import Subject, ours
from scripts.benchmark.traffic import PASSWORD, fill, request, sign_in

USERS, HEAVY_TASKS = 1000, 1000
BCRYPT_ROUNDS = 12
ADDRESS = "127.0.0.1"
CORES = os.cpu_count() or 1
BUSY = 4 * CORES
"""Concurrent sign-ins that keep the hash threads busy without a refusal."""
TOO_MANY = 100 * CORES
"""Concurrent sign-ins beyond the limit of the queue, which is 64 per thread."""


@dataclass(frozen=True)
class Weather:
    """The figures of the clients; None without an answer of the kind."""

    tasks_per_second: float
    tasks_p50_ms: float
    tasks_p99_ms: float
    health_max_ms: float
    sign_ins_per_second: float
    sign_ins_of_the_cores: float
    sign_in_max_ms: float | None
    refused_per_second: float
    refused_p50_ms: float | None
    refused_max_ms: float | None


def run(bench: Bench, options: argparse.Namespace) -> None:
    """Measure tasks and probes with no, many and too many sign-ins; prints a table, writes JSON."""
    seconds = 10 * options.seconds
    progress("hashing with nothing else going on")
    hasher = PasswordHasher(rounds=BCRYPT_ROUNDS)
    stored = asyncio.run(hasher.hash(PASSWORD, ADDRESS))
    alone = asyncio.run(_hashes_per_second(hasher, stored, seconds / 2))
    database = bench.postgres.new("bench_storm")
    fill(database, users=USERS, heavy_tasks=HEAVY_TASKS, password_hash=stored)
    settings = {"BCRYPT_ROUNDS": str(BCRYPT_ROUNDS), "FORWARDED_ALLOW_IPS": "127.0.0.1"}
    with ours(database, bench.workshop, **settings) as subject:
        found = {
            f"{count} signing in" if count else "idle": _measure(bench, subject, count, seconds, alone)
            for count in (0, BUSY, TOO_MANY)
        }
    figures = {title: asdict(weather) for title, weather in found.items()}
    names = figures["idle"]
    rows = [(name.replace("_", " "), *(weather[name] for weather in figures.values())) for name in names]
    print(f"\n{table(['', *figures], rows)}\n\nThe cores hash {alone:.1f} passwords per second alone.")
    bench.save("storm", {"hashes_per_second": alone, "weather": figures})


async def _hashes_per_second(hasher: PasswordHasher, stored: str, seconds: float) -> float:
    started, count = perf_counter(), 0

    async def keep_hashing() -> None:
        nonlocal count
        while perf_counter() < started + seconds:
            await hasher.cost_of_failure(PASSWORD, stored, ADDRESS)
            count += 1

    await asyncio.gather(*(keep_hashing() for _ in range(2 * CORES)))
    hasher.close()
    return count / (perf_counter() - started)


def _measure(bench: Bench, subject: Subject, signing_in: int, seconds: float, alone: float) -> Weather:
    progress(f"{signing_in} signing in")
    port, requests = subject.port, subject.traffic.requests["list 20"]
    loads = [
        Load(port, requests, seconds, connections=4, pause_seconds=0.02),
        Load(port, [request("GET", "/health")], seconds, connections=1, pause_seconds=0.05),
    ]
    if signing_in:
        passwords = [sign_in(number) for number in range(1, USERS + 1)]
        loads.append(Load(port, passwords, seconds, signing_in, pause_seconds=_pause(signing_in)))
    tasks, probes, *others = bench.put(*loads)
    sign_ins = others[0] if others else Outcome(seconds)
    accepted, refused = sign_ins.latencies(200), sign_ins.latencies(503)
    return Weather(
        tasks_per_second=len(tasks.answers) / tasks.seconds,
        tasks_p50_ms=tasks.percentile(0.5) * 1e3,
        tasks_p99_ms=tasks.percentile(0.99) * 1e3,
        health_max_ms=probes.percentile(1) * 1e3,
        sign_ins_per_second=len(accepted) / sign_ins.seconds,
        sign_ins_of_the_cores=len(accepted) / sign_ins.seconds / alone,
        sign_in_max_ms=accepted[-1] * 1e3 if accepted else None,
        refused_per_second=len(refused) / sign_ins.seconds,
        refused_p50_ms=refused[len(refused) // 2] * 1e3 if refused else None,
        refused_max_ms=refused[-1] * 1e3 if refused else None,
    )


def _pause(signing_in: int) -> float:
    """Return the seconds between two attempts of a client, which are 0 unless some are refused."""
    return 1 if signing_in > BUSY else 0
