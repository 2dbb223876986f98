"""How the service is started: Uvicorn, its limits of time, and as many open files as its clients need."""

import errno
import resource
import socket
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import ChangeReload, Multiprocess

from backend.settings import Settings, SettingsError
from backend.telemetry import metrics
from backend.web.protocol import Protocol

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than proxies keep theirs: who closes first is never in the middle of a request."""
WORKER_SECONDS: Final = 10
"""How long a worker may take to start or to show that it lives, before it is replaced."""
DESCRIPTORS_BESIDE_CLIENTS: Final = 1100
"""More than a database pool may have, and what else a process opens."""


def run(settings: Settings, *, reload: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; the caller has made sure of the schema."""
    _allow_descriptors(settings.max_connections + DESCRIPTORS_BESIDE_CLIENTS)
    with metrics.shared_by_workers() if settings.workers > 1 else nullcontext():
        _run_uvicorn(_config(settings, reload=reload), _bind(settings))


def _run_uvicorn(config: uvicorn.Config, sockets: list[socket.socket]) -> None:
    """Do as `uvicorn.run` does, which binds one address with workers and several without."""
    server = uvicorn.Server(config)
    if config.should_reload:
        ChangeReload(config, target=server.run, sockets=sockets).run()
    elif config.workers > 1:
        Multiprocess(config, sockets=sockets).run()
    else:
        with suppress(KeyboardInterrupt):
            server.run(sockets=sockets)
        if not server.started:
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
        # What the drain before it (see `drain.py`) has left.
        timeout_graceful_shutdown=max(
            1, round(settings.shutdown_grace_seconds - settings.shutdown_drain_seconds)
        ),
        proxy_headers=False,  # the application reads them itself (see `proxies.py`)
        server_header=False,
    )


def check_address(settings: Settings) -> None:
    """Raise `SettingsError` if nobody can listen there; said before anything else is started."""
    for bound in _bind(settings):
        bound.close()


def _bind(settings: Settings) -> list[socket.socket]:
    """Bind every address of `HOST`, one socket each; `::` means IPv4 as well. Raises `SettingsError`."""
    host = None if settings.host == "::" else settings.host
    try:
        found = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(f"HOST: {error.strerror}") from None
    bound, failed = list[socket.socket](), OSError(errno.EADDRNOTAVAIL, "no address")
    for family, address in dict.fromkeys((family, address) for family, *_, address in found):
        try:
            bound.append(_listener(family, address))
        except OSError as error:
            failed = error
            # A name may have an address of a family that this machine lacks.
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                bound.clear()
                break
    if not bound:
        raise SettingsError(f"HOST, PORT: {settings.host}:{settings.port}: {failed.strerror}")
    return bound


def _listener(family: socket.AddressFamily, address: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # IPv4 has a socket of its own, so that clients' addresses are never written `::ffff:192.0.2.1`.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _allow_descriptors(wanted: int) -> None:
    """Raise the soft limit on open files as far as needed and allowed: often it is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
