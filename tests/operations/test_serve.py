"""The command line, in real processes with real signals, ports and users."""

import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import jwt
import psutil
import pytest
from uvicorn.config import STARTUP_FAILURE

import tests.service
from backend.database.embedded import EmbeddedServer, embedded_server
from backend.settings import MIN_SECRET_BYTES
from backend.web.server import _allow_descriptors
from tests.conftest import Postgres
from tests.programs import needs_root, passable_directory
from tests.service import (
    JWT_SECRET,
    PROGRAM,
    ROOT,
    UNTRACED,
    Service,
    command,
    environment,
    free_port,
    program_with,
    running,
    wait_until_healthy,
)
from tests.waiting import until

_numbers = count(1)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with passable_directory(prefix="serve-") as directory:
        yield directory / "data"


@pytest.fixture(scope="module")
def used_data_dir() -> Iterator[Path]:
    """A data directory for several tests, because the first start on one takes longer."""
    with passable_directory(prefix="serve-") as directory:
        yield directory


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Run services with the given settings and no others."""
    with ExitStack() as stack:

        def run(program: Sequence[str] = (), **settings: str) -> Service:
            log = tmp_path / f"log{next(_numbers)}"
            return stack.enter_context(running(log, program=program, **settings))

        yield run


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start services that may fail to come up; the end of the test kills them and their children."""
    begun: list[Service] = []

    def begin(program: Sequence[str] = (), **settings: str) -> Service:
        log = tmp_path / f"log{next(_numbers)}"
        begun.append(tests.service.launch(log, program=program, **settings))
        return begun[-1]

    yield begin
    for service in begun:
        if service.process.poll() is None:
            for member in family_of(service):
                member.kill()
            service.stop(signal.SIGKILL)


def postgres_of(data_dir: Path) -> set[int]:
    """Return the PostgreSQL processes of the data directory."""
    home = str((data_dir / "postgres" / "data").resolve())
    return {process.pid for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == home}


def postmaster_of(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


def family_of(service: Service) -> list[psutil.Process]:
    """Return the descendants of the service's process."""
    return psutil.Process(service.process.pid).children(recursive=True)


def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "backend", *arguments],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def refusal(service: Service, seconds: float = 20) -> str:
    """Wait until the service exits with 1, and return its only line that is no log line."""
    assert service.process.wait(seconds) == 1
    (line,) = [line for line in service.log.read_text().splitlines() if not line.startswith("{")]
    assert line.startswith("tasks-api: ")
    return line


def test_a_first_start_needs_no_settings_and_leaves_a_secret_for_its_owner_alone(
    data_dir: Path, serve: Callable[..., Service]
) -> None:
    service = serve(PROGRAM, DATA_DIR=str(data_dir), MAIL_URL="")
    ada = service.register()
    ada.create()
    service.client().post("/auth/password/forgot", json={"email": ada.email})
    until(lambda: list((data_dir / "mail").glob("*.eml")) != [])
    secret = data_dir / "jwt-secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(secret.read_bytes()) >= MIN_SECRET_BYTES
    assert {path.name for path in data_dir.iterdir()} == {"jwt-secret", "mail", "postgres"}
    assert service.stop() == 0
    assert postgres_of(data_dir) == set()


def test_a_secret_of_the_settings_goes_before_the_kept_one(
    used_data_dir: Path, serve: Callable[..., Service]
) -> None:
    service = serve(DATA_DIR=str(used_data_dir), JWT_SECRET=JWT_SECRET)
    jwt.decode(service.register().tokens["access_token"], JWT_SECRET, ["HS256"], audience="tasks-api")
    assert service.stop() == 0


@pytest.mark.parametrize(
    ("how", "code", "stops_postgres"),
    [(signal.SIGTERM, 0, True), (signal.SIGINT, 0, True), (signal.SIGKILL, -signal.SIGKILL, False)],
)
def test_the_next_start_has_every_task_and_takes_every_token(
    used_data_dir: Path, serve: Callable[..., Service], how: signal.Signals, code: int, stops_postgres: bool
) -> None:
    first = serve(DATA_DIR=str(used_data_dir))
    ada = first.register()
    task = ada.create()
    assert first.stop(how) == code
    assert (postgres_of(used_data_dir) == set()) == stops_postgres
    second = serve(DATA_DIR=str(used_data_dir))
    assert second.client(ada.tokens["access_token"]).get("/tasks").json() == [task]
    assert second.stop() == 0
    assert postgres_of(used_data_dir) == set()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGQUIT, signal.SIGINT])
def test_its_postgres_gone_it_is_started_again_and_everything_is_there(
    used_data_dir: Path, serve: Callable[..., Service], how: signal.Signals
) -> None:
    service = serve(DATA_DIR=str(used_data_dir))
    ada = service.register()
    task, killed = ada.create(), postmaster_of(used_data_dir)
    os.kill(killed, how)
    until(lambda: not psutil.pid_exists(killed) and postgres_of(used_data_dir) != set())
    until(lambda: service.client().get("/health/ready").status_code == 200)
    assert ada.client.get("/tasks").json() == [task]
    assert service.stop() == 0
    assert postgres_of(used_data_dir) == set()


def test_two_started_at_once_share_the_server_and_the_secret_and_the_last_stops_it(
    data_dir: Path, launch: Callable[..., Service]
) -> None:
    first, second = launch(DATA_DIR=str(data_dir)), launch(DATA_DIR=str(data_dir))
    wait_until_healthy(first)
    wait_until_healthy(second)
    ada = first.register()
    task = ada.create()
    assert first.stop() == 0
    at_second = second.client(ada.tokens["access_token"])
    assert at_second.get("/tasks").json() == [task]
    assert at_second.post("/tasks", json={"title": "Another"}).status_code == 201
    assert second.stop() == 0
    assert postgres_of(data_dir) == set()


def test_stopped_while_it_makes_its_files_it_leaves_nothing_running_and_starts_the_next_time(
    data_dir: Path, launch: Callable[..., Service], serve: Callable[..., Service]
) -> None:
    stopped = launch(PROGRAM, DATA_DIR=str(data_dir))
    until(lambda: any(data_dir.glob("postgres/initdb-*/base")))
    assert stopped.stop() == 0
    assert postgres_of(data_dir) == set()
    serve(DATA_DIR=str(data_dir)).register()


def python_for(account: pwd.struct_passwd) -> str:
    """Return an interpreter that the account can run with our packages, because ours may be in /root."""
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{own}", f"/usr/local/bin/{own}"):
        with suppress(OSError):
            probe = [python, "-c", "import backend, psutil, uvloop"]
            if subprocess.run(probe, check=False, **as_user(account)).returncode == 0:
                return python
    pytest.skip(f"needs a {own} that {account.pw_name} can run (Debian: apt install {own})")


def as_user(account: pwd.struct_passwd) -> dict[str, Any]:
    packages = str(Path(httpx2.__file__).parents[1])
    return {
        "user": account.pw_uid,
        "group": account.pw_gid,
        "extra_groups": [],
        "cwd": ROOT,
        "env": {"PATH": os.defpath, "PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1"},
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }


@needs_root  # without root, every test here is this one
def test_an_ordinary_user_can_start_it_too(tmp_path: Path, data_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    options = as_user(nobody)
    python = python_for(nobody)
    os.chown(data_dir.parent, nobody.pw_uid, nobody.pw_gid)
    port = str(free_port())
    options["env"] |= {"DATA_DIR": str(data_dir), "PORT": port, "BCRYPT_ROUNDS": "4"}
    with subprocess.Popen([python, "-m", "backend", "serve"], **options) as process:
        try:
            service = Service(process, f"http://127.0.0.1:{port}", tmp_path / "log")
            service.log.touch()
            wait_until_healthy(service)
            service.register().create()
            assert psutil.Process(postmaster_of(data_dir)).uids().real == nobody.pw_uid
            assert service.stop() == 0
        finally:
            process.terminate()
    assert (data_dir / "jwt-secret").stat().st_uid == nobody.pw_uid
    assert postgres_of(data_dir) == set()


def test_within_five_seconds_it_is_connected(
    serve: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    """The database is empty at first. One start of eight counts, because the machine may be busy."""

    def seconds() -> float:
        begun = time.monotonic()
        service = serve(DATABASE_URL=new_database().url, JWT_SECRET=JWT_SECRET, **UNTRACED)
        assert service.client().get("/health/ready").status_code == 200
        taken = time.monotonic() - begun
        assert service.stop() == 0
        return taken

    assert any(seconds() < 5 for _ in range(8))


def serving(processes: list[psutil.Process]) -> int:
    """Return the number of these processes that have a client."""
    return sum(any(c.status == "ESTABLISHED" for c in p.net_connections("tcp")) for p in processes)


def test_two_workers_both_serve_and_end_with_the_service(new_service: Callable[..., Service]) -> None:
    service = new_service(WORKERS="2")
    family = family_of(service)

    def both_serve() -> bool:
        service.client().get("/health").raise_for_status()  # a connection of its own, which stays open
        return serving(family) == 2

    until(both_serve)
    assert service.stop() == 0
    assert psutil.wait_procs(family, 10)[1] == []


def test_workers_do_not_outlive_a_service_that_was_killed(
    new_database: Callable[[], Postgres], launch: Callable[..., Service]
) -> None:
    settings = {"DATABASE_URL": new_database().url, "JWT_SECRET": JWT_SECRET, "PORT": str(free_port())}
    killed = launch(**settings, WORKERS="2")
    wait_until_healthy(killed)
    family = family_of(killed)
    killed.stop(signal.SIGKILL)
    alive = psutil.wait_procs(family, 10)[1]
    for orphan in alive:
        orphan.kill()
    assert alive == []
    wait_until_healthy(launch(**settings))


def test_a_low_limit_on_open_files_is_raised_as_far_as_it_may_be() -> None:
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 1024
    assert soft > low
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
        _allow_descriptors(low + 1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (low + 1, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_sigterm_ends_it_though_a_client_keeps_it_waiting(
    new_database: Callable[[], Postgres], launch: Callable[..., Service]
) -> None:
    """Docker kills after 10 seconds, which would leave the embedded server running."""
    service = launch(DATABASE_URL=new_database().url, JWT_SECRET=JWT_SECRET, SHUTDOWN_GRACE_SECONDS="2")
    wait_until_healthy(service)
    port = int(service.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        client.sendall(b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.3)
        service.process.terminate()
        assert service.process.wait(10) == 0


@pytest.mark.parametrize(
    ("workers", "host", "opened", "addresses"),
    [
        ("1", "::", "[::1]", ["127.0.0.1", "[::1]"]),
        ("1", "::1", "[::1]", ["[::1]"]),
        ("1", "0.0.0.0", "127.0.0.1", ["127.0.0.1"]),  # noqa: S104  # what is tested
        ("1", "localhost", "localhost", ["127.0.0.1"]),
        ("2", "::", "[::1]", ["127.0.0.1", "[::1]"]),
        ("2", "localhost", "localhost", ["127.0.0.1"]),
    ],
)
def test_it_listens_at_the_same_addresses_with_any_number_of_workers_and_says_one(  # noqa: PLR0917  # fixtures and a table
    used_data_dir: Path,
    launch: Callable[..., Service],
    workers: str,
    host: str,
    opened: str,
    addresses: list[str],
) -> None:
    service = launch(DATA_DIR=str(used_data_dir), HOST=host, WORKERS=workers)
    port = service.url.rpartition(":")[2]
    service.url = f"http://{addresses[0]}:{port}"
    wait_until_healthy(service)
    for address in addresses:
        response = httpx2.get(f"http://{address}:{port}/tasks", trust_env=False, verify=False)
        (line,) = service.lines(request_id=response.headers["x-request-id"], event="http.request")
        assert line["ip"] == address.strip("[]")
    assert service.lines(event=f"ready: http://{opened}:{port}/docs")
    assert service.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use_is_one_line_and_harms_nobody(
    used_data_dir: Path, serve: Callable[..., Service], launch: Callable[..., Service], workers: str
) -> None:
    first = serve(DATA_DIR=str(used_data_dir))
    port = first.url.rpartition(":")[2]
    assert port in refusal(launch(DATA_DIR=str(used_data_dir), PORT=port, WORKERS=workers))
    first.register().create()


def test_reload_serves_the_code_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_service: Callable[..., Service]
) -> None:
    shutil.copytree(ROOT / "backend", tmp_path / "backend")
    monkeypatch.setattr(tests.service, "ROOT", tmp_path)
    service = new_service("--reload")
    family = family_of(service)
    app = tmp_path / "backend" / "app.py"
    app.write_text(app.read_text() + "\nVERSION = '99.9'\n")

    def is_new() -> bool:
        with suppress(httpx2.TransportError):
            return bool(service.client().get("/openapi.json").json()["info"]["version"] == "99.9")
        return False

    until(is_new)
    family += family_of(service)
    assert service.stop() == 0
    assert psutil.wait_procs(family, 10)[1] == []


def test_it_waits_for_a_server_that_is_not_there_yet(
    used_data_dir: Path, launch: Callable[..., Service]
) -> None:
    with embedded_server(used_data_dir) as server:
        pass
    service = launch(DATABASE_URL=server.url, JWT_SECRET=JWT_SECRET)
    waits(service)
    with embedded_server(used_data_dir):
        wait_until_healthy(service)
        service.register().create()
        assert service.stop() == 0


def test_it_waits_for_a_database_that_is_not_made_yet(
    server: EmbeddedServer, launch: Callable[..., Service]
) -> None:
    """PostgreSQL itself refuses the connection, as it does while it starts up."""
    name = f"late_{os.getpid()}"
    url = server.url.replace("/postgres?", f"/{name}?")
    service = launch(DATABASE_URL=url, JWT_SECRET=JWT_SECRET)
    waits(service)
    Postgres(server.url).sql(f"CREATE DATABASE {name}")
    wait_until_healthy(service)
    assert service.stop() == 0


def waits(service: Service) -> None:
    """Wait until the service has logged twice that it waits."""
    line = "the database cannot be reached"
    until(lambda: sum(line in told["event"] for told in service.lines(level="WARNING")) >= 2)


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_it_does_not_wait_longer_than_it_was_told(launch: Callable[..., Service], silent: bool) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
        url = f"postgresql://ada:hunter2@127.0.0.1:{listener.getsockname()[1]}/tasks"
        service = launch(DATABASE_URL=url, JWT_SECRET=JWT_SECRET, DATABASE_START_TIMEOUT_SECONDS="1")
        assert "the database cannot be reached" in refusal(service)
    assert "hunter2" not in service.log.read_text()


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 128 + signal.SIGINT)])
def test_it_can_be_stopped_while_it_waits(
    launch: Callable[..., Service], how: signal.Signals, code: int
) -> None:
    url = f"postgresql://ada@127.0.0.1:{free_port()}/tasks"
    service = launch(PROGRAM, DATABASE_URL=url, JWT_SECRET=JWT_SECRET)
    waits(service)
    assert service.stop(how) == code


def test_an_application_that_fails_to_start_ends_the_service(
    new_database: Callable[[], Postgres], launch: Callable[..., Service]
) -> None:
    settings = {"DATABASE_URL": new_database().url, "JWT_SECRET": JWT_SECRET}
    service = launch(**settings, program=program_with("backend.app.gc = None"))
    assert service.process.wait(20) == STARTUP_FAILURE


def test_a_data_directory_that_cannot_be_one_is_one_line_that_names_it(
    launch: Callable[..., Service],
) -> None:
    assert "/dev/null/data" in refusal(launch(DATA_DIR="/dev/null/data"))


@pytest.mark.parametrize("below", ["", "below"])
def test_a_data_directory_that_is_a_file_or_below_one_is_one_line_that_names_the_setting(
    used_data_dir: Path, launch: Callable[..., Service], below: str
) -> None:
    (used_data_dir / "file").touch()
    data_dir = used_data_dir / "file" / below
    assert f"DATA_DIR {data_dir} can't be used: Not a directory" in refusal(launch(DATA_DIR=str(data_dir)))


def test_a_tilde_in_the_data_directory_is_the_home_directory(
    data_dir: Path, serve: Callable[..., Service]
) -> None:
    service = serve(DATA_DIR="~/data", HOME=str(data_dir.parent))
    assert (data_dir / "jwt-secret").is_file()
    assert service.stop() == 0


def test_a_kept_secret_that_is_empty_or_cut_is_one_line_that_names_the_file(
    used_data_dir: Path, launch: Callable[..., Service]
) -> None:
    data_dir = used_data_dir
    for cut in (b"", b"cut", b"\xff" * 64):
        (data_dir / "jwt-secret").write_bytes(cut)
        assert f"{data_dir / 'jwt-secret'}: is cut short" in refusal(launch(DATA_DIR=str(data_dir)))
    (data_dir / "jwt-secret").unlink()


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_link_in_place_of_the_kept_secret_is_not_followed(
    used_data_dir: Path, launch: Callable[..., Service], link: Callable[[Path, Path], None]
) -> None:
    target, secret = used_data_dir / "another's", used_data_dir / "jwt-secret"
    target.write_text(JWT_SECRET)
    for name in ("jwt-secret", "jwt-secret.new"):
        (used_data_dir / name).unlink(missing_ok=True)
        link(used_data_dir / name, target)
    assert str(secret) in refusal(launch(DATA_DIR=str(used_data_dir)))
    secret.unlink()
    assert command("migrate", DATA_DIR=str(used_data_dir)).returncode == 0
    assert target.read_text() == JWT_SECRET
    assert not secret.is_symlink()
    assert secret.stat().st_nlink == 1
    target.unlink()


@needs_root
def test_the_secret_that_root_makes_in_another_s_directory_is_theirs(data_dir: Path) -> None:
    data_dir.mkdir()
    shutil.chown(data_dir, "nobody")
    assert command("migrate", DATA_DIR=str(data_dir)).returncode == 0
    secret = (data_dir / "jwt-secret").stat()
    assert (secret.st_uid, secret.st_mode & 0o777) == (pwd.getpwnam("nobody").pw_uid, 0o600)


def test_help_tells_the_commands() -> None:
    told = run("--help").stdout
    assert all(f"\n  {command} " in told for command in ("serve", "migrate", "openapi", "secret", "users"))


def test_openapi_prints_the_document_that_is_served_and_needs_nothing(service: Service) -> None:
    printed = run("openapi")
    assert printed.returncode == 0
    assert json.loads(printed.stdout) == service.client().get("/openapi.json").json()


def test_secret_prints_a_new_one_that_the_settings_take() -> None:
    secrets = {command("secret").stdout.strip() for _ in range(2)}
    assert len(secrets) == 2
    assert all(len(secret) >= MIN_SECRET_BYTES for secret in secrets)
