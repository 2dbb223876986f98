"""Replaces the address of a trusted proxy by that of its client, and warns of a proxy that is not named."""

import ipaddress
import re
from collections.abc import Awaitable
from typing import Any

from loguru import logger
from starlette.types import ASGIApp, Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

_CLIENT_HEADERS = frozenset({b"x-forwarded-for", b"forwarded"})
"""Headers in which a proxy names its client. The second, of RFC 7239, is not read."""
_LONG_ADDRESS = re.compile(rb"[0-9a-f:.]{10,}", re.IGNORECASE)
"""An address that may be mapped: `::ffff:0:0` is the shortest."""
_MAPPED_BITS = 96
"""The length of the prefix ::ffff: of an IPv4-mapped IPv6 address."""


class Proxies:
    """Uvicorn's reading of `X-Forwarded-For`, with one warning for a proxy that is not trusted.

    IPv4-mapped IPv6 addresses (RFC 4291 section 2.5.5.2) become IPv4 addresses, because proxies and
    sockets for both families write the same address in both ways.
    """

    def __init__(self, app: ASGIApp, trusted: str | None) -> None:
        self.app = app
        networks = [_unmapped_network(name) for name in (trusted or "").split(",")]
        self._by_proxies = ProxyHeadersMiddleware(app, networks)  # type: ignore[arg-type]  # Uvicorn's types for ASGI are not Starlette's
        self._has_warned = False

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        """Serve one request with the client's own address in its scope."""
        client = scope.get("client")
        if client and ":" in client[0]:
            client = scope["client"] = (unmapped(client[0]), client[1])
        if scope["type"] == "http":
            if client and client[0] in self._by_proxies.trusted_hosts:
                scope["headers"] = [
                    (name, _all_unmapped(value) if name == b"x-forwarded-for" else value)
                    for name, value in scope["headers"]
                ]
                return self._by_proxies(scope, receive, send)
            if not self._has_warned and not _CLIENT_HEADERS.isdisjoint(dict(scope["headers"])):
                self._warn_of(scope)
        return self.app(scope, receive, send)

    def _warn_of(self, scope: Scope) -> None:
        self._has_warned = True
        logger.warning(
            "FORWARDED_ALLOW_IPS does not name this proxy: all of its clients count as one address",
            header=next(name for name, _ in scope["headers"] if name in _CLIENT_HEADERS).decode(),
            ip=scope["client"][0] if scope["client"] else None,
        )


def unmapped(ip: str) -> str:
    """Return the IPv4 address of an IPv4-mapped IPv6 address; return any other text as it is."""
    try:
        mapped = ipaddress.IPv6Address(ip).ipv4_mapped
    except ValueError:
        return ip
    return str(mapped) if mapped else ip


def _all_unmapped(forwarded_for: bytes) -> bytes:
    if b":" not in forwarded_for:
        return forwarded_for
    return _LONG_ADDRESS.sub(lambda match: unmapped(match[0].decode()).encode(), forwarded_for)


def _unmapped_network(name: str) -> str:
    """Return an address or a network of IPv4-mapped addresses as one of IPv4; return any other as it is."""
    address, _, length = name.strip().partition("/")
    ip = unmapped(address)
    return name.strip() if ip == address else f"{ip}/{int(length or 128) - _MAPPED_BITS}"
