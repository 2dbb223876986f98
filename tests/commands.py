"""Runs commands of `python -m backend`, each in a process forked from one that has imported everything.

Python takes a second to import everything. The tests of `operations/` run commands as a shell does.
"""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from backend.__main__ import main
from tests.service import START_SECONDS, environment

Finished = subprocess.CompletedProcess[str]

_STREAMS = (
    ("input", os.O_RDONLY),
    ("output", os.O_WRONLY | os.O_CREAT),
    ("errors", os.O_WRONLY | os.O_CREAT),
)
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.commands", "backend.app", "backend.auth.accounts.commands"])


def command(*arguments: str, stdin: str = "", **settings: str) -> Finished:
    """Run a command with these settings to its end; none of its streams is a terminal."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "input").write_text(stdin)
        process = _FORKS.Process(target=_run, args=(arguments, environment(**settings), directory))
        process.start()
        process.join(START_SECONDS)
        assert process.exitcode is not None, "it does not end"
        output, errors = ((directory / stream).read_text() for stream in ("output", "errors"))
        return Finished(arguments, process.exitcode, output, errors)


def _run(arguments: tuple[str, ...], settings: dict[str, str], directory: Path) -> None:
    os.environ.clear()
    os.environ.update(settings)
    for descriptor, (name, flags) in enumerate(_STREAMS):
        os.dup2(os.open(directory / name, flags), descriptor)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    main(arguments)
