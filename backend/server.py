"""How the service is started: Uvicorn, its limits of time, and as many open files as its clients need."""

import resource
import socket
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Final

import uvicorn

from backend import metrics
from backend.protocol import Protocol
from backend.settings import Settings, SettingsError

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
        _run_uvicorn(settings, reload=reload)


def _run_uvicorn(settings: Settings, *, reload: bool) -> None:
    uvicorn.run(
        "backend.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=None if reload else settings.workers,
        reload=reload,
        reload_dirs=[str(Path(__file__).parent)] if reload else None,
        loop="uvloop",
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
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
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SettingsError(f"HOST: {error.strerror}") from None
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise SettingsError(f"HOST, PORT: {settings.host}:{settings.port}: {error.strerror}") from None


def _allow_descriptors(wanted: int) -> None:
    """Raise the soft limit on open files as far as needed and allowed: often it is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
