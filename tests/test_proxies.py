"""The client's address behind proxies, and the warning about a proxy missing in `FORWARDED_ALLOW_IPS`."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from backend.web.proxies import Proxies, unmapped
from tests.programs import needs_loopback_addresses
from tests.service import PASSWORD, Service


def warnings(service: Service) -> list[dict[str, Any]]:
    return [line for line in service.lines(level="WARNING") if "FORWARDED_ALLOW_IPS" in line["event"]]


def ask(service: Service, address: str, **headers: str) -> None:
    """Ask once as a client that really is at `address`."""
    transport = httpx2.HTTPTransport(local_address=address)
    service.client(transport=transport, headers=headers).get("/health").raise_for_status()


@needs_loopback_addresses
@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_a_proxy_that_was_not_named_is_one_warning_that_says_how_to_name_it(
    new_service: Callable[..., Service], header: str
) -> None:
    service = new_service()
    ask(service, "127.0.0.2")
    assert warnings(service) == []
    for _ in range(3):
        ask(service, "127.0.0.2", **{header: "192.0.2.1"})
    (line,) = warnings(service)
    assert (line["ip"], line["header"]) == ("127.0.0.2", header.lower())


@needs_loopback_addresses
def test_a_proxy_that_was_named_is_no_warning_and_another_is(new_service: Callable[..., Service]) -> None:
    service = new_service(FORWARDED_ALLOW_IPS="127.0.0.1, 10.0.0.0/8")
    ask(service, "127.0.0.1", **{"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=192.0.2.1"})
    assert warnings(service) == []
    ask(service, "127.0.0.2", **{"X-Forwarded-For": "192.0.2.1"})
    assert [line["ip"] for line in warnings(service)] == ["127.0.0.2"]


def client_of(trusted: str | None, peer: str, forwarded_for: str) -> str:
    """Return the address that the application sees."""
    seen: list[str] = []

    async def application(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["client"][0])

    async def ask_once() -> None:
        headers = [(b"x-forwarded-for", forwarded_for.encode())]
        scope = {"type": "http", "client": (peer, 1), "headers": headers}
        await Proxies(application, trusted)(scope, nothing, nothing)

    asyncio.run(ask_once())
    return seen[0]


async def nothing(*_: object) -> Any:
    raise AssertionError


@pytest.mark.parametrize(
    "peer", ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "10.1.2.3", "::ffff:10.1.2.3"]
)
def test_a_trusted_proxy_is_trusted_on_a_socket_of_both_families(peer: str) -> None:
    for client in ("203.0.113.5", "::ffff:203.0.113.5", "203.0.113.5:4711", "203.0.113.5, ::ffff:10.0.0.9"):
        assert client_of("127.0.0.1,10.0.0.0/8", peer, client) == "203.0.113.5"


@pytest.mark.parametrize("trusted", [None, "127.0.0.2", "10.0.0.0/8", "::1"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_an_address_is_unmapped_also_where_no_proxy_is_trusted(trusted: str | None, peer: str) -> None:
    assert client_of(trusted, peer, "203.0.113.5") == "127.0.0.1"


def test_any_proxy_may_be_trusted() -> None:
    assert client_of("*", "::ffff:192.0.2.7", "::ffff:203.0.113.5, 192.0.2.8") == "203.0.113.5"


@pytest.mark.parametrize("ip", ["2001:db8::1", "::1", "192.0.2.1", "fe80::1%eth0", "unknown", "", ":" * 9999])
def test_what_is_no_mapped_address_stays_as_it_is(ip: str) -> None:
    assert unmapped(ip) == ip


def test_sessions_and_log_show_the_ipv4_address_of_a_mapped_one(new_service: Callable[..., Service]) -> None:
    service = new_service(FORWARDED_ALLOW_IPS="127.0.0.1")
    client = service.client(headers={"X-Forwarded-For": "::ffff:203.0.113.5"})
    data = {"email": "ada@example.com", "password": PASSWORD}
    token = client.post("/auth/register", json=data).raise_for_status().json()["access_token"]
    (session,) = client.get("/auth/sessions", headers={"Authorization": f"Bearer {token}"}).json()
    assert session["ip"] == "203.0.113.5"
    assert {line["ip"] for line in service.lines(event="http.request", route="/auth/sessions")} == {
        "203.0.113.5"
    }
