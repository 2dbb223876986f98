"""Runs `python -m backend` in forks of a process that has imported everything, which takes two seconds.

The tests of the command line, of workers and of exits start Python as a shell does.
"""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        *("pytest", "tests.forks", "backend.__main__", "backend.app", "backend.web.server"),
        *("backend.auth.accounts.commands", "passlib.handlers.bcrypt"),
        *("uvicorn.lifespan.on", "uvicorn.loops.uvloop"),
    ]
)


def prepare() -> None:
    """Start the process that is forked; not at import, because that process imports this module too."""
    forkserver.ensure_running()


class Fork:
    """A running process; `output` and `errors` are appended to, `settings` are its whole environment.

    `program` is Python code.
    """

    def __init__(
        self,
        program: str,
        settings: dict[str, str],
        output: Path,
        errors: Path,
        stdin: str = os.devnull,
    ) -> None:
        streams = (
            (stdin, os.O_RDONLY),
            *((str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in (output, errors)),
        )
        self._process = _FORKS.Process(target=_run, args=(program, settings, streams))
        self._process.start()
        self.pid: int = self._process.pid or 0

    def poll(self) -> int | None:
        """Return the exit code, as `subprocess` has it, or None."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        """The same."""
        return self.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code; raises TimeoutExpired."""
        self._process.join(timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("python -m backend", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _run(program: str, settings: dict[str, str], streams: Sequence[tuple[str, int]]) -> None:
    gc.freeze()  # or each fork's first collections look through all that was imported
    os.environ.clear()
    os.environ.update(settings)
    for descriptor, (path, flags) in enumerate(streams):
        os.dup2(os.open(path, flags), descriptor)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    exec(program, {})  # noqa: S102  # code of the tests
