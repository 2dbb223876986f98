"""Who uses the embedded PostgreSQL: the first starts it, the last stops it.

Kernel locks alone say who does, so a process that is killed leaves nothing behind that keeps it up.
"""

import fcntl
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from . import postmaster
from .place import EmbeddedServerError, Place, prepare

_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server: `url` is for its superuser and database postgres, `data_dir` is PostgreSQL's own."""

    url: str
    data_dir: Path

    @property
    def pid(self) -> int:
        """Of the postmaster at this moment. Raises EmbeddedServerError when there is none."""
        running = postmaster.find(self.data_dir)
        if running is None:
            raise EmbeddedServerError(f"no PostgreSQL runs on {self.data_dir}")
        return int(running.pid)


@contextmanager
def embedded_server(data_dir: Path, options: Mapping[str, str] | None = None) -> Iterator[EmbeddedServer]:
    """Run the server of this directory for the length of the block, or share the one that runs already.

    Its last user stops it; one that was killed doesn't count. `options` are PostgreSQL settings,
    and those of whoever starts it hold. Waits as long as a recovery takes. Raises EmbeddedServerError.
    The block must be left for the server to stop: let SIGTERM raise, which by default it doesn't.
    """
    with _our_errors(data_dir):
        place = prepare(data_dir)
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
            if postmaster.find(server.data_dir) is None:
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


def _join(place: Place, users: IO[str], options: Mapping[str, str]) -> None:
    fcntl.flock(users, fcntl.LOCK_SH)
    try:
        postmaster.ensure_running(place, options)
    except BaseException:
        _leave(place, users)
        raise


def _leave(place: Place, users: IO[str]) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    postmaster.stop(place)
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


def _open_lock(place: Place, name: str) -> IO[str]:
    lock = (place.home / name).open("a+")
    if place.as_owner:
        os.fchown(lock.fileno(), place.uid, place.gid)
    return lock


def _url(place: Place) -> str:
    return f"postgresql://postgres@/postgres?host={quote(str(place.socket_dir), safe='')}&sslmode=disable"
