"""Opens files in directories that another user owns, who may have planted links or FIFOs there for root.

Every name is relative to an open directory, no link is followed, and only a file just made is given away.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK


def make_file(name: str, folder: int, owner: int) -> int:
    """Make a file of this user, mode 0600, and return its descriptor; raises OSError, also where one is."""
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, 0o600, dir_fd=folder)
    if owner != os.geteuid():
        os.fchown(descriptor, owner, -1)
    return descriptor


def open_file(name: str, folder: int, *owners: int, how: int = os.O_RDONLY) -> int:
    """Open a regular file that has one link and one of these owners; raises OSError for any other."""
    descriptor = os.open(name, how | _SAFELY, dir_fd=folder)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid not in owners:
        os.close(descriptor)
        users = " or ".join(map(str, owners))
        raise PermissionError(errno.EPERM, f"must be a regular file with one link, of user {users}", name)
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
            raise PermissionError(
                errno.EPERM, f"must be a directory, and belong to the user {uid}", str(path)
            )
        os.fchmod(folder, 0o700)
        yield folder
    finally:
        os.close(folder)
