"""The processes of the embedded PostgreSQL: how one comes up, is known for ours, and goes.

What a dead server has left behind keeps no new one from starting, and no process of others' is touched.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path

from .place import SOCKET_NAME, EmbeddedServerError, Place, name_of

with suppress(ImportError):  # it comes with the wheel of the server, and an installation may have neither
    import psutil

_SETTINGS = {"listen_addresses": "", "port": "5432", "log_checkpoints": "off"}
_ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}  # PGPORT, PGDATA or LANG must not change the server
_MAX_SHARED_BUFFERS_MIB = 1024
_POLL_SECONDS = 0.02


def ensure_running(place: Place, options: Mapping[str, str]) -> None:
    """Wait for a server that takes connections, started if there is none; raises EmbeddedServerError."""
    launched: subprocess.Popen[bytes] | None = None
    while not _is_ready(place.data):
        if launched is None and find(place.data) is None:
            launched = _launch(place, options)
        elif launched is not None and launched.poll() is not None:
            raise EmbeddedServerError(_failure("start", place.log.read_text(errors="replace")))
        time.sleep(_POLL_SECONDS)


def stop(place: Place) -> None:
    """Stop the server, whatever its clients are at (PostgreSQL's fast shutdown); return when it is gone."""
    if postmaster := find(place.data):
        _end([postmaster], signal.SIGINT, place.data)


def find(data: Path) -> "psutil.Process | None":
    """Find the running one, whatever a file that a dead one left behind says."""
    pid = _recorded_pid(data)
    with suppress(psutil.Error):
        if pid is not None and _is_server(psutil.Process(pid), data):
            return psutil.Process(pid)
    return None


def _launch(place: Place, options: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    if not (place.data / "PG_VERSION").exists():
        _initialise(place)
    _end_orphans(place)
    ours = {"unix_socket_directories": f'"{place.socket_dir}"', "cluster_name": name_of(place.data)}
    settings = {**_SETTINGS, "shared_buffers": _shared_buffers(), **options, **ours}
    flags = chain.from_iterable(("-c", f"{name}={value}") for name, value in settings.items())
    with suppress(FileNotFoundError):
        place.log.replace(place.log.with_suffix(".previous.log"))
    with place.log.open("xb") as log:
        process = subprocess.Popen(  # noqa: S603 - the wheel's program, with a list of arguments
            [place.binaries / "postgres", "-D", place.data, *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            # PostgreSQL minds no lock file of its grandparent: so none of a zombie's, or of a pid used anew.
            env={**_ENVIRONMENT, "PG_GRANDPARENT_PID": str(_recorded_pid(place.data) or 0)},
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
            **place.as_owner,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or it would stay a zombie of ours
    return process


def _shared_buffers() -> str:
    """Return a quarter of the memory, as PostgreSQL's manual advises: what is not used is not taken."""
    mebibytes = psutil.virtual_memory().total // 2**20
    return f"{min(mebibytes // 4, _MAX_SHARED_BUFFERS_MIB)}MB"


def _initialise(place: Place) -> None:
    """Make the files under another name until they are whole: being killed on the way does no harm."""
    for leftover in place.home.glob("initdb-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix="initdb-", dir=place.home))
    os.chown(fresh, place.uid, place.gid)
    access = ("--username=postgres", "--auth-local=trust", "--auth-host=reject")
    text = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    done = subprocess.run(  # noqa: S603 - the wheel's program, with a list of arguments
        [place.binaries / "initdb", "--pgdata", fresh, "--data-checksums", *access, *text],
        check=False,
        capture_output=True,
        cwd="/",
        env=_ENVIRONMENT,
        **place.as_owner,
    )
    if done.returncode != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        raise EmbeddedServerError(_failure("initialise its files", done.stderr.decode(errors="replace")))
    fresh.rename(place.data)


def _failure(what: str, output: str) -> str:
    reasons = re.findall(r"(?:error|FATAL|PANIC|DETAIL|HINT): +(.*)", output) or output.splitlines()[-1:]
    return f"the embedded PostgreSQL can't {what}: {'; '.join(dict.fromkeys(reasons)) or 'it says nothing'}"


def _end_orphans(place: Place) -> None:
    """Kill the children that lost their postmaster, since they keep a new one from starting."""
    orphans = [process for process in psutil.process_iter() if _is_server(process, place.data)]
    _end(orphans, signal.SIGKILL, place.data)
    if _answers(place):
        raise EmbeddedServerError(f"a PostgreSQL outside of this machine or container uses {place.home}")


def _end(processes: "list[psutil.Process]", how: signal.Signals, data: Path) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    # Not psutil's wait, which never ends for a zombie that nobody reaps.
    while any(_is_server(process, data) for process in processes):
        time.sleep(_POLL_SECONDS)


def _answers(place: Place) -> bool:
    with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
        client.connect(str(place.socket_dir / SOCKET_NAME))
        return True
    return False


def _is_ready(data: Path) -> bool:
    with suppress(FileNotFoundError):
        return find(data) is not None and (data / "postmaster.pid").read_bytes().split()[-1] == b"ready"
    return False


def _recorded_pid(data: Path) -> int | None:
    with suppress(FileNotFoundError, IndexError, ValueError):
        return abs(int((data / "postmaster.pid").read_bytes().split()[0]))
    return None


def _is_server(process: "psutil.Process", data: Path) -> bool:
    """Know it by the name in its command line: root in a container may see no more of another user's."""
    with suppress(psutil.Error):
        return process.name() == "postgres" and name_of(data) in " ".join(process.cmdline())
    return False
