"""Programs and systems that are not ours: what needs one skips where it is missing, but never in CI."""

import os
import pwd
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

# A client that is really at another address needs one: Linux has all of 127.0.0.0/8 from the start, and
# elsewhere an administrator has to add each.
needs_loopback_addresses = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere 127.0.0.2 and the like have to be set up first"
)


def find(*names: str, hint: str) -> str:
    """Return the path of the first of these programs that is there; `hint` says how to get one."""
    for name in names:
        if path := shutil.which(name):
            return path
    message = f"{' or '.join(names)} not found: {hint}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def unprivileged(directory: Path, account: str = "nobody") -> dict[str, Any]:
    """Return arguments of `subprocess` that leave root behind, and what is in `directory` to that account.

    Nobody else need do it; PostgreSQL and PgBouncer refuse to run as root.
    """
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(account)
    for path in (directory, *directory.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
