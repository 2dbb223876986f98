"""The embedded server, with real processes, signals and users."""

import asyncio
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

import backend.database
from backend.database.embedded import EmbeddedServer, EmbeddedServerError, binaries, embedded_server
from backend.database.url import connect_arguments
from tests.programs import needs_root, passable_directory

SERVICE = """
import os, signal, sys
sys.path[1:1] = sys.argv[2:]
from pathlib import Path
from embedded import EmbeddedServerError, embedded_server
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))
try:
    with embedded_server(Path(sys.argv[1])) as server:
        print(server.pid, server.url, flush=True)
        sys.stdin.read()
except EmbeddedServerError as error:
    print(error, flush=True)
"""
MODULE_DIRS = (str(Path(backend.database.__file__).parent), str(Path(psutil.__file__).parents[1]))
NOBODY: dict[str, Any] = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}


class Service:
    """A process of its own that holds the embedded server until its input ends."""

    def __init__(self, directory: Path, python: str = sys.executable, **kwargs: Any) -> None:
        self.process = subprocess.Popen(
            [python, "-c", SERVICE, directory, *MODULE_DIRS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **{"cwd": "/", **kwargs},
        )

    def line(self) -> str:
        assert self.process.stdout
        return str(self.process.stdout.readline()).strip()

    def postmaster(self) -> int:
        return int(self.line().split()[0])

    def end(self) -> None:
        self.process.communicate(timeout=20)

    def kill(self) -> None:
        self.process.kill()
        self.end()


@pytest.fixture
def empty() -> Iterator[Path]:
    with passable_directory(prefix="embedded-") as base:
        yield base / "data"


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """Initialised once, since that takes a second."""
    with passable_directory(prefix="embedded-") as base:
        with embedded_server(base):
            pass
        yield base


@pytest.fixture
def directory(template: Path, empty: Path) -> Path:
    return copy(template, empty)


@pytest.fixture(scope="module")
def shared(template: Path) -> Iterator[EmbeddedServer]:
    with (
        passable_directory(prefix="embedded-") as base,
        embedded_server(copy(template, base)) as server,
    ):
        yield server


def copy(template: Path, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["/bin/cp", "-a", template / "postgres", directory], check=True)
    return directory


@pytest.fixture
def service() -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def start(directory: Path, **kwargs: Any) -> Service:
        started.append(Service(directory, **kwargs))
        return started[-1]

    yield start
    for left in started:
        left.end()


def query(server: EmbeddedServer, sql: str) -> Any:
    async def fetch() -> Any:
        connection = await asyncpg.connect(**connect_arguments(server.url))
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def is_running(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def nobodys_python() -> str:
    """An interpreter that another user can run; ours may be in root's home."""
    for python in (sys.executable, "/usr/bin/python3"):
        probe = [
            python,
            "-c",
            "import sys; sys.path[1:1] = sys.argv[1:]; import embedded, psutil",
            *MODULE_DIRS,
        ]
        try:
            if subprocess.run(probe, cwd="/", check=False, capture_output=True, **NOBODY).returncode == 0:
                return python
        except PermissionError:
            continue
    pytest.skip("no Python here that another user can run")


def test_it_starts_on_an_empty_directory_and_stops_at_the_end(empty: Path) -> None:
    with embedded_server(empty) as server:
        pid = server.pid
        assert query(server, "SELECT 1") == 1
    assert not is_running(pid)
    assert server.pid == 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
        ("data_checksums", "on"),
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("max_connections", "100"),
    ],
)
def test_it_is_durable_private_and_speaks_utf8(shared: EmbeddedServer, setting: str, value: str) -> None:
    assert query(shared, f"SHOW {setting}") == value


def test_nobody_else_can_reach_its_files_or_its_socket(shared: EmbeddedServer) -> None:
    home = shared.data_dir.parent
    assert (home / ".s.PGSQL.5432").is_socket()
    assert stat.S_IMODE(home.stat().st_mode) == stat.S_IMODE(shared.data_dir.stat().st_mode) == 0o700


def test_letters_beyond_ascii_have_a_lower_case(shared: EmbeddedServer) -> None:
    assert query(shared, "SELECT lower('ÄÖÉ Ж')") == "äöé ж"


def test_options_are_settings_of_the_server(directory: Path) -> None:
    with embedded_server(directory, {"fsync": "off", "max_connections": "33"}) as server:
        assert (query(server, "SHOW fsync"), query(server, "SHOW max_connections")) == ("off", "33")


def test_what_was_written_is_there_after_the_next_start(directory: Path) -> None:
    with embedded_server(directory) as server:
        query(server, "CREATE TABLE kept AS SELECT 7 AS n")
    for _ in range(2):
        with embedded_server(directory) as server:
            assert query(server, "SELECT n FROM kept") == 7


def test_the_environment_does_not_reach_the_server(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PGPORT": "1",
        "PGDATA": "/nowhere",
        "TZ": "Antarctica/Troll",
        "LC_ALL": "xx_XX",
    }.items():
        monkeypatch.setenv(name, value)
    with embedded_server(empty) as server:
        assert query(server, "SHOW timezone") != "Antarctica/Troll"


def test_the_first_to_leave_leaves_it_running_and_the_last_stops_it(
    directory: Path,
    service: Callable[..., Service],
) -> None:
    first = service(directory)
    pid = first.postmaster()
    with embedded_server(directory) as server:
        assert server.pid == pid
        first.end()
        assert query(server, "SELECT 1") == 1
    assert not is_running(pid)


def test_many_at_once_on_an_empty_directory_get_one_server(
    empty: Path, service: Callable[..., Service]
) -> None:
    services = [service(empty) for _ in range(4)]
    pids = {each.postmaster() for each in services}
    assert len(pids) == 1
    for each in services:
        each.end()
    assert not is_running(pids.pop())


def test_users_come_and_go_and_each_finds_it_running(directory: Path) -> None:
    failures: list[BaseException] = []

    def visit() -> None:
        try:
            for _ in range(5):
                with embedded_server(directory) as server:
                    query(server, "SELECT 1")
        except BaseException as error:  # noqa: BLE001 - the thread's failure is the test's
            failures.append(error)

    visitors = [threading.Thread(target=visit) for _ in range(3)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert failures == []


def test_a_killed_service_does_not_keep_it_up(directory: Path, service: Callable[..., Service]) -> None:
    killed = service(directory)
    pid = killed.postmaster()
    killed.kill()
    assert is_running(pid)
    with embedded_server(directory) as server:
        assert server.pid == pid
    assert not is_running(pid)


def test_killed_with_a_busy_connection_it_starts_again_and_has_what_was_acknowledged(directory: Path) -> None:
    with embedded_server(directory) as server:
        query(server, "CREATE TABLE kept AS SELECT 7 AS n")
        killed, busy = server.pid, busy_backend(server)
        os.kill(killed, signal.SIGKILL)
        while is_running(killed):
            time.sleep(0.01)
        with embedded_server(directory) as again:
            assert again.pid == server.pid != killed
            assert query(server, "SELECT n FROM kept") == 7
            assert not is_running(busy)


def test_it_stops_without_waiting_for_who_is_connected(directory: Path) -> None:
    with embedded_server(directory) as server:
        pid, busy = server.pid, busy_backend(server)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert not is_running(pid)
    assert not is_running(busy)


def busy_backend(server: EmbeddedServer) -> int:
    """Start a backend process that loops, and so never notices that its postmaster is gone."""
    psql = binaries() / "psql"
    loop = "SET statement_timeout = '20s'; DO $$ BEGIN LOOP END LOOP; END $$"
    client = subprocess.Popen(
        [psql, "-XAt", server.url, "-c", loop], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    threading.Thread(target=client.communicate, daemon=True).start()
    while not (
        pid := query(
            server, "SELECT pid FROM pg_stat_activity WHERE query ~ 'LOOP' AND pid <> pg_backend_pid()"
        )
    ):
        time.sleep(0.01)
    return int(pid)


def test_a_pid_that_another_process_has_by_now_is_no_server(directory: Path) -> None:
    with embedded_server(directory) as server:
        pidfile = server.data_dir / "postmaster.pid"
        left_behind = pidfile.read_bytes()
    owner = pidfile.parent.stat().st_uid
    with subprocess.Popen(["/bin/sleep", "60"], user=owner if os.geteuid() == 0 else None) as stranger:
        pidfile.write_bytes(left_behind.replace(left_behind.split()[0], str(stranger.pid).encode(), 1))
        os.chown(pidfile, owner, -1)
        with embedded_server(directory) as server:
            assert query(server, "SELECT 1") == 1
        assert stranger.poll() is None
        stranger.kill()


def test_its_files_deleted_under_it_it_makes_room_for_a_new_one(
    template: Path,
    directory: Path,
    service: Callable[..., Service],
) -> None:
    old = service(directory)
    pid = old.postmaster()
    old.kill()
    shutil.rmtree(directory)
    copy(template, directory)
    with embedded_server(directory) as server:
        assert query(server, "SELECT 1") == 1
        assert not is_running(pid)


def test_ctrl_c_in_the_terminal_reaches_the_service_alone(
    directory: Path,
    service: Callable[..., Service],
) -> None:
    interrupted = service(directory)
    pid = interrupted.postmaster()
    os.killpg(interrupted.process.pid, signal.SIGINT)
    assert interrupted.line() == "interrupted"
    time.sleep(0.2)
    assert is_running(pid)
    interrupted.end()
    assert not is_running(pid)


def test_sigterm_to_the_whole_group_ends_both_in_order(
    directory: Path,
    service: Callable[..., Service],
) -> None:
    terminated = service(directory)
    pid = terminated.postmaster()
    os.killpg(terminated.process.pid, signal.SIGTERM)
    assert terminated.process.wait(20) == 0
    assert not is_running(pid)


@pytest.mark.parametrize(
    "name", ["with spaces", "café 日本 'it''s' %41 &?#", 'commas, and "quotes"', "deep/" * 40]
)
def test_any_path_will_do(template: Path, empty: Path, name: str) -> None:
    with embedded_server(copy(template, empty / name)) as server:
        assert query(server, "SELECT 1") == 1


def test_a_long_path_has_its_socket_in_a_short_private_directory(template: Path, empty: Path) -> None:
    with embedded_server(copy(template, empty / ("x" * 100))) as server:
        socket_dir = Path(connect_arguments(server.url)["host"][0])
        assert socket_dir.parent == Path("/tmp")  # noqa: S108
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700


@needs_root
def test_a_short_directory_that_somebody_else_made_is_refused(template: Path, empty: Path) -> None:
    with embedded_server(copy(template, empty / ("x" * 100))) as server:
        socket_dir = Path(connect_arguments(server.url)["host"][0])
    os.chown(socket_dir, 12345, 12345)
    with (
        pytest.raises(EmbeddedServerError, match="must be a directory, and belong to"),
        embedded_server(
            empty / ("x" * 100),
        ),
    ):
        pass
    socket_dir.rmdir()


def refusal(directory: Path) -> str:
    with pytest.raises(EmbeddedServerError) as refused, embedded_server(directory):
        pass
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_file_in_place_of_the_directory_is_named(empty: Path) -> None:
    empty.touch()
    assert "Not a directory" in refusal(empty)
    assert str(empty) in refusal(empty)


def test_data_of_another_version_is_refused_in_postgresql_s_words(directory: Path) -> None:
    with embedded_server(directory) as server:
        pass
    (server.data_dir / "PG_VERSION").write_text("16\n")
    assert "initialized by PostgreSQL version 16" in refusal(directory)


def test_a_wrong_option_is_refused_in_postgresql_s_words(directory: Path) -> None:
    with (
        pytest.raises(EmbeddedServerError, match='unrecognized configuration parameter "nonsense"'),
        embedded_server(
            directory,
            {"nonsense": "1"},
        ),
    ):
        pass


def test_an_initialisation_cut_short_is_begun_anew(empty: Path) -> None:
    with embedded_server(empty) as server:
        half = server.data_dir.with_name("initdb-half")
    server.data_dir.rename(half)
    with embedded_server(empty) as server:
        assert query(server, "SELECT 1") == 1
    assert not half.exists()


@needs_root
def test_a_full_disk_is_named(empty: Path) -> None:
    empty.mkdir()
    if subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", empty], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert "No space left on device" in refusal(empty)
    finally:
        subprocess.run(["/bin/umount", empty], check=True)


def test_without_the_wheel_it_says_to_set_database_url(empty: Path) -> None:
    command = [sys.executable, "-S", "-c", SERVICE, str(empty), MODULE_DIRS[0]]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == "no embedded PostgreSQL is installed: set DATABASE_URL\n"


@needs_root
def test_root_s_server_has_no_rights_of_root(directory: Path, service: Callable[..., Service]) -> None:
    server = psutil.Process(service(directory, extra_groups=[0, 4]).postmaster())
    owner = (directory / "postgres").stat()
    assert (*server.uids(), *server.gids()) == (*[owner.st_uid] * 3, *[owner.st_gid] * 3)
    assert 0 not in {owner.st_uid, owner.st_gid}
    assert "\nGroups:\t \n" in Path(f"/proc/{server.pid}/status").read_text()


@needs_root
def test_root_without_the_capabilities_that_docker_takes_away_is_root_enough(directory: Path) -> None:
    kept = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid"
    command = [
        "/usr/bin/setpriv",
        "--bounding-set",
        kept,
        sys.executable,
        "-c",
        SERVICE,
        str(directory),
        *MODULE_DIRS,
    ]
    with embedded_server(directory) as server:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=20
        )
        assert int(done.stdout.split()[0]) == server.pid


@needs_root
def test_what_belongs_to_a_user_goes_on_belonging_to_them(directory: Path) -> None:
    subprocess.run(["/bin/chown", "-R", "nobody", directory / "postgres"], check=True)
    with embedded_server(directory) as server:
        assert psutil.Process(server.pid).username() == "nobody"


@needs_root
def test_root_opens_no_private_directory_but_names_it_and_the_way_out(empty: Path) -> None:
    empty.mkdir(mode=0o700)
    said = refusal(empty / "below")
    assert f"can't pass {empty}: set DATA_DIR elsewhere, " in said
    assert "don't start as root" in said
    assert stat.S_IMODE(empty.stat().st_mode) == 0o700


@needs_root
def test_root_s_server_is_refused_an_installation_that_is_closed_to_it(
    empty: Path, service: Callable[..., Service]
) -> None:
    """Examples are a clone under /root and an installation under a umask of 077."""
    closed = empty.with_name("closed")
    wheel = binaries().parents[1]
    shutil.copytree(wheel, closed / wheel.name, symlinks=True)
    closed.chmod(0o700)
    said = service(empty, cwd=closed).line()  # the first place where Python looks
    assert f"can't pass {closed}: " in said
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def plant(kind: str, path: Path, target: Path) -> None:
    """Put this in place of the file, as the server's user can in its own directory."""
    path.unlink(missing_ok=True)
    match kind:
        case "symlink":
            path.symlink_to(target)
        case "hard link":
            path.hardlink_to(target)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()


@needs_root
@pytest.mark.parametrize("kind", ["symlink", "hard link"])
def test_what_was_planted_for_the_log_is_removed_and_neither_written_nor_read(
    directory: Path, kind: str
) -> None:
    target = directory / "of root"
    target.write_text("FATAL:  secret\n")
    target.chmod(0o600)
    plant(kind, directory / "postgres" / "postgres.log", target)
    with pytest.raises(EmbeddedServerError) as refused, embedded_server(directory, {"nonsense": "1"}):
        pass
    assert "secret" not in str(refused.value)
    with embedded_server(directory):
        pass
    assert target.read_text() == "FATAL:  secret\n"
    assert target.stat().st_uid == 0


@needs_root
def test_a_link_in_place_of_initdb_s_directory_leads_nowhere(empty: Path) -> None:
    with embedded_server(empty) as server:
        pass
    shutil.rmtree(server.data_dir)
    target = empty / "of root"
    target.mkdir(mode=0o700)
    (target / "kept").touch()
    (server.data_dir.parent / "initdb-planted").symlink_to(target)
    with embedded_server(empty) as server:
        assert not server.data_dir.is_symlink()
    assert (target.stat().st_uid, stat.S_IMODE(target.stat().st_mode)) == (0, 0o700)
    assert (target / "kept").exists()


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
def test_a_planted_pid_file_is_not_waited_for(directory: Path, kind: str) -> None:
    with embedded_server(directory) as server:
        pass
    plant(kind, server.data_dir / "postmaster.pid", Path("/dev/zero"))
    assert server.pid == 0


@needs_root
def test_a_process_of_another_user_that_looks_like_the_server_gets_no_signal(
    directory: Path, empty: Path
) -> None:
    """Its process id stands in postmaster.pid, and the server's name in its command line."""
    with embedded_server(directory) as server:
        pass
    lookalike = empty / "postgres-of-root" / "postgres"
    lookalike.parent.mkdir()
    shutil.copy("/bin/sh", lookalike)
    command = ["postgres", "-c", "read line", server.name]
    with subprocess.Popen(command, executable=lookalike, stdin=subprocess.PIPE) as victim:
        assert psutil.Process(victim.pid).name() == "postgres"
        (server.data_dir / "postmaster.pid").write_text(f"{victim.pid}\nready\n")
        with embedded_server(directory):
            assert victim.poll() is None
        assert victim.poll() is None
        victim.kill()


@needs_root
@pytest.mark.parametrize("kind", ["symlink", "filled"])
def test_a_directory_that_root_has_not_made_for_it_is_not_given_away(empty: Path, kind: str) -> None:
    target = empty.with_name("of root")
    target.mkdir(mode=0o700)
    (target / "kept").touch()
    empty.mkdir()
    if kind == "symlink":
        shutil.chown(empty, "nobody")
        (empty / "postgres").symlink_to(target)
    else:
        target.rename(empty / "postgres")
        target = empty / "postgres"
    assert "irectory" in refusal(empty)
    assert (target.stat().st_uid, stat.S_IMODE(target.stat().st_mode)) == (0, 0o700)


@needs_root
def test_the_server_gets_its_user_s_own_group_whatever_the_directory_s_is(
    directory: Path, service: Callable[..., Service]
) -> None:
    os.chown(directory / "postgres", -1, 4)
    server = psutil.Process(service(directory).postmaster())
    assert server.gids().real == pwd.getpwuid(server.uids().real).pw_gid


@needs_root
def test_root_and_an_ordinary_user_run_their_own_at_the_same_time(
    directory: Path,
    service: Callable[..., Service],
) -> None:
    python = nobodys_python()
    theirs = directory.with_name("theirs")
    theirs.mkdir()
    shutil.chown(theirs, "nobody")
    with embedded_server(directory) as server:
        ordinary = service(theirs, python=python, **NOBODY)
        pid = ordinary.postmaster()
        assert psutil.Process(pid).username() == "nobody"
        assert query(server, "SELECT 1") == 1
        ordinary.end()
        assert not is_running(pid)


@needs_root
def test_root_shares_the_server_of_an_ordinary_user_who_can_go_on_alone(
    empty: Path,
    service: Callable[..., Service],
) -> None:
    python = nobodys_python()
    empty.mkdir()
    shutil.chown(empty, "nobody")
    with embedded_server(empty):
        ordinary = service(empty, python=python, **NOBODY)
        pid = ordinary.postmaster()
    assert is_running(pid)
    ordinary.end()
    assert not is_running(pid)
    again = service(empty, python=python, **NOBODY)
    assert psutil.Process(again.postmaster()).username() == "nobody"


@needs_root
def test_an_ordinary_user_is_told_that_a_directory_is_closed_to_them(
    empty: Path,
    service: Callable[..., Service],
) -> None:
    empty.mkdir()
    assert "Permission denied" in service(empty, python=nobodys_python(), **NOBODY).line()


@needs_root
def test_a_server_of_another_container_is_left_alone(
    directory: Path, service: Callable[..., Service]
) -> None:
    inside = service(directory)
    pid = inside.postmaster()
    command = ["/usr/bin/unshare", "--pid", "--ipc", "--fork", "--mount-proc", sys.executable, "-c", SERVICE]
    done = subprocess.run([*command, directory, *MODULE_DIRS], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("namespaces are not allowed here")
    assert "outside of this machine or container" in done.stdout
    assert is_running(pid)
