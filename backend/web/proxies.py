"""Finds the client's address behind trusted proxies, and warns once about proxies that nobody has named."""

import ipaddress
from collections.abc import Awaitable

from loguru import logger
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_CLIENT_HEADERS = (b"x-forwarded-for", b"forwarded")
"""Headers in which a proxy names its client; the second is RFC 7239's, which is not read."""
_MAPPED_BITS = 96
"""The length of the prefix ::ffff: before a mapped address."""


class Proxies:
    """Replaces the address of a trusted proxy by that of its client (`X-Forwarded-For`, as Uvicorn reads it).

    Addresses are unmapped: a dual-stack socket sees 127.0.0.1 as ::ffff:127.0.0.1 (RFC 4291 section 2.5.5.2).
    """

    def __init__(self, app: ASGIApp, trusted: str | None) -> None:
        self.app = app
        # Uvicorn's types for ASGI are not Starlette's.
        inner: object = self._pass_on
        self._by_proxies = ProxyHeadersMiddleware(inner, _both_spellings(trusted or ""))  # type: ignore[arg-type]
        self._has_warned = False

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request with the client's own address in its scope."""
        if scope["type"] == "http":
            peer = scope["client"][0] if scope["client"] else None
            if peer in self._by_proxies.trusted_hosts:
                return self._by_proxies(scope, receive, send)  # type: ignore[arg-type]  # as above
            if not self._has_warned:
                self._warn_of_stranger(scope)
        return self._pass_on(scope, receive, send)

    def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        client = scope.get("client")
        if client and ":" in client[0]:
            scope["client"] = (unmapped(client[0]), client[1])
        return self.app(scope, receive, send)

    def _warn_of_stranger(self, scope: Scope) -> None:
        for name, _ in scope["headers"]:
            if name in _CLIENT_HEADERS:
                self._has_warned = True
                logger.warning(
                    "FORWARDED_ALLOW_IPS does not name this proxy: all of its clients count as one address",
                    header=name.decode(),
                    ip=unmapped(scope["client"][0]) if scope["client"] else None,
                )
                return


def unmapped(ip: str) -> str:
    """Return the IPv4 address that an IPv4-mapped IPv6 address stands for; anything else as it is."""
    try:
        mapped = ipaddress.IPv6Address(ip).ipv4_mapped
    except ValueError:
        return ip
    return str(mapped) if mapped else ip


def _both_spellings(trusted: str) -> list[str] | str:
    """Return the trusted networks, those of IPv4 as IPv4-mapped IPv6 too: proxies write their peers so."""
    if trusted == "*":
        return trusted
    names = [part.strip() for part in trusted.split(",") if part.strip()]
    networks = [ipaddress.ip_network(name) for name in names]
    mapped = [
        f"::ffff:{each.network_address}/{_MAPPED_BITS + each.prefixlen}"
        for each in networks
        if isinstance(each, ipaddress.IPv4Network)
    ]
    return [*map(str, networks), *mapped]
