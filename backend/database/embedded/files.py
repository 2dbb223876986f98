"""Opens files in directories that another user owns, who may have planted links or FIFOs there for root.

Names are relative to an open directory, no link is followed, and only what was just made is given away.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK


def make_file(name: str, folder: int, owner: int) -> int:
    """Make a file of mode 0600 in place of any that is there; returns its descriptor, or raises OSError."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600, dir_fd=folder)
    os.fchown(descriptor, owner, -1)
    return descriptor


def open_file(name: str, folder: int | None, *owners: int) -> int:
    """Open a regular file that has one link and one of these owners; raises OSError for any other."""
    descriptor = os.open(name, os.O_RDONLY | _SAFELY, dir_fd=folder)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid not in owners:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, f"must be a regular file with one link, of user {owners}", name)
    return descriptor


@contextmanager
def private_directory(path: Path, uid: int, gid: int) -> Iterator[int]:
    """Open a directory of this user, mode 0700, made where it is missing; raises OSError."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        # Root gives away an empty one alone, which it made now or before it was killed.
        is_new = not os.listdir(folder)  # noqa: PTH208 - pathlib takes no descriptor
        if os.geteuid() == os.fstat(folder).st_uid == 0 and is_new:
            os.fchown(folder, uid, gid)
        if os.fstat(folder).st_uid != uid:
            reason = f"must be a directory, and belong to the user {uid}"
            raise PermissionError(errno.EPERM, reason, str(path))
        os.fchmod(folder, 0o700)
        yield folder
    finally:
        os.close(folder)
