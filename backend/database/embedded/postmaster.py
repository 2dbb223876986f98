"""The processes of the embedded PostgreSQL: starts them, tells them from others', and stops them."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO

from .files import make_file, open_file
from .place import SOCKET_NAME, EmbeddedServerError, Place

with suppress(ImportError):  # it comes with the wheel of the server, and an installation may have neither
    import psutil

_SETTINGS = {"listen_addresses": "", "port": "5432", "log_checkpoints": "off", "shared_buffers": "256MB"}
_ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}  # PGPORT, PGDATA or LANG must not change the server
_ACCESS = ("--username=postgres", "--auth-local=trust", "--auth-host=reject", "--data-checksums")
_TEXT = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
_POLL_SECONDS = 0.02


def ensure_running(place: Place, options: Mapping[str, str]) -> None:
    """Wait for a server that takes connections, started if there is none; raises EmbeddedServerError."""
    launched: subprocess.Popen[bytes] | None = None
    while _pid_file(place)[-1:] != [b"ready"] or find(place) is None:
        if launched is None and find(place) is None:
            launched = _launch(place, options)
        elif launched is not None and launched.poll() is not None:
            with place.opened() as home, os.fdopen(open_file("postgres.log", home, place.uid), "rb") as log:
                raise EmbeddedServerError(_failure("start", log.read()))
        time.sleep(_POLL_SECONDS)


def stop(place: Place) -> None:
    """Stop the server, whatever its clients are at (PostgreSQL's fast shutdown); return when it is gone."""
    if postmaster := find(place):
        _end([postmaster], signal.SIGINT, place)


def find(place: Place) -> "psutil.Process | None":
    """Find the running one, whatever a file that a dead one left behind says."""
    with suppress(psutil.Error):
        process = psutil.Process(_recorded_pid(place))
        return process if _is_server(process, place) else None
    return None


def _launch(place: Place, options: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    programs = _programs(place)
    if not (place.data / "PG_VERSION").exists():
        _initialise(place, programs)
    _end_orphans(place)
    ours = {"unix_socket_directories": f'"{place.socket_dir}"', "cluster_name": place.name}
    settings = {**_SETTINGS, **options, **ours}
    flags = chain.from_iterable(("-c", f"{name}={value}") for name, value in settings.items())
    with os.fdopen(_new_log(place), "wb") as log:
        process = subprocess.Popen(  # noqa: S603 - the wheel's program, with a list of arguments
            [programs / "postgres", "-D", place.data, *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            # PostgreSQL minds no lock file of its grandparent: so none of a zombie's, or of a pid used anew.
            env={**_ENVIRONMENT, "PG_GRANDPARENT_PID": str(_recorded_pid(place))},
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
            **place.as_owner,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or it would stay a zombie of ours
    return process


def _programs(place: Place) -> Path:
    """Return the wheel's programs, or a copy where root's installation is closed to the server's user."""
    if not place.as_owner or not place.first_closed(place.binaries / "postgres"):
        return place.binaries
    wheel, copy = place.binaries.parents[1], place.home / "programs"
    with place.opened() as home, tempfile.TemporaryFile() as archive:
        shutil.rmtree(copy.name, ignore_errors=True, dir_fd=home)
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for part in (place.binaries.parent, *wheel.parent.glob(f"{wheel.name}.libs")):
                tar.add(part, part.relative_to(wheel.parent))
        archive.seek(0)
        _run(place, "copy its programs", "/bin/sh", "-c", 'mkdir "$0" && tar -xC "$0"', copy, stdin=archive)
    return copy / place.binaries.relative_to(wheel.parent)


def _initialise(place: Place, programs: Path) -> None:
    """Make the files under another name until they are whole, because it may be killed on the way."""
    fresh = place.home / f"initdb-{secrets.token_hex(8)}"
    with place.opened() as home:
        for leftover in os.scandir(home):
            if leftover.name.startswith("initdb-"):
                shutil.rmtree(leftover.name, ignore_errors=True, dir_fd=home)
        _run(place, "initialise its files", programs / "initdb", "--pgdata", fresh, *_ACCESS, *_TEXT)
        os.rename(fresh.name, "data", src_dir_fd=home, dst_dir_fd=home)
        os.fsync(home)


def _run(place: Place, what: str, *command: str | Path, stdin: IO[bytes] | None = None) -> None:
    done = subprocess.run(  # noqa: S603 - a list of arguments
        command, check=False, capture_output=True, cwd="/", env=_ENVIRONMENT, stdin=stdin, **place.as_owner
    )
    if done.returncode != 0:
        raise EmbeddedServerError(_failure(what, done.stderr))


def _failure(what: str, output: bytes) -> str:
    said = output.decode(errors="replace")
    reasons = re.findall(r"(?:error|FATAL|PANIC|DETAIL|HINT): +(.*)", said) or said.splitlines()[-1:]
    return f"the embedded PostgreSQL can't {what}: {'; '.join(dict.fromkeys(reasons)) or 'it says nothing'}"


def _new_log(place: Place) -> int:
    with place.opened() as home:
        with suppress(FileNotFoundError):
            os.rename("postgres.log", "postgres.previous.log", src_dir_fd=home, dst_dir_fd=home)
        return make_file("postgres.log", home, place.uid)


def _end_orphans(place: Place) -> None:
    """Kill the children that lost their postmaster, since they keep a new one from starting."""
    orphans = [process for process in psutil.process_iter() if _is_server(process, place)]
    _end(orphans, signal.SIGKILL, place)
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(str(place.socket_dir / SOCKET_NAME))
        raise EmbeddedServerError(f"a PostgreSQL outside of this machine or container uses {place.home}")


def _end(processes: "list[psutil.Process]", how: signal.Signals, place: Place) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    # Not psutil's wait, which never ends for a zombie that nobody reaps.
    while any(_is_server(process, place) for process in processes):
        time.sleep(_POLL_SECONDS)


def _pid_file(place: Place) -> list[bytes]:
    """Return the words of postmaster.pid; none where it isn't a file that can be read at once."""
    with suppress(OSError):
        name = place.data / "postmaster.pid"
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            return (file.read(4096) or b"").split()
    return []


def _recorded_pid(place: Place) -> int:
    with suppress(IndexError, ValueError):
        return abs(int(_pid_file(place)[0]))
    return 0


def _is_server(process: "psutil.Process", place: Place) -> bool:
    """Know it by its user and command line: root in a container may see no more of another user's."""
    with suppress(psutil.Error):
        is_owners = process.name() == "postgres" and process.uids().real == place.uid
        return is_owners and place.name in " ".join(process.cmdline())
    return False
