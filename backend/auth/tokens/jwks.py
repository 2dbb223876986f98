"""Fetches and caches the public keys (JWKS, RFC 7517) of the configured token server.

The last fetched keys stay in use while that server is down. Each key is used with one algorithm only.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import httpx2
import jwt
import msgspec
from jwt import PyJWK
from loguru import logger

from backend.auth.errors import KeysUnavailableError
from backend.telemetry import metrics
from backend.web.bearer import InvalidTokenError

FORCED_FETCH_SECONDS: Final = 30.0
"""The shortest time between two fetches that unknown key ids cause."""
STALE_SECONDS: Final = 300.0
"""Keys older than this are fetched anew in the background, while they stay in use."""
RETRY_SECONDS: Final = 2.0
"""The shortest time between two fetches while none has succeeded yet."""
FETCH_TIMEOUT_SECONDS: Final = 4.0
MAX_JWKS_BYTES: Final = 256 * 1024
_MIN_RSA_BITS: Final = 2048  # RFC 7518 section 3.3


class KeySet:
    """The keys of one JWKS; after a failed fetch the last good ones stay in use.

    `on_renewal` is called after each successful fetch.
    """

    algorithms: Final = ("EdDSA", "ES256", "RS256")

    def __init__(self, url: str, on_renewal: Callable[[], None]) -> None:
        self._url, self._on_renewal = url, on_renewal
        self._keys: dict[str | None, PyJWK] | None = None
        self._fetch: asyncio.Task[None] | None = None
        self._fetched_at = self._forced_at = self._tried_at = -STALE_SECONDS

    async def find(self, key_id: object) -> PyJWK:
        """Return the key of that id; raises `InvalidTokenError`, `KeysUnavailableError`.

        An unknown id waits for a fetch, at most `FETCH_TIMEOUT_SECONDS`.
        """
        if not isinstance(key_id, str):
            raise InvalidTokenError(reason="unknown_key")
        if self._keys is None or key_id not in self._keys:
            await self._fetch_for_unknown()
        if self._keys is None:
            raise KeysUnavailableError(reason="jwks")
        if key_id not in self._keys:
            # A fetch that came without the id counts as the one that unknown ids may cause.
            self._forced_at = max(self._forced_at, self._fetched_at)
            raise InvalidTokenError(reason="unknown_key")
        self._renew_if_stale()
        return self._keys[key_id]

    def _renew_if_stale(self) -> None:
        now = time.monotonic()
        if now - self._fetched_at > STALE_SECONDS and now - self._tried_at > FORCED_FETCH_SECONDS:
            self._begin_fetch()

    async def _fetch_for_unknown(self) -> None:
        """Wait for the fetch that is under way, or for a new one if the last is long enough ago."""
        now = time.monotonic()
        if self._keys is None:
            if now - self._tried_at >= RETRY_SECONDS:
                self._begin_fetch()
        elif self._fetch is None and now - self._forced_at >= FORCED_FETCH_SECONDS:
            self._forced_at = now
            self._begin_fetch()
        if self._fetch is not None:
            await asyncio.shield(self._fetch)

    def _begin_fetch(self) -> None:
        if self._fetch is None:
            self._tried_at = time.monotonic()
            self._fetch = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        try:
            self._keys = await asyncio.to_thread(_parse, await _download(self._url))
            self._fetched_at = time.monotonic()
            self._on_renewal()
            metrics.KEY_FETCHES.labels("succeeded").inc()
        except (httpx2.HTTPError, ValueError, TimeoutError, RecursionError) as error:
            metrics.KEY_FETCHES.labels("failed").inc()
            logger.warning("the keys of the token server cannot be fetched", error=type(error).__name__)
        finally:
            self._fetch = None


async def _download(url: str) -> bytes:
    """Return the body that `url` answers; raises `httpx2.HTTPError`, ValueError, TimeoutError."""
    body = bytearray()
    # A client reads the system's certificates when it is made, which takes tens of milliseconds.
    new_client = await asyncio.to_thread(httpx2.AsyncClient, timeout=FETCH_TIMEOUT_SECONDS)
    async with (
        asyncio.timeout(FETCH_TIMEOUT_SECONDS),
        new_client as client,
        client.stream("GET", url) as response,
    ):
        response.raise_for_status()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > MAX_JWKS_BYTES:
                raise ValueError("the key set is too large")
    return bytes(body)


def _parse(body: bytes) -> dict[str | None, PyJWK]:
    """Return the usable keys of a set by their ids; raises ValueError if `body` is no key set.

    Of two usable keys with one id the last counts.
    """
    document = msgspec.json.decode(body)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("no key set")  # noqa: TRY004  # about a value, as the other reasons are
    keys = (_key(entry) for entry in document["keys"])
    return {key.key_id: key for key in keys if key is not None}


def _key(entry: Any) -> PyJWK | None:
    """Return the key that an entry of a set describes, None for one that verifies nothing here."""
    try:
        key = PyJWK(entry)
        is_usable = (
            key.algorithm_name in KeySet.algorithms
            and isinstance(key.key_id, str)
            and entry.get("use", "sig") == "sig"  # RFC 7517 section 4.2
            and "d" not in entry  # because anybody could sign with a private key that is published
            and (key.key_type != "RSA" or key.key.key_size >= _MIN_RSA_BITS)
        )
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError):
        return None
    return key if is_usable else None
