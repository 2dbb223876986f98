"""A subject is an application under measurement: its processes, its database and its port."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from scripts.benchmark.meter import family_cpu_seconds, family_memory
from scripts.benchmark.postgres import Database, Postgres
from scripts.benchmark.traffic import ISSUER, JWT_SECRET, Traffic, traffic

ROOT = Path(__file__).parents[2]
SUBJECTS = Path(__file__).parent / "subjects"
START_SECONDS = 60

OURS = "Tasks API"
LIMIT = "bare ASGI and asyncpg, the limit"
USUAL = "the usual FastAPI with an ORM"
FASTIFY = "Fastify with pg"


class SubjectError(Exception):
    """A subject can't be installed or started."""


@dataclass(frozen=True)
class Subject:
    """A running service, and the requests that suit its database."""

    title: str
    process: "subprocess.Popen[bytes]"
    port: int
    traffic: Traffic
    log: Path

    def cpu_seconds(self) -> float:
        """Return the CPU time of its processes."""
        return family_cpu_seconds(self.process.pid)

    def memory(self) -> int:
        """Return the resident memory of its processes, in bytes."""
        return family_memory(self.process.pid)

    def last_words(self) -> str:
        """Return the end of its log."""
        return _end(self.log)


@contextmanager
def ours(database: Database, directory: Path, *, title: str = OURS, **settings: str) -> Iterator[Subject]:
    """Run the service as in production, with everything on and its log in a file."""
    command = [sys.executable, "-m", "backend", "serve"]
    with _running(title, command, database, directory, LOG_FORMAT="json", **settings) as subject:
        yield subject


@contextmanager
def before(
    revision: str, postgres: Postgres, directory: Path, fill: Callable[[Database], None]
) -> Iterator[Subject]:
    """Run the service as it was at a Git revision, on a database that its own migrations made."""
    checkout = directory / "before"
    checkout.mkdir()
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=False, stdout=subprocess.PIPE)
    if archive.returncode:
        raise SubjectError(f"Git has no revision {revision}")
    subprocess.run(["tar", "-x"], cwd=checkout, check=True, input=archive.stdout)
    database = postgres.empty("bench_before")
    command = [sys.executable, "-m", "backend", "serve"]
    environment = {"LOG_FORMAT": "json", "PYTHONPATH": str(checkout)}
    schema = {"DATABASE_URL": database.url, "JWT_SECRET": JWT_SECRET, "PATH": os.environ["PATH"]}
    migrate = [sys.executable, "-m", "backend", "migrate"]
    subprocess.run(migrate, cwd=directory, env=environment | schema, check=True, stdout=sys.stderr)
    fill(database)
    with _running(revision, command, database, directory, **environment) as subject:
        yield subject


@contextmanager
def on_uvicorn(title: str, module: str, database: Database, directory: Path) -> Iterator[Subject]:
    """Run one of the applications in `subjects/` on Uvicorn, as the service is run."""
    command = [sys.executable, "-m", "scripts.benchmark.subjects.serve", module]
    with _running(title, command, database, directory) as subject:
        yield subject


@contextmanager
def fastify(database: Database, directory: Path, cache: Path) -> Iterator[Subject]:
    """Run the Fastify application; raises `SubjectError` without Node.js and npm."""
    command = ["node", str(_installed(cache) / "server.js")]
    with _running(FASTIFY, command, database, directory, NODE_ENV="production") as subject:
        yield subject


def _installed(cache: Path) -> Path:
    """Return the directory of the application and its packages; installs them if they are missing."""
    if not shutil.which("node") or not shutil.which("npm"):
        raise SubjectError("Node.js or npm is not installed")
    sources = [SUBJECTS / "fastify" / name for name in ("package.json", "package-lock.json", "server.js")]
    version = sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    ready = cache / f"fastify-{version}"
    if not ready.is_dir():
        fresh = cache / f"fastify-{version}.{os.getpid()}"
        fresh.mkdir()
        for source in sources:
            shutil.copy(source, fresh)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        if subprocess.run(["npm", "ci", *options], cwd=fresh, check=False, stdout=sys.stderr).returncode:
            shutil.rmtree(fresh)
            raise SubjectError("npm can't install it")
        fresh.rename(ready)
    return ready


@contextmanager
def _running(
    title: str, command: Sequence[str], database: Database, directory: Path, **settings: str
) -> Iterator[Subject]:
    port, log = _free_port(), directory / f"{database.name}.log"
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": database.url,
        "PGHOST": parse_qs(urlsplit(database.url).query)["host"][0],
        "PGUSER": "postgres",
        "PGDATABASE": database.name,
        "JWT_SECRET": JWT_SECRET,
        "JWT_ISSUER": ISSUER,
        "JWT_AUDIENCE": ISSUER,
        "PORT": str(port),
        **settings,
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,  # where there is no .env
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(process, port, log)
        yield Subject(title, process, port, traffic(database), log)
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    """Wait until the port accepts connections, which each subject opens once it can serve."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SubjectError(f"it does not start:\n{_end(log)}")


def _end(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
