"""Runs the service as a process of its own, with clients over a socket and access to its log."""

import atexit
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx2

from tests.forks import Fork

ROOT = Path(__file__).parent.parent
PASSWORD = "correct horse battery staple"
JWT_SECRET = "a secret of the tests, which is long enough"
START_SECONDS = 30.0
PROGRAM = ("-m", "backend", "serve")
"""Python's arguments for the service."""
MAIN = "from backend.__main__ import main; main({})"
"""Code of a command with these arguments."""
UNTRACED: dict[str, Any] = {"program": PROGRAM, "COVERAGE_PROCESS_CONFIG": ""}
"""Arguments for a service without coverage, because tests measure its time."""
Finished = subprocess.CompletedProcess[str]
MAILS = Path(tempfile.mkdtemp(prefix="tasks-api-mails-"))
"""The directory for mails of services without a MAIL_URL of their own, one file for each mail."""
atexit.register(shutil.rmtree, MAILS, ignore_errors=True)

_numbers = count(1)

seen: list[tuple[str, str, int, str | None]] = []
"""Method, path, status and error code of every response to a client of the suite, for `test_openapi`."""


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**settings: str) -> dict[str, str]:
    """Return an environment with these settings of the service and none of this machine's."""
    names = ("PATH", "HOME", "LANG", "TMPDIR", "COVERAGE_PROCESS_CONFIG")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    fast = {
        "MAIL_URL": MAILS.as_uri(),
        "BCRYPT_ROUNDS": "4",
        "RATE_LIMIT_ENABLED": "false",
        "SHUTDOWN_DRAIN_SECONDS": "0",
    }
    return {**kept, **fast, "LOG_FORMAT": "json", **settings}


def mailed_token(kind: str, email: str) -> str:
    """Wait for a mail of that kind, and return the token of its link."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for path in MAILS.glob(f"*-{kind}.eml"):
            text = path.read_text()
            if f"To: {email}\n" in text and (link := re.search(r"#token=([\w-]+)", text)):
                return link[1]
        time.sleep(0.05)
    raise AssertionError(f"no mail {kind} to {email}")


def _remember(response: httpx2.Response) -> None:
    response.read()
    code = None
    if response.is_error and response.content and response.headers.get("content-type") == "application/json":
        code = response.json().get("code")
    path = response.request.url.raw_path.decode().partition("?")[0]
    seen.append((response.request.method, path, response.status_code, code))


@dataclass
class Account:
    """A registered account, with a client that sends its access token."""

    client: httpx2.Client
    email: str
    tokens: dict[str, Any]

    @property
    def id(self) -> str:
        """The user's id."""
        return str(self.tokens["user"]["id"])

    def create(self, title: str = "Buy milk", **fields: Any) -> dict[str, Any]:
        """Create a task."""
        response = self.client.post("/tasks", json={"title": title, **fields})
        assert response.status_code == httpx2.codes.CREATED, response.text
        task: dict[str, Any] = response.json()
        return task


@dataclass
class Service:
    """One running `python -m backend serve`."""

    process: subprocess.Popen[bytes] | Fork
    url: str
    log: Path
    clients: list[httpx2.Client] = field(default_factory=list)
    _parsed: list[dict[str, Any]] = field(default_factory=list)
    _read_bytes: int = 0

    def client(self, token: str | None = None, **options: Any) -> httpx2.Client:
        """Return a new client, with an access token if there is one."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx2.Client(
            base_url=self.url,
            headers={**headers, **options.pop("headers", {})},
            event_hooks={"response": [_remember]},
            timeout=30,
            trust_env=False,
            verify=False,  # plain HTTP: certificates would take most of the time of making it
            **options,
        )
        self.clients.append(client)
        return client

    def register(self, **fields: Any) -> Account:
        """Register a new account, by default with a unique email."""
        email = f"user{next(_numbers)}@example.com"
        data = {"email": email, "password": PASSWORD, **fields}
        client = self.client()
        response = client.post("/auth/register", json=data)
        assert response.status_code == httpx2.codes.CREATED, response.text
        tokens = response.json()
        client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        return Account(client, data["email"], tokens)

    def lines(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return the log lines in which every one of `wanted` holds."""
        with self.log.open("rb") as log:
            log.seek(self._read_bytes)  # a long log takes 50 ms to parse
            self._parsed += map(json.loads, log)
            self._read_bytes = log.tell()
        return [line for line in self._parsed if all(line.get(key) == value for key, value in wanted.items())]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the process with a signal, and return its exit code."""
        for client in self.clients:
            client.close()
        self.process.send_signal(how)
        return self.process.wait(START_SECONDS)


def program_with(*assignments: str) -> tuple[str, str]:
    """Return a program that serves with constants changed, such as `backend.web.drain.QUIET_SECONDS = 4`."""
    modules = ", ".join(assignment.partition(" = ")[0].rpartition(".")[0] for assignment in assignments)
    changes = "; ".join(assignments)
    return "-c", f"import {modules}; {changes}; {MAIN.format(['serve'])}"


def start(log: Path, *arguments: str, program: Sequence[str] = PROGRAM, **settings: str) -> Service:
    """Start the service as a shell does, without waiting for it; `log` gets what it prints."""
    port = settings.setdefault("PORT", str(free_port()))
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=ROOT,
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Service(process, f"http://127.0.0.1:{port}", log)


def fork(log: Path, program: str = MAIN.format(["serve"]), **settings: str) -> Service:
    """Start the service without an import, and without waiting for it."""
    port = settings.setdefault("PORT", str(free_port()))
    log.touch()
    return Service(Fork(program, environment(**settings), log, log), f"http://127.0.0.1:{port}", log)


def command(*arguments: str, stdin: str = "", **settings: str) -> Finished:
    """Run a command to its end without an import; none of its streams is a terminal."""
    with tempfile.TemporaryDirectory() as name:
        given, output, errors = (Path(name) / stream for stream in ("input", "output", "errors"))
        given.write_text(stdin)
        program = MAIN.format(list(arguments))
        code = Fork(program, environment(**settings), output, errors, str(given)).wait(START_SECONDS)
        return Finished(arguments, code, output.read_text(), errors.read_text())


def wait_until_healthy(service: Service, seconds: float = START_SECONDS) -> None:
    """Wait for `/health`; fails with what the service printed when it does not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and service.process.poll() is None:
        try:
            # Without `verify=False` each attempt would read the certificates anew, which takes 25 ms.
            httpx2.get(f"{service.url}/health", trust_env=False, verify=False).raise_for_status()
        except httpx2.HTTPError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"the service did not start:\n{service.log.read_text()}")


def launch(log: Path, *arguments: str, program: Sequence[str] = (), **settings: str) -> Service:
    """Start the service, without waiting for it.

    It is forked, unless it has several workers or arguments, or the program is PROGRAM.
    """
    if arguments or settings.get("WORKERS", "1") != "1" or program == PROGRAM:
        return start(log, *arguments, program=program or PROGRAM, **settings)
    return fork(log, *program[1:], **settings)


@contextmanager
def running(log: Path, *arguments: str, program: Sequence[str] = (), **settings: str) -> Iterator[Service]:
    """Run the service for the length of the block, started by `launch`."""
    service = launch(log, *arguments, program=program, **settings)
    try:
        wait_until_healthy(service)
        yield service
    finally:
        for client in service.clients:
            client.close()
        if service.process.poll() is None:
            service.stop()
