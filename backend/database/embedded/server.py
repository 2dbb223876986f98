"""Reference-counts the embedded PostgreSQL: the first process starts it, the last stops it.

The count is kernel locks alone, so a killed process leaves nothing behind that keeps the server up.
"""

import fcntl
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .files import make_file, private_directory
from .place import EmbeddedServer, EmbeddedServerError, binaries, find_server

with suppress(ImportError):  # it comes with the wheel
    import psutil

_INITDB = (
    *("--username=postgres", "--auth-local=trust", "--auth-host=reject", "--data-checksums"),
    *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
)
_SETTINGS = {"listen_addresses": "", "log_checkpoints": "off", "shared_buffers": "256MB"}


@contextmanager
def embedded_server(data_dir: Path, options: Mapping[str, str] | None = None) -> Iterator[EmbeddedServer]:
    """Run the server of this directory for the length of the block, or share the one that runs already.

    Its last user stops it; one that was killed doesn't count. `options` are PostgreSQL settings;
    those of the process that starts it hold. Waits as long as a recovery takes. Raises EmbeddedServerError.
    The block must be left for the server to stop: let SIGTERM raise, which by default it doesn't.
    """
    with ExitStack() as stack:
        try:
            server = _join(stack, data_dir, options or {})
        except (OSError, KeyError) as error:  # an owner without an account
            raise EmbeddedServerError(f"DATA_DIR {data_dir} can't be used: {error.args[-1]}") from error
        yield server


@contextmanager
def lasting_server(data_dir: Path) -> Iterator[EmbeddedServer]:
    """Run the server as `embedded_server` does, and start it again when it is killed or stopped meanwhile."""
    left = threading.Event()

    def watch() -> None:
        while not left.wait(0.5):
            if not server.pid:
                with suppress(EmbeddedServerError), embedded_server(data_dir):
                    continue  # it runs, and goes on for its other users

    with embedded_server(data_dir) as server:
        watcher = threading.Thread(target=watch, name="embedded-postgres", daemon=True)
        watcher.start()
        try:
            yield server
        finally:
            left.set()
            watcher.join()


def _join(stack: ExitStack, data_dir: Path, options: Mapping[str, str]) -> EmbeddedServer:
    server = find_server(data_dir)
    account = server.uid, server.gid
    home = stack.enter_context(private_directory(server.home, *account))
    fcntl.flock(home, fcntl.LOCK_EX)  # one at a time starts or stops it
    if not (server.data_dir / "PG_VERSION").exists():
        _initialise(server, home)
    users = stack.enter_context(private_directory(server.data_dir, *account))
    fcntl.flock(users, fcntl.LOCK_SH)
    stack.callback(_leave, server, home, users)
    if not server.pid:
        _start(server, home, options)
    fcntl.flock(home, fcntl.LOCK_UN)
    return server


def _leave(server: EmbeddedServer, home: int, users: int) -> None:
    fcntl.flock(home, fcntl.LOCK_EX)
    with suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _end(server, [server.pid], signal.SIGINT)  # whatever its clients are at: a fast shutdown


def _initialise(server: EmbeddedServer, home: int) -> None:
    """Make the files under another name until they are whole, because it may be killed on the way."""
    fresh = f"initdb-{secrets.token_hex(8)}"
    for name in os.listdir(home):
        if name.startswith("initdb-"):
            shutil.rmtree(name, ignore_errors=True, dir_fd=home)
    _run(server, home, "initdb", "--pgdata", str(server.home / fresh), *_INITDB)
    os.rename(fresh, "data", src_dir_fd=home, dst_dir_fd=home)
    os.fsync(home)


def _start(server: EmbeddedServer, home: int, options: Mapping[str, str]) -> None:
    _end(server, psutil.pids(), signal.SIGKILL)  # children that lost their postmaster keep a new one out
    with private_directory(server.socket_dir, server.uid, server.gid) as sockets:
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.connect(str(server.socket_dir / ".s.PGSQL.5432"))
            raise EmbeddedServerError(f"a PostgreSQL outside of this machine or container uses {server.home}")
        # Their pid may be another process's by now, or a zombie's, and PostgreSQL would not start.
        for folder, name in ((home, "data/postmaster.pid"), (sockets, ".s.PGSQL.5432.lock")):
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
    ours = {"unix_socket_directories": server.socket_dir, "cluster_name": server.name}
    settings = {**_SETTINGS, **options, **ours}
    flags = shlex.join(f"--{name}={value}" for name, value in settings.items())
    _run(server, home, "pg_ctl", "start", "--wait", "--timeout=86400", "--options", flags)


def _run(server: EmbeddedServer, home: int, program: str, *arguments: str) -> None:
    # PGPORT or LANG must not change the server.
    environment = {"LC_ALL": "C", "PATH": os.defpath, "PGDATA": str(server.data_dir)}
    command = [binaries() / program, *arguments]
    with os.fdopen(make_file("postgres.log", home, server.uid), "w+b") as log:
        done = subprocess.run(  # noqa: S603 - the wheel's program, with a list of arguments
            command, check=False, stdout=log, stderr=log, cwd="/", env=environment, **server.as_owner
        )
        log.seek(0)
        if done.returncode:
            said = log.read().decode(errors="replace")
            reasons = re.findall(r"(?:error|FATAL|PANIC|DETAIL|HINT): +(.*)", said) or said.splitlines()[-1:]
            raise EmbeddedServerError(f"the embedded PostgreSQL can't run {program}: {'; '.join(reasons)}")


def _end(server: EmbeddedServer, pids: Iterable[int], how: signal.Signals) -> None:
    ours = [pid for pid in pids if server.owns(pid)]
    for pid in ours:
        with suppress(ProcessLookupError):
            os.kill(pid, how)
    while any(server.owns(pid) for pid in ours):
        time.sleep(0.02)
