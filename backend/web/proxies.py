"""Finds the client's address behind trusted proxies, and warns once about proxies that nobody has named."""

import ipaddress
from collections.abc import Awaitable

from loguru import logger
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_CLIENT_HEADERS = frozenset({b"x-forwarded-for", b"forwarded"})
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
        inner: object = self._unmapped
        self._by_proxies = ProxyHeadersMiddleware(inner, _both_spellings(trusted or ""))  # type: ignore[arg-type]
        self._trusts_any, self._has_warned = bool(trusted), False

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request with the client's own address in its scope."""
        client = scope.get("client")
        if scope["type"] == "http":
            if self._trusts_any and client and client[0] in self._by_proxies.trusted_hosts:
                return self._by_proxies(scope, receive, send)  # type: ignore[arg-type]  # as above
            if not self._has_warned and not _CLIENT_HEADERS.isdisjoint(dict(scope["headers"])):
                self._warn_of_stranger(scope)
        if client and ":" in client[0]:
            return self._unmapped(scope, receive, send)
        return self.app(scope, receive, send)

    def _unmapped(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if client := scope.get("client"):
            scope["client"] = (unmapped(client[0]), client[1])
        return self.app(scope, receive, send)

    def _warn_of_stranger(self, scope: Scope) -> None:
        self._has_warned = True
        logger.warning(
            "FORWARDED_ALLOW_IPS does not name this proxy: all of its clients count as one address",
            header=next(name for name, _ in scope["headers"] if name in _CLIENT_HEADERS).decode(),
            ip=unmapped(scope["client"][0]) if scope["client"] else None,
        )


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
