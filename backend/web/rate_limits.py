"""Limits failed sign-ins per account and per address, registrations and requests for mail per address.

Successful sign-ins are never counted. A storage that is down or hangs never fails or stalls a sign-in.

slowapi counts in memory. `limits.aio` counts in Redis, because slowapi would block the event loop.
"""

import asyncio
import hmac
import ipaddress
import math
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from limits import RateLimitItem, RateLimitItemPerSecond, parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter, RateLimiter
from loguru import logger
from slowapi import Limiter
from slowapi.util import get_remote_address

from backend.settings import Settings
from backend.telemetry import events
from backend.telemetry.events import Event
from backend.web.errors import RateLimitedError, ServiceUnavailableError

STORAGE_SECONDS = 1.0
"""The process counts in memory if the shared storage takes longer to answer."""
STORAGE_CONNECTIONS = 8
"""Connections of one process to the shared storage; further commands wait for one of them."""
MAX_WAITING = 128
"""Sign-ins that may wait for others of the same key to end; one more gets 503 at once."""
STORAGE_PAUSE_SECONDS = 5.0
"""The time without attempts after the shared storage did not answer."""
IN_MEMORY = "memory://"
_UNLIMITED = RateLimitItemPerSecond(sys.maxsize)

_Answer = TypeVar("_Answer")


def address_of(ip: str | None) -> str:
    """Return the IPv4 address, or the /64 network of an IPv6 address, the smallest of a site (RFC 6177)."""
    try:
        address = ipaddress.ip_address(ip or "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


class RateLimits:
    """The four limits; with `RATE_LIMIT_ENABLED=false` they allow any number, and share no storage."""

    def __init__(self, settings: Settings) -> None:
        is_on = settings.rate_limit_enabled
        assert settings.jwt_secret is not None
        self._secret = settings.jwt_secret.get_secret_value().encode()
        storage = _Storage(settings.rate_limit_storage_uri.get_secret_value() if is_on else IN_MEMORY)

        def limit(name: str, rate: str) -> Limit:
            return Limit(name, parse(rate) if is_on else _UNLIMITED, storage)

        self.account = limit("account", settings.rate_limit_signin_account)
        self.address = limit("address", settings.rate_limit_signin_address)
        self.mail = limit("mail", settings.rate_limit_mail)
        self.register = limit("register", settings.rate_limit_register)

    def key_of(self, account: str) -> str:
        """Return the key of an account: a digest with a secret, because a shared storage learns no emails."""
        return hmac.digest(self._secret, account.encode(), "sha256").hex()


class Limit:
    """Allows N events per window and key. Concurrent attempts count as failures until they end."""

    def __init__(self, name: str, item: RateLimitItem, storage: "_Storage") -> None:
        self._name = name
        self._item = item
        self._storage = storage
        self._under_way: Counter[str] = Counter()
        self._one_left = asyncio.Event()
        self._waiting = 0

    async def count(self, key: str) -> None:
        """Count one event; raises `RateLimitedError`."""
        if not await self._storage.add(self._item, self._name, key):
            await self._check(key)

    async def is_half_reached(self, key: str) -> bool:
        """Return whether the limit would be half reached if all attempts under way failed."""
        happened, _ = await self._storage.happened(self._item, self._name, key)
        return 2 * (happened + self._under_way[key]) >= self._item.amount

    @asynccontextmanager
    async def attempt(self, key: str) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        """Allow one attempt and yield a function that counts it as failed.

        Raises `RateLimitedError`, or `ServiceUnavailableError` when too many attempts wait.
        """
        await self._enter(key)
        self._under_way[key] += 1
        try:
            yield partial(self._storage.add, self._item, self._name, key)
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]
            self._one_left.set()
            self._one_left = asyncio.Event()

    async def _enter(self, key: str) -> None:
        while True:
            one_left = self._one_left
            happened = await self._check(key)
            if one_left.is_set():
                continue  # an attempt has ended, and the count may lack its failure
            if happened + self._under_way[key] < self._item.amount:
                return
            # The limit is reached if all concurrent attempts fail, so one must end first.
            if self._waiting >= MAX_WAITING:
                raise ServiceUnavailableError(reason="limits_queue_full", retry_after=5)
            self._waiting += 1
            try:
                await one_left.wait()
            finally:
                self._waiting -= 1

    async def _check(self, key: str) -> int:
        """Return how many events were counted; raises `RateLimitedError` at the limit."""
        happened, seconds = await self._storage.happened(self._item, self._name, key)
        if happened >= self._item.amount:
            events.record(Event.RATE_LIMITED, limit=self._name)
            raise RateLimitedError(reason=self._name, retry_after=max(1, math.ceil(seconds)))
        return happened


class _Storage:
    """Counts in the storage that processes share, or in memory if there is none or it fails."""

    def __init__(self, uri: str) -> None:
        self._memory = Limiter(get_remote_address, storage_uri=IN_MEMORY).limiter
        self._shared = None if uri == IN_MEMORY else _shared_limiter(uri)
        self._left_alone_until = 0.0

    async def happened(self, item: RateLimitItem, name: str, key: str) -> tuple[int, float]:
        """Return the number of events in the window, and the seconds until it ends."""
        window = await self._ask_shared(lambda limiter: limiter.get_window_stats(item, name, key))
        window = window or self._memory.get_window_stats(item, name, key)
        return item.amount - window.remaining, window.reset_time - time.time()

    async def add(self, item: RateLimitItem, name: str, key: str) -> bool:
        """Count one event; returns whether it is within the limit."""
        is_within = await self._ask_shared(lambda limiter: limiter.hit(item, name, key))
        return self._memory.hit(item, name, key) if is_within is None else is_within

    async def _ask_shared(self, question: Callable[[RateLimiter], Awaitable[_Answer]]) -> _Answer | None:
        """Return the answer of the shared storage, or None if there is none or it fails."""
        if self._shared is None or time.monotonic() < self._left_alone_until:
            return None
        try:
            async with asyncio.timeout(STORAGE_SECONDS):
                return await question(self._shared)
        except Exception as error:  # noqa: BLE001  # a wrong option of the URL may raise anything
            if time.monotonic() >= self._left_alone_until:  # one line for all concurrent failures
                logger.warning(
                    "RATE_LIMIT_STORAGE_URI does not answer: each process counts for itself meanwhile",
                    error=type(error).__name__,
                )
            self._left_alone_until = time.monotonic() + STORAGE_PAUSE_SECONDS
            return None


def _shared_limiter(uri: str) -> RateLimiter:
    # Imported here, because Redis' client takes 6 MB of memory.
    from redis.asyncio import BlockingConnectionPool  # noqa: PLC0415
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    # A failed command is not sent again, because counting in memory is faster. The client has the same
    # timeouts, because a cancelled command waits for them.
    timeouts = {"socket_timeout": STORAGE_SECONDS, "socket_connect_timeout": STORAGE_SECONDS}
    pool = BlockingConnectionPool.from_url(
        uri, max_connections=STORAGE_CONNECTIONS, retry=Retry(NoBackoff(), retries=0), **timeouts
    )
    options: dict[str, Any] = {"implementation": "redispy", "connection_pool": pool}
    return FixedWindowRateLimiter(RedisStorage(f"async+{uri}", **options))
