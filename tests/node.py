"""Packages of npm, installed once from a lock file into a cache outside the tree."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.programs import find


def installed(package: Path, *omitted: str) -> Path:
    """Return the `node_modules` of the lock file in `package`, installed if need be.

    `omitted` are kinds of dependencies that are left out, such as `optional`.
    """
    for program in ("node", "npm"):
        find(program, hint="install Node.js 20.19 or later, with npm")
    lock = (package / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tasks-api"
    ready = cache / f"{package.name}-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not ready.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as workshop:
            new = Path(workshop) / "new"
            new.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(package / name, new)
            _npm_ci(new, [f"--omit={kind}" for kind in omitted])
            try:
                new.rename(ready)
            except OSError:  # another run was faster
                assert ready.is_dir()
    return ready / "node_modules"


def _npm_ci(directory: Path, omissions: list[str]) -> None:
    options = ("--ignore-scripts", "--no-audit", "--no-fund", *omissions)
    result = subprocess.run(
        ["npm", "ci", *options], cwd=directory, check=False, capture_output=True, timeout=300
    )
    assert result.returncode == 0, result.stderr.decode()
