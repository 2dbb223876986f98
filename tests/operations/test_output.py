"""Standard output that cannot be written, because the disk is full or the pipe is closed."""

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest

from tests.conftest import Postgres
from tests.programs import FULL_DEVICE, needs_full_device, needs_prlimit
from tests.service import JWT_SECRET, PROGRAM, ROOT, Service, environment

COMMANDS = [("openapi",), ("secret",), ("users", "list"), ("users", "list", "--json"), ("--help",)]
ONTO_FULL = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
FULL = ("-c", f"{ONTO_FULL}; from backend.__main__ import main; main(['serve'])")


def ended(database: Postgres, output: int, *arguments: str) -> tuple[int, list[str]]:
    """Run a command whose standard output is that file; return its exit code and the lines of its errors."""
    done = subprocess.run(
        [sys.executable, "-m", "backend", *arguments],
        cwd=ROOT,
        env=environment(DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET),
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()


@needs_full_device
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_whose_output_is_lost_says_so_in_one_line(
    database: Postgres, command: tuple[str, ...]
) -> None:
    with FULL_DEVICE.open("wb") as full:
        code, lines = ended(database, full.fileno(), *command)
    assert (code, lines) == (1, ["tasks-api: standard output: No space left on device"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_left_is_no_error(database: Postgres, command: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert ended(database, writer, *command) == (0, [])
    finally:
        os.close(writer)


@pytest.mark.parametrize("command", [("serve",), ("users", "list"), ("secret",)])
def test_a_closed_output_is_one_line_and_closed_errors_are_lost(
    database: Postgres, command: tuple[str, ...]
) -> None:
    program = shlex.join([sys.executable, "-m", "backend", *command])
    settings = environment(DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET)

    def run(closed: str) -> subprocess.CompletedProcess[bytes]:
        shell = ["/bin/sh", "-c", f"exec {program} {closed}"]
        return subprocess.run(shell, cwd=ROOT, env=settings, capture_output=True, timeout=60, check=False)

    done = run(">&-")
    assert (done.returncode, done.stderr) == (1, b"tasks-api: standard output: is closed\n")
    assert command == ("serve",) or run("2>&-").returncode == 0


@needs_prlimit
def test_a_disk_with_room_again_gets_whole_lines(new_service: Callable[..., Service]) -> None:
    service = new_service(program=PROGRAM, PYTHONUNBUFFERED="1")  # as in the container
    limit = partial(resource.prlimit, service.process.pid, resource.RLIMIT_FSIZE)
    before = limit()
    limit((service.log.stat().st_size + 100, before[1]))
    client = service.client()
    for _ in range(100):  # more than a buffer holds
        assert client.get("/health").status_code == 200
    limit(before)
    ids = [client.get("/health").headers["X-Request-ID"] for _ in range(2)]
    lines = service.log.read_bytes().splitlines()
    assert [json.loads(line)["request_id"] for line in lines[-2:]] == ids


@needs_full_device
def test_a_log_that_cannot_be_written_fails_no_request(new_service: Callable[..., Service]) -> None:
    service = new_service(program=FULL)
    assert service.register().create()["title"] == "Buy milk"
    metrics = dict(
        line.rsplit(" ", 1)
        for line in service.client().get("/metrics").text.splitlines()
        if not line.startswith("#")
    )
    assert float(metrics["log_lines_lost_total"]) >= 2
    assert service.log.read_text() == ""
