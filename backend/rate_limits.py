"""Limits on guessing: failed sign-ins per account and per address, registrations per address.

A right password is never counted, and a storage that is down or hangs never takes sign-in with it.
"""

import asyncio
import hmac
import ipaddress
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.strategies import RateLimiter
from loguru import logger
from slowapi import Limiter
from slowapi.util import get_remote_address

from backend import events
from backend.errors import RateLimitedError, ServiceUnavailableError
from backend.events import Event
from backend.settings import Settings

STORAGE_SECONDS = 0.25
"""The longest that a shared storage may take to answer before this process counts by itself."""
QUEUED_STORAGE_SECONDS = 1.0
"""The same for a question that has to wait for a thread first."""
MAX_WAITING = 128
"""Sign-ins that may wait for others of their account or address to end; one more is refused at once."""
STORAGE_PAUSE_SECONDS = 5.0
"""How long a storage that did not answer is left alone."""
IN_MEMORY = "memory://"

_Answer = TypeVar("_Answer")


def address_of(ip: str | None) -> str:
    """Return what counts as one address: an IPv4 address, or the /64 that one IPv6 site has (RFC 6177)."""
    try:
        address = ipaddress.ip_address(ip or "")
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


class RateLimits:
    """The three limits of contract section 6, or none of them with `RATE_LIMIT_ENABLED=false`."""

    def __init__(self, settings: Settings) -> None:
        storage = _Storage(settings.rate_limit_storage_uri.get_secret_value())
        self._is_enabled = settings.rate_limit_enabled
        assert settings.jwt_secret is not None
        self._secret = settings.jwt_secret.get_secret_value().encode()
        self._account = _Limit("account", settings.rate_limit_signin_account, storage)
        self._address = _Limit("address", settings.rate_limit_signin_address, storage)
        self._mail = _Limit("mail", settings.rate_limit_mail, storage)
        self._register = _Limit("register", settings.rate_limit_register, storage)

    async def registration(self, address: str) -> None:
        """Count one registration; raises `RateLimitedError`."""
        if self._is_enabled:
            await self._register.count(address)

    async def mail(self, address: str) -> None:
        """Count one request that sends mail; raises `RateLimitedError`."""
        if self._is_enabled:
            await self._mail.count(address)

    @asynccontextmanager
    async def guess(self, address: str, account: str | None) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Let one password be tried, and yield what to call if it is wrong; raises `RateLimitedError`.

        `account` is None where the account's own limit does not count: at an address that it is known to use.
        """
        keys = [(self._address, address)]
        if account is not None:
            # Neither the email nor what could be guessed from it: it is no business of a shared storage.
            keys.append((self._account, hmac.digest(self._secret, account.encode(), "sha256").hex()))
        async with AsyncExitStack() as stack:
            entered = keys if self._is_enabled else []
            for limit, key in entered:
                await stack.enter_async_context(limit.turn(key))

            async def failed() -> None:
                for limit, key in entered:
                    await limit.add(key)

            yield failed


class _Limit:
    """So many in a while, by key; no more are let in at once than could still happen."""

    def __init__(self, name: str, limit: str, storage: "_Storage") -> None:
        self._name = name
        self._item = parse(limit)
        self._storage = storage
        self._under_way: Counter[str] = Counter()
        self._one_left = asyncio.Event()
        self._waiting = 0

    async def count(self, key: str) -> None:
        if not await self._storage.add(self._item, self._name, key):
            await self._check(key)

    async def add(self, key: str) -> None:
        await self._storage.add(self._item, self._name, key)

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        await self._enter(key)
        self._under_way[key] += 1
        try:
            yield
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
                continue  # that count may be older than how the one ended
            if happened + self._under_way[key] < self._item.amount:
                return
            # As many are under way as may fail: how they end decides about this one.
            if self._waiting >= MAX_WAITING:
                raise ServiceUnavailableError(reason="limits_queue_full", retry_after=5)
            self._waiting += 1
            try:
                await one_left.wait()
            finally:
                self._waiting -= 1

    async def _check(self, key: str) -> int:
        """Return how often it has happened; raises `RateLimitedError` when that is as often as it may."""
        happened, seconds = await self._storage.happened(self._item, self._name, key)
        if happened >= self._item.amount:
            events.record(Event.RATE_LIMITED, limit=self._name)
            raise RateLimitedError(reason=self._name, retry_after=max(1, math.ceil(seconds)))
        return happened


class _Storage:
    """Counts in a storage that processes share, or in memory: also while the other does not answer."""

    def __init__(self, uri: str) -> None:
        self._memory = _rate_limiter(IN_MEMORY)
        self._shared = None if uri == IN_MEMORY else _rate_limiter(uri)
        # slowapi's storages block: they are asked off the event loop.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="limits")
        self._left_alone_until = 0.0

    async def happened(self, item: RateLimitItem, *key: str) -> tuple[int, float]:
        """Return how often it has happened, and in how many seconds that is forgotten."""
        window = await self._ask(lambda limiter: limiter.get_window_stats(item, *key))
        return item.amount - window.remaining, window.reset_time - time.time()

    async def add(self, item: RateLimitItem, *key: str) -> bool:
        """Count once more; returns whether that was within the limit."""
        return await self._ask(lambda limiter: limiter.hit(item, *key))

    async def _ask(self, question: Callable[[RateLimiter], _Answer]) -> _Answer:
        if self._shared is None or time.monotonic() < self._left_alone_until:
            return question(self._memory)
        try:
            async with asyncio.timeout(QUEUED_STORAGE_SECONDS):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, question, self._shared)
        except (StorageError, OSError) as error:
            logger.warning("the rate limit storage does not answer", error=type(error).__name__)
            self._left_alone_until = time.monotonic() + STORAGE_PAUSE_SECONDS
            return question(self._memory)


def _rate_limiter(uri: str) -> RateLimiter:
    options: dict[str, Any] = {"wrap_exceptions": True}
    if uri != IN_MEMORY:
        options |= {"socket_timeout": STORAGE_SECONDS, "socket_connect_timeout": STORAGE_SECONDS}
        options["retry"] = _no_retry()
    return Limiter(get_remote_address, storage_uri=uri, storage_options=options).limiter


def _no_retry() -> object:
    """Return Redis' word for asking once; its own three times take seconds."""
    # Here, since it costs a process 6 MB, and few use it.
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    return Retry(NoBackoff(), retries=0)
