"""Starts Uvicorn: its settings, the addresses that it listens on, and the limit on open files."""

import errno
import os
import resource
import socket
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import ChangeReload, Multiprocess

from backend.settings import Settings, SettingsError
from backend.telemetry import metrics
from backend.web.protocol import Protocol

KEEP_ALIVE_SECONDS: Final = 75
"""More than the 60 seconds of most proxies, because the side that closes first must not cut off a request."""
WORKER_SECONDS: Final = 10
"""Uvicorn replaces a worker that needs longer to start or to answer the supervisor's ping."""
DESCRIPTORS_BESIDE_CLIENTS: Final = 1100
"""File descriptors for the largest database pool, and for all else that a process opens."""


def run(settings: Settings, *, reload: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; the caller has migrated the database."""
    _allow_descriptors(settings.max_connections + DESCRIPTORS_BESIDE_CLIENTS)
    with metrics.shared_by_workers() if settings.workers > 1 else nullcontext():
        _run_uvicorn(_config(settings, reload=reload), _bind(settings))


def _run_uvicorn(config: uvicorn.Config, sockets: list[socket.socket]) -> None:
    """Do what `uvicorn.run` does, but with `sockets`, because it binds a single address for workers."""
    server = uvicorn.Server(config)
    if config.should_reload:
        ChangeReload(config, target=server.run, sockets=sockets).run()
    elif config.workers > 1:
        Multiprocess(config, sockets=sockets).run()
    else:
        with suppress(KeyboardInterrupt):
            server.run(sockets=sockets)
        if not server.started:  # pragma: no cover  # untraced, as in `backend.__main__._upgrade`
            sys.exit(STARTUP_FAILURE)


def _config(settings: Settings, *, reload: bool) -> uvicorn.Config:
    return uvicorn.Config(
        "backend.app:create_app",
        factory=True,
        workers=None if reload else settings.workers,
        reload=reload,
        reload_dirs=[str(Path(__file__).parents[1])] if reload else None,
        loop="uvloop",
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        root_path=settings.root_path or "",
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_worker_healthcheck=WORKER_SECONDS,
        # The drain (see `drain.py`) has taken its part of the time before.
        timeout_graceful_shutdown=max(
            1, round(settings.shutdown_grace_seconds - settings.shutdown_drain_seconds)
        ),
        proxy_headers=False,  # the application reads them itself (see `proxies.py`)
        server_header=False,
    )


def check_address(settings: Settings) -> None:
    """Raise `SettingsError` if the service cannot listen there; called before anything is started."""
    for bound in _bind(settings):
        bound.close()


def _bind(settings: Settings) -> list[socket.socket]:
    """Return a listening socket for each address of `HOST`, where `::` includes IPv4.

    IPv4 has its own socket, because one for both families names clients `::ffff:192.0.2.1`.
    Raises `SettingsError`.
    """
    host = None if settings.host == "::" else settings.host
    try:
        found = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(f"HOST: {error.strerror}") from None
    bound, failed = list[socket.socket](), OSError(errno.EADDRNOTAVAIL, "no address")
    for family, address in dict.fromkeys((family, address) for family, *_, address in found):
        try:
            bound.append(socket.create_server(address, family=family))
        except OSError as error:
            failed = error
            # A host name may have an address of a family that this machine lacks.
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                bound.clear()
                break
    if not bound:
        raise SettingsError(f"HOST, PORT: {settings.host}:{settings.port}: {os.strerror(failed.errno or 0)}")
    return bound


def _allow_descriptors(wanted: int) -> None:
    """Raise the soft limit on open files to `wanted`, or to the hard limit if that is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
