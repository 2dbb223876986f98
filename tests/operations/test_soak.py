"""Mixed traffic under random faults: nothing is lost, nothing grows, and each answer is a promised one.

The suite runs it for a short time with each kind of fault once. `scripts/soak` runs it for an hour.
"""

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random, SystemRandom

import httpx2
import psutil
import pytest

from scripts.benchmark.meter import family_cpu_seconds
from tests.operations.soak.books import Books, Task
from tests.operations.soak.faults import Faults
from tests.operations.soak.journal import Failure, Journal, UnansweredError
from tests.operations.soak.stage import POOL_SIZE, WORKERS, Stage
from tests.operations.soak.users import VISITORS_TITLE, User
from tests.operations.soak.vitals import Vitals
from tests.programs import passable_directory
from tests.service import running
from tests.test_rate_limits import Redis

USERS = 12
USER_PAUSE = 0.5
"""The average seconds between two acts of a user, long enough for other tests to run beside."""
SHORT_SECONDS = 20.0
MOST_FAULT_PAUSE = 5.0
PROGRESS_SECONDS = 10.0
LEAVE_SECONDS = 15.0
"""Python's own resource tracker ends just after the supervisor that it belongs to."""
SETTINGS = {
    "WORKERS": str(WORKERS),
    "DATABASE_POOL_SIZE": str(POOL_SIZE),
    "BCRYPT_ROUNDS": "6",
    "RATE_LIMIT_ENABLED": "true",
    "RATE_LIMIT_REGISTER": "1000000/hour",
    "FORWARDED_ALLOW_IPS": "127.0.0.1",
    "SHUTDOWN_DRAIN_SECONDS": "1",
}


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    """The length of the soak in seconds."""
    return float(request.config.getoption("--soak")) or SHORT_SECONDS


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The random seed. It reproduces the faults and the acts, but not their times."""
    given: int | None = request.config.getoption("--soak-seed")
    return SystemRandom().randrange(10**6) if given is None else given


def chance(seed: int) -> Random:
    return Random(seed)  # noqa: S311  # no secret


@contextmanager
def stage_of(log: Path, journal: Journal, seed: int) -> Iterator[Stage]:
    with ExitStack() as stack:
        # An early stop, by SIGTERM too, leaves no process running.
        stack.callback(
            signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler)
        )
        directory = stack.enter_context(passable_directory())
        redis = Redis(directory) if shutil.which("redis-server") else None
        settings = {**SETTINGS, "DATA_DIR": str(directory / "data")}
        if redis is not None:
            redis.start()
            stack.callback(redis.client.close)
            stack.callback(redis.kill)
            settings["RATE_LIMIT_STORAGE_URI"] = redis.url
        service = stack.enter_context(running(log, **settings))
        users = [User(service.url, journal, chance(seed + number)) for number in range(USERS)]
        yield Stage(service, directory / "data", users, redis)


async def soak(stage: Stage, journal: Journal, vitals: Vitals, seed: int, seconds: float) -> None:
    """Run the users under faults, then get the tasks of every user."""
    vitals.rest()
    for user in stage.users:
        user.others = [other for other in stage.users if other is not user]
        await user.register()
    over_at = time.monotonic() + seconds
    pause = min(MOST_FAULT_PAUSE, seconds / 100)
    faults = Faults(stage, journal, chance(seed), last_replacement=over_at - seconds * 2 / 3, pause=pause)
    async with asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(vitals.watch()), tasks.create_task(report(journal))]
        striking = tasks.create_task(faults.strike(over_at))
        await asyncio.gather(*(user.live(striking, USER_PAUSE) for user in stage.users))
        for task in watching:
            task.cancel()
    await balance(stage, journal)
    for user in stage.users:
        await user.close()
    await asyncio.sleep(5)  # the service hears of it
    vitals.judge()


async def report(journal: Journal) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        excused, answers = journal.excused.total(), journal.answers.total()
        journal.say(f"{answers:,} answers, {journal.faults.total()} faults, {excused} failures excused")


async def balance(stage: Stage, journal: Journal) -> None:
    """Compare the books with what the service says, over each surface, and with what is in the database."""
    listed = 0
    for user in stage.users:
        await user.sign_in()
        for path in ("/tasks", f"/api/{user.books.user_id}/tasks"):
            found = (await user.send("GET", path, "200")).json()
            user.check(found)
        listed += len(found)
    async with stage.database() as database:
        kept = await database.fetch("SELECT user_id, title FROM tasks")
    known = {user.books.user_id for user in stage.users}
    strange = [row["title"] for row in kept if row["user_id"] not in known]
    if len(kept) - len(strange) != listed:
        journal.blame(f"{listed} tasks are listed, {len(kept) - len(strange)} are in the database")
    if {*strange} - {VISITORS_TITLE} or len(strange) > journal.excused.total():
        journal.blame(f"nobody's tasks: {strange}")


def end(stage: Stage, journal: Journal) -> None:
    """Stop the service, which takes its PostgreSQL with it."""
    family = [stage.supervisor, *stage.supervisor.children(recursive=True)]
    code = stage.service.stop()
    if code != 0:
        journal.blame(f"exit code {code}")
    deadline = time.monotonic() + LEAVE_SECONDS
    while any(map(is_alive, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left := [process for process in family if is_alive(process)]:
        journal.blame(f"left behind: {left}")
    read_log(stage.service.log, journal)


def read_log(log: Path, journal: Journal) -> None:
    """Check that the log has no defect, and no worker that died by itself."""
    died = 0
    with log.open() as lines:
        for line in lines:
            died += '"event":"Child process [' in line
            if not is_promised(line):
                journal.blame(f"in the log: {line[:1000]}")
    if died != journal.faults["worker killed"]:
        journal.blame(f"{died} workers died")


def is_alive(process: psutil.Process) -> bool:
    """Return True for a running process. A dead one may still be a zombie."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def is_promised(line: str) -> bool:
    """Return True if a line of the log is JSON and reports no defect."""
    if not line.startswith("{"):
        return False
    read = json.loads(line)
    return bool(read["level"] != "ERROR" or read["event"] == "http.request")


def test_under_random_faults_nothing_is_lost_and_nothing_grows(
    tmp_path: Path, seconds: float, seed: int
) -> None:
    journal = Journal()
    journal.say(f"{seconds:.0f} seconds, --soak-seed {seed}")
    with stage_of(tmp_path / "log", journal, seed) as stage:
        vitals = Vitals(stage, journal)
        try:
            asyncio.run(soak(stage, journal, vitals, seed, seconds))
        except UnansweredError:
            journal.blame("an account could not be asked for its tasks")
        measured = summary(stage, journal, vitals)
        end(stage, journal)
    journal.say(measured)
    assert journal.wrong == []


def summary(stage: Stage, journal: Journal, vitals: Vitals) -> str:
    """Return what was measured, and what it cost."""
    seconds = time.monotonic() - journal.began_at
    service, ours = family_cpu_seconds(stage.service.process.pid), time.process_time() - journal.began_cpu
    cost = (
        f"service {service / seconds:.1%}, PostgreSQL included, and traffic {ours / seconds:.1%} of one core"
    )
    return "\n".join(["the soak is over", journal.summary(), vitals.summary(), f"{'cost:':18}{cost}"])


# Tests of the checks themselves


TASK = {
    "id": 1,
    "user_id": "ada",
    "title": "Buy milk",
    "description": None,
    "completed": False,
    "updated_at": "1",
}


@pytest.fixture
def books() -> Books:
    """Books with an acknowledged task, one with an unanswered change, and one with an unanswered creation."""
    books = Books("ada", {1: TASK, 2: TASK | {"id": 2}})
    with pytest.raises(UnansweredError), books.writing(2, {"completed": True}):
        raise UnansweredError
    with pytest.raises(UnansweredError), books.creating(TASK | {"title": "Perhaps"}):
        raise UnansweredError
    return books


CHANGED, PERHAPS = (
    TASK | {"id": 2, "completed": True, "updated_at": "2"},
    TASK | {"id": 3, "title": "Perhaps"},
)


@pytest.mark.parametrize("found", [[TASK, TASK | {"id": 2}], [TASK, CHANGED], [TASK, CHANGED, PERHAPS]])
def test_what_got_no_answer_happened_or_did_not(books: Books, found: list[Task]) -> None:
    assert [*books.problems(found)] == []


@pytest.mark.parametrize(
    "found",
    [
        [CHANGED],
        [TASK],
        [TASK | {"updated_at": "2"}, CHANGED],
        [TASK, CHANGED | {"title": "Buy bread"}],
        [TASK, TASK, CHANGED],
        [TASK, CHANGED, PERHAPS, PERHAPS | {"id": 4}],
        [TASK, CHANGED, PERHAPS | {"description": "Never sent"}],
        [TASK, CHANGED, TASK | {"id": 5}],
        [TASK, CHANGED | {"user_id": "bob"}],
    ],
    ids=[
        "lost",
        "lost in doubt",
        "changed",
        "mangled",
        "twice",
        "done twice",
        "altered",
        "strange",
        "another's",
    ],
)
def test_the_books_tell_what_went_wrong(books: Books, found: list[Task]) -> None:
    assert [*books.problems(found)] != []


def answer(path: str, status: int, code: str, **headers: str) -> httpx2.Response:
    request = httpx2.Request("GET", f"http://localhost{path}")
    return httpx2.Response(status, json={"code": code}, headers=headers, request=request)


RETRY = {"Retry-After": "1"}


@pytest.mark.parametrize(
    ("response", "is_excused"),
    [
        (answer("/tasks", 503, "database_unavailable", **RETRY), True),
        (answer("/api/ada/tasks", 500, "database_unavailable", **RETRY), True),
        (answer("/tasks", 503, "database_unavailable"), False),
        (answer("/tasks", 500, "database_unavailable", **RETRY), False),
        (answer("/api/ada/tasks", 503, "database_unavailable", **RETRY), False),
        (answer("/api/ada/tasks", 500, "internal_error", **RETRY), False),
        (answer("/auth/login", 503, "service_unavailable", **RETRY), False),
        (answer("/tasks", 200, ""), False),
    ],
)
def test_a_fault_excuses_its_own_failures_in_the_words_of_the_contract(
    response: httpx2.Response, is_excused: bool
) -> None:
    journal = Journal()
    with journal.fault("one", frozenset({Failure.UNAVAILABLE})), pytest.raises(UnansweredError):
        journal.judge(response, time.monotonic(), "201")
    assert (journal.wrong == []) is is_excused


def test_nothing_is_excused_that_began_after_the_recovery() -> None:
    journal = Journal()
    with journal.fault("one", frozenset({Failure.UNAVAILABLE})):
        pass
    with pytest.raises(UnansweredError):
        journal.judge(answer("/tasks", 503, "database_unavailable", **RETRY), time.monotonic(), "200")
    assert len(journal.wrong) == 1
