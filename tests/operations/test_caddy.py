"""Caddy before the service, with the README's file: TLS, the client's address, and a rolling restart."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests import programs
from tests.certificates import make_certificates
from tests.conftest import Postgres
from tests.operations.writers import wait_for_writes, writing
from tests.readme import block
from tests.service import JWT_SECRET, PASSWORD, Service, free_port, running
from tests.waiting import until

OPTIONS = """{{
	admin off
	auto_https disable_redirects
}}
{site} {{
	tls {directory}/server.pem {directory}/server.key
"""
"""The test's changes to the README's file: the name, and a certificate instead of one from ACME."""


@pytest.fixture
def replicas(new_database: Callable[[], Postgres], tmp_path: Path) -> Iterator[list[Service]]:
    settings = {
        "DATABASE_URL": new_database().url,
        "JWT_SECRET": JWT_SECRET,
        "FORWARDED_ALLOW_IPS": "127.0.0.1",
        "SHUTDOWN_DRAIN_SECONDS": "5",
    }
    with ExitStack() as stack:
        yield [stack.enter_context(running(tmp_path / f"log{n}", **settings)) for n in range(2)]


@pytest.fixture
def proxy(replicas: list[Service], tmp_path: Path) -> Iterator[Service]:
    """Run Caddy; what it yields is used like one service."""
    program = programs.find("caddy", hint="apt install caddy, or brew install caddy")
    make_certificates(tmp_path)
    site = f"https://localhost:{free_port()}"
    text = block("# /etc/caddy/Caddyfile", "caddyfile")
    text = text.replace("tasks.example.com {\n", OPTIONS.format(site=site, directory=tmp_path))
    for replica, address in zip(replicas, ("127.0.0.1:8000", "127.0.0.1:8001"), strict=True):
        text = text.replace(address, replica.url.removeprefix("http://"))
    (tmp_path / "Caddyfile").write_text(text)
    log = tmp_path / "caddy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "run", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile"],
            env={"PATH": os.defpath, "HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    service = Service(process, site, log)
    try:
        until(partial(_answers, site))
        yield service
    finally:
        service.stop()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", trust_env=False, verify=False).is_success
    except httpx2.HTTPError:
        return False


@programs.needs_loopback_addresses
def test_a_page_signs_in_over_tls_and_the_log_has_the_clients_address(
    proxy: Service, replicas: list[Service]
) -> None:
    transport = httpx2.HTTPTransport(local_address="127.0.0.5", verify=False)
    client = proxy.client(transport=transport, headers={"Origin": proxy.url})
    body = {"email": "tls@example.com", "password": PASSWORD, "session": "cookie"}
    answer = client.post("/auth/register", json=body)
    assert answer.status_code == 201
    assert answer.headers["Set-Cookie"].startswith("__Host-refresh=")
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert client.post("/auth/refresh").status_code == 200
    lines = [line for replica in replicas for line in replica.lines(event="auth.registered")]
    assert [line["ip"] for line in lines] == ["127.0.0.5"]
    assert [line for replica in replicas for line in replica.lines(level="WARNING")] == []


def test_one_process_after_the_other_may_stop_without_a_failed_request(
    proxy: Service, replicas: list[Service]
) -> None:
    with writing([proxy.register() for _ in range(4)]) as writers:
        wait_for_writes(writers, 5)
        assert replicas[0].stop() == 0
        wait_for_writes(writers, 5, since=time.monotonic())
    assert [writer.refusals for writer in writers] == [[]] * 4
