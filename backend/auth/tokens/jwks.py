"""Fetches and caches the public keys (JWKS, RFC 7517) of the configured token server.

The last fetched keys stay in use while that server is down. Each key is used with one algorithm only.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import jwt
import msgspec
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
JWKS_ALGORITHMS: Final = {
    ("OKP", "Ed25519"): "EdDSA",
    ("EC", "P-256"): "ES256",
    ("RSA", None): "RS256",
}
_MIN_RSA_BITS: Final = 2048  # RFC 7518 section 3.3


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """A public key of one fetched set, and the one algorithm that it is used with.

    Keys compare by identity: each fetch makes new ones, because a set may change a key under its id.
    """

    id: str
    material: Any
    algorithm: str


class KeySet:
    """The keys of one JWKS; a failed fetch leaves the last good ones in use."""

    algorithms = tuple(JWKS_ALGORITHMS.values())

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, Key] | None = None
        self._fetch: asyncio.Task[None] | None = None
        self._fetched_at = self._forced_at = self._tried_at = -STALE_SECONDS

    async def find(self, key_id: object) -> Key:
        """Return the key of that id; raises `InvalidTokenError`, `KeysUnavailableError`.

        An unknown id waits for a fetch, at most `FETCH_TIMEOUT_SECONDS`.
        """
        key = self._known(key_id)
        if key is not None:
            self._renew_if_stale()
            return key
        if not isinstance(key_id, str):
            raise InvalidTokenError(reason="unknown_key")
        await self._fetch_for_unknown(time.monotonic())
        if self._keys is None:
            raise KeysUnavailableError(reason="jwks")
        key = self._known(key_id)
        if key is None:
            # The fetch that has just come without the id counts as the one that unknown ids may cause.
            self._forced_at = max(self._forced_at, self._fetched_at)
            raise InvalidTokenError(reason="unknown_key")
        return key

    def holds(self, key: Key) -> bool:
        """Return whether `key` is of the set that was fetched last; renews a stale set in the background."""
        self._renew_if_stale()
        return self._known(key.id) is key

    def _renew_if_stale(self) -> None:
        now = time.monotonic()
        if now - self._fetched_at > STALE_SECONDS and now - self._tried_at > FORCED_FETCH_SECONDS:
            self._begin_fetch()

    def _known(self, key_id: object) -> Key | None:
        return self._keys.get(key_id) if self._keys and isinstance(key_id, str) else None

    async def _fetch_for_unknown(self, now: float) -> None:
        if self._fetch is None:
            is_first = self._keys is None
            since, pause = (
                (self._tried_at, RETRY_SECONDS) if is_first else (self._forced_at, FORCED_FETCH_SECONDS)
            )
            if now - since < pause:
                return
            if not is_first:
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


def _parse(body: bytes) -> dict[str, Key]:
    """Return the usable keys of a set by their ids; raises ValueError if `body` is no key set.

    Of two usable keys with one id the last counts.
    """
    document = msgspec.json.decode(body)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("no key set")  # noqa: TRY004  # about a value, as the other reasons are
    keys = (_key(entry) for entry in document["keys"] if isinstance(entry, dict))
    return {key.id: key for key in keys if key is not None}


def _key(entry: dict[str, Any]) -> Key | None:
    """Return the key that an entry of a set describes, None if it is of no use here."""
    key_id, algorithm = entry.get("kid"), _algorithm(entry)
    if not isinstance(key_id, str) or algorithm is None or not _is_for_verifying(entry, algorithm):
        return None
    try:
        material = jwt.PyJWK.from_dict(entry, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    is_weak = algorithm == "RS256" and material.key_size < _MIN_RSA_BITS
    return None if is_weak else Key(key_id, material, algorithm)


def _algorithm(entry: dict[str, Any]) -> str | None:
    kind = (entry.get("kty"), None if entry.get("kty") == "RSA" else entry.get("crv"))
    return next((name for known, name in JWKS_ALGORITHMS.items() if known == kind), None)


def _is_for_verifying(entry: dict[str, Any], algorithm: str) -> bool:
    """Return whether `use`, `key_ops` and `alg` (RFC 7517 section 4) allow it."""
    operations = entry.get("key_ops", ["verify"])
    return (
        entry.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and entry.get("alg", algorithm) == algorithm
        # Whoever can fetch a private key can sign with it.
        and "d" not in entry
    )
