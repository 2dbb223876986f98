"""The command line of `scripts/bench`: runs one of the benchmarks of the service on this machine."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from backend.database.embedded import EmbeddedServerError, embedded_server
from scripts.benchmark import comparison, growth, mail, storm, workers
from scripts.benchmark.bench import Bench
from scripts.benchmark.load import LoadError
from scripts.benchmark.postgres import Postgres
from scripts.benchmark.subject import SubjectError

ROOT = Path(__file__).parents[2]
RUNS: dict[str, Callable[[Bench, argparse.Namespace], None]] = {
    "compare": comparison.run,
    "storm": storm.run,
    "growth": growth.run,
    "workers": workers.run,
    "mail": mail.run,
}


def main() -> None:
    """Run one benchmark on a temporary PostgreSQL server."""
    signal.signal(signal.SIGTERM, _stop)
    options = _parser().parse_args()
    directory = ROOT / ".bench"
    directory.mkdir(exist_ok=True)
    (directory / ".gitignore").write_text("*\n")
    if os.getloadavg()[0] > 1:
        print("This machine is busy: CPU per request is reliable, times are not.", file=sys.stderr)
    # Not in the system's temporary directory, because that may be in memory, where writes cost less.
    with tempfile.TemporaryDirectory(dir=directory) as workshop:
        Path(workshop).chmod(0o711)  # because root's PostgreSQL runs as another user, who must pass
        try:
            with (
                embedded_server(Path(workshop)) as server,
                Bench(Postgres(server), directory, Path(workshop)) as bench,
            ):
                RUNS[options.run](bench, options)
        except (EmbeddedServerError, LoadError, SubjectError) as error:
            sys.exit(f"bench: {error}")
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)


def _stop(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("run", nargs="?", choices=RUNS, default="compare")
    parser.add_argument("--rounds", type=int, default=5, help="measurements, whose medians are the figures")
    parser.add_argument("--seconds", type=float, default=1, help="the length of a measurement")
    parser.add_argument("--before", metavar="REV", help="compare with the service at this Git revision")
    parser.add_argument("--large", action="store_true", help="growth: ten million tasks as well")
    return parser


if __name__ == "__main__":
    main()
