"""Runs HAProxy before several processes of the service, as one address for all that are ready."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests import programs
from tests.certificates import make_certificates
from tests.service import Service, free_port, wait_until_healthy

CHECK_SECONDS = 0.2
"""The interval of HAProxy's readiness checks. Two failures remove a process, one success restores it."""

_CONFIGURATION = """
defaults
    mode http
    option forwardfor
    option redispatch
    option httpchk GET /health/ready
    retries 3
    timeout connect 2s
    timeout check 10s
    timeout client 60s
    timeout server 60s
    timeout queue 5s
listen tasks
    bind 127.0.0.1:{port}
    http-request replace-path ^/prefix(/.*) \\1
    balance roundrobin
    default-server check inter {inter}ms fall 2 rise 1
"""
_WITH_TLS = """
    bind 127.0.0.1:{port} ssl crt {pair}
    http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
"""


@contextmanager
def balanced(replicas: Sequence[Service], directory: Path) -> Iterator[Service]:
    """Run HAProxy for the length of the block; what it yields is used like one service.

    A replica may end and another start on its port meanwhile: once `/health/ready` answers, it gets requests.
    """
    with _running(replicas, directory) as proxy:
        yield proxy


@contextmanager
def encrypted(service: Service, directory: Path) -> Iterator[str]:
    """Run HAProxy for the length of the block, and yield its address, where it speaks TLS as localhost."""
    make_certificates(directory)
    pair, port = directory / "pair.pem", free_port()
    pair.write_bytes(b"".join((directory / f"server.{kind}").read_bytes() for kind in ("pem", "key")))
    with _running([service], directory, _WITH_TLS.format(port=port, pair=pair)):
        yield f"https://localhost:{port}"


@contextmanager
def _running(replicas: Sequence[Service], directory: Path, more: str = "") -> Iterator[Service]:
    proxy = _start(replicas, directory, more)
    try:
        wait_until_healthy(proxy)
        yield proxy
    finally:
        proxy.stop()


def _start(replicas: Sequence[Service], directory: Path, more: str) -> Service:
    program = programs.find("haproxy", hint="apt install haproxy, or brew install haproxy")
    port, log, configuration = free_port(), directory / "haproxy.log", directory / "haproxy.cfg"
    servers = (f"    server replica{n} {replica.url[7:]}\n" for n, replica in enumerate(replicas))
    text = _CONFIGURATION.format(port=port, inter=int(CHECK_SECONDS * 1000))
    configuration.write_text(text + more + "".join(servers))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "-db", "-f", configuration],
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Service(process, f"http://127.0.0.1:{port}", log)
