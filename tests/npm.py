"""Installs npm packages that a test needs from its lock file, once, outside the working tree."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.programs import find


def installed(project: Path, *omitted: str) -> Path:
    """Return the `node_modules` of a project's lock file, from a cache; skips without Node.js.

    `omitted` are kinds of dependencies that are left out, such as `optional`.
    """
    for program in ("node", "npm"):
        find(program, hint="install Node.js 20.19 or later, with npm")
    lock = (project / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tasks-api"
    ready = cache / f"{project.name}-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not ready.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        _install(project, ready, omitted)
    return ready / "node_modules"


def _install(project: Path, ready: Path, omitted: Iterable[str]) -> None:
    with tempfile.TemporaryDirectory(dir=ready.parent) as workshop:
        new = Path(workshop) / "new"
        new.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(project / name, new)
        _npm_ci(new, omitted)
        try:
            new.rename(ready)
        except OSError:  # another run was faster
            assert ready.is_dir()


def _npm_ci(directory: Path, omitted: Iterable[str]) -> None:
    options = ("--ignore-scripts", "--no-audit", "--no-fund", *(f"--omit={kind}" for kind in omitted))
    result = subprocess.run(
        ["npm", "ci", *options], cwd=directory, check=False, capture_output=True, timeout=300
    )
    assert result.returncode == 0, result.stderr.decode()
