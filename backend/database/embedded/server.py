"""Reference-counts the embedded PostgreSQL: the first process starts it, the last stops it.

The count is kernel locks alone, so a killed process leaves nothing behind that keeps the server up.
"""

import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from . import postmaster
from .files import make_file, open_file
from .place import EmbeddedServerError, Place, prepare

_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server."""

    place: Place

    @property
    def url(self) -> str:
        """The URL of its superuser and the database `postgres`."""
        host = quote(str(self.place.socket_dir), safe="")
        return f"postgresql://postgres@/postgres?host={host}&sslmode=disable"

    @property
    def data_dir(self) -> Path:
        """PostgreSQL's own directory."""
        return self.place.data

    @property
    def pid(self) -> int:
        """Of the postmaster at this moment. Raises EmbeddedServerError when there is none."""
        running = postmaster.find(self.place)
        if running is None:
            raise EmbeddedServerError(f"no PostgreSQL runs on {self.data_dir}")
        return int(running.pid)


@contextmanager
def embedded_server(data_dir: Path, options: Mapping[str, str] | None = None) -> Iterator[EmbeddedServer]:
    """Run the server of this directory for the length of the block, or share the one that runs already.

    Its last user stops it; one that was killed doesn't count. `options` are PostgreSQL settings;
    those of the process that starts it hold. Waits as long as a recovery takes. Raises EmbeddedServerError.
    The block must be left for the server to stop: let SIGTERM raise, which by default it doesn't.
    """
    with ExitStack() as stack:
        with _our_errors(data_dir):
            place = prepare(data_dir)
            turn, users = (stack.enter_context(_lock(place, name)) for name in ("turn.lock", "users.lock"))
            with _held(turn):
                fcntl.flock(users, fcntl.LOCK_SH)
                stack.callback(_leave, place, turn, users)
                postmaster.ensure_running(place, options or {})
        yield EmbeddedServer(place)


@contextmanager
def lasting_server(data_dir: Path) -> Iterator[EmbeddedServer]:
    """Run the server as `embedded_server` does, and start it again when it is killed or stopped meanwhile."""
    left = threading.Event()

    def watch(server: EmbeddedServer) -> None:
        while not left.wait(_WATCH_SECONDS):
            if postmaster.find(server.place) is None:
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


def _leave(place: Place, turn: IO[bytes], users: IO[bytes]) -> None:
    with _held(turn), suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        postmaster.stop(place)
        with suppress(OSError):  # only one of our own in /tmp is empty now
            place.socket_dir.rmdir()


@contextmanager
def _held(lock: IO[bytes]) -> Iterator[None]:
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)


def _lock(place: Place, name: str) -> IO[bytes]:
    with place.opened() as home:
        try:
            descriptor = make_file(name, home, place.uid)
        except FileExistsError:
            descriptor = open_file(name, home, place.uid, 0, how=os.O_RDWR)
    return os.fdopen(descriptor, "r+b", buffering=0)


@contextmanager
def _our_errors(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        reason = f"{error.strerror or error}{where}"
        raise EmbeddedServerError(f"DATA_DIR {data_dir} can't be used: {reason}") from error
