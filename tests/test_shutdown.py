"""SIGTERM: the process is not ready at once, finishes its requests, and serves others until they stop."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2
import psutil
import pytest

from tests.conftest import Postgres, locked
from tests.service import Account, Service, program_with
from tests.waiting import until


def toggle(account: Account, task_id: int) -> httpx2.Response:
    return account.client.patch(f"/tasks/{task_id}/complete")


def statement_waits(database: Postgres) -> bool:
    found = database.sql(
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return bool(found)


def readiness(service: Service) -> httpx2.Response:
    return service.client().get("/health/ready")


def not_ready(service: Service) -> httpx2.Response:
    """Ask until a process reports that it is not ready. Other processes may still be ready."""
    deadline = time.monotonic() + 20
    while (answer := readiness(service)).status_code != 503:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return answer


@pytest.mark.parametrize("workers", ["1", "2"])
def test_after_sigterm_it_is_not_ready_and_what_is_under_way_finishes(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres], workers: str
) -> None:
    database = new_database()
    service = new_service(
        DATABASE_URL=database.url, WORKERS=workers, DATABASE_TIMEOUT_SECONDS="15", SHUTDOWN_DRAIN_SECONDS="15"
    )
    ada = service.register()
    task = ada.create()
    with ThreadPoolExecutor() as threads:
        with locked(database, task["id"]):
            answer = threads.submit(toggle, ada, task["id"])
            until(lambda: statement_waits(database))
            service.process.send_signal(signal.SIGTERM)
            refusal = not_ready(service)
            assert refusal.json()["code"] == "shutting_down"
            assert refusal.headers["connection"] == "close"
            assert service.client().get("/health").status_code == 200
        assert answer.result().json()["completed"] is True
    assert service.process.wait(20) == 0
    assert database.sql("SELECT completed FROM tasks") == [{"completed": True}]


def test_a_process_that_drains_is_not_ready_and_logs_that_as_no_error(
    new_service: Callable[..., Service],
) -> None:
    program = program_with("backend.web.drain.QUIET_SECONDS = 600")  # so that a busy machine makes no pause
    service = new_service(program=program, SHUTDOWN_DRAIN_SECONDS="600", SHUTDOWN_GRACE_SECONDS="600")
    service.register()
    service.process.send_signal(signal.SIGTERM)
    not_ready(service)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(15) == 0
    assert {line["level"] for line in service.lines(route="/health/ready", status=503)} == {"INFO"}
    assert service.lines(level="ERROR") == []


def test_whom_nobody_asks_ends_at_once(new_service: Callable[..., Service]) -> None:
    service = new_service(SHUTDOWN_DRAIN_SECONDS="600", SHUTDOWN_GRACE_SECONDS="600")
    time.sleep(1)
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("settings", [{}, {"ROOT_PATH": "/prefix"}])
def test_probes_alone_do_not_keep_it_from_its_end(
    new_service: Callable[..., Service], settings: dict[str, str]
) -> None:
    service = new_service(SHUTDOWN_DRAIN_SECONDS="600", SHUTDOWN_GRACE_SECONDS="600", **settings)
    for _ in range(12):
        assert readiness(service).status_code == 200
        time.sleep(0.1)
    service.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while service.process.poll() is None:
        assert time.monotonic() < deadline
        with suppress(httpx2.TransportError):
            readiness(service)
        time.sleep(0.1)
    assert service.process.returncode == 0


def test_it_serves_whoever_still_asks_and_ends_once_nobody_does(new_service: Callable[..., Service]) -> None:
    program = program_with("backend.web.drain.QUIET_SECONDS = 4")  # so that a busy machine makes no pause
    service = new_service(program=program, SHUTDOWN_DRAIN_SECONDS="30", SHUTDOWN_GRACE_SECONDS="30")
    ada = service.register()
    service.process.send_signal(signal.SIGTERM)
    assert not_ready(service).json()["code"] == "shutting_down"
    answers = []
    for number in range(10):
        answers.append(ada.create(f"Task {number}"))
        readiness(service)
        time.sleep(0.5)
    assert len(answers) == 10
    assert service.process.wait(20) == 0


def test_it_ends_though_nobody_stops_asking(new_service: Callable[..., Service]) -> None:
    service = new_service(SHUTDOWN_DRAIN_SECONDS="2", SHUTDOWN_GRACE_SECONDS="4")
    ada = service.register()
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            with suppress(httpx2.TransportError):
                ada.create()
            time.sleep(0.01)

    with ThreadPoolExecutor() as threads:
        asking = threads.submit(ask)
        try:
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(15) == 0
        finally:
            ended.set()
        asking.result()


def test_a_second_sigterm_ends_the_wait(new_service: Callable[..., Service]) -> None:
    program = program_with("backend.web.drain.QUIET_SECONDS = 600")
    service = new_service(program=program, SHUTDOWN_DRAIN_SECONDS="600", SHUTDOWN_GRACE_SECONDS="605")
    service.register()
    service.process.send_signal(signal.SIGTERM)
    assert not_ready(service).json()["code"] == "shutting_down"
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(15) == 0


def test_a_worker_that_dies_is_replaced_and_the_other_serves_meanwhile(
    new_service: Callable[..., Service],
) -> None:
    service = new_service(WORKERS="2")
    ada = service.register()
    supervisor = psutil.Process(service.process.pid)
    before = {worker.pid for worker in serving(supervisor)}
    assert len(before) == 2
    psutil.Process(min(before)).kill()
    # Killed while it is asked whether it lives, it is given the time that an answer may take.
    until(lambda: len({worker.pid for worker in serving(supervisor)} - before) == 1, 40)
    assert ada.create()["title"] == "Buy milk"


def serving(supervisor: psutil.Process) -> list[psutil.Process]:
    """Return its workers, which listen on its socket."""
    found = []
    for child in supervisor.children():
        with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            if child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found
