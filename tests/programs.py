"""Finds programs and features of the system that tests need.

A test without its program or feature is skipped on a person's machine, and fails in CI.
"""

import os
import pwd
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import pytest

from tests.database import citus


def _needs(what: str, *, is_here: bool) -> pytest.MarkDecorator:
    """Mark tests that need a feature of the system; `require` judges the mark before such a test."""
    return pytest.mark.needs(what, is_here=is_here)


def require(what: str, *, is_here: bool) -> None:
    """Skip the test that runs, or fail it in CI, unless what it needs is here."""
    if not is_here:
        _miss(f"needs {what}")


def _miss(message: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def _has_address(address: str) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind((address, 0))
        return True
    return False


needs_root = _needs("root, who alone can become another user", is_here=os.geteuid() == 0)
needs_user_timeout = _needs(
    "a kernel that gives up on a silent peer", is_here=hasattr(socket, "TCP_USER_TIMEOUT")
)
needs_silent_queues = _needs(
    "a kernel that drops what a full queue can't take", is_here=sys.platform == "linux"
)
needs_loopback_addresses = _needs("a second loopback address", is_here=_has_address("127.0.0.2"))
"""Linux has all of 127.0.0.0/8 from the start; elsewhere an administrator has to add each."""
FULL_DEVICE = Path("/dev/full")
needs_prlimit = _needs(
    "Linux, which limits the files of another process", is_here=hasattr(resource, "prlimit")
)
needs_full_device = _needs("/dev/full, a device that is full", is_here=FULL_DEVICE.exists())


needs_own_server = _needs("the tests' own PostgreSQL, not TEST_CITUS_URL", is_here=not citus.URL)
"""Marks tests of the plans, the locks or the sessions of one server; a cluster spreads all three."""


def find(*names: str, hint: str) -> str:
    """Return the path of the first of these programs that is there; `hint` says how to get one."""
    for name in names:
        if path := shutil.which(name):
            return path
    _miss(f"{' or '.join(names)} not found: {hint}")


MEMORY = Path("/dev/shm")  # noqa: S108  # what is made there is private
ROOM_BYTES = 8 * 2**30
"""The files of the tests' PostgreSQL servers take less at any one time."""


@contextmanager
def passable_directory(**kwargs: Any) -> Iterator[Path]:
    """Make a temporary directory that others may pass, since root's PostgreSQL runs as another user.

    Those of `tempfile` and pytest are closed to it. The directory is in memory where there is room (Linux),
    because PostgreSQL makes and removes thousands of files for the tests.
    """
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES
    with TemporaryDirectory(dir=MEMORY if has_room else None, **kwargs) as name:
        directory = Path(name)
        directory.chmod(0o711)
        yield directory


def unprivileged(directory: Path, account: str = "nobody") -> dict[str, Any]:
    """Return arguments of `subprocess` that leave root behind, and what is in `directory` to that account.

    Other accounts need no change. PostgreSQL and PgBouncer refuse to run as root.
    """
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(account)
    for path in (directory, *directory.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
