"""The public keys of another issuer, fetched when they are needed and remembered while its server is away.

Each key is good for one algorithm, and what any other issuer publishes is never asked for.
"""

import asyncio
import time
from typing import Any, Final, NamedTuple

import httpx
import jwt
import msgspec
from loguru import logger

from backend import metrics
from backend.auth.errors import InvalidTokenError, KeysUnavailableError

FORCED_FETCH_SECONDS: Final = 30.0
"""An unknown key id makes the keys be fetched anew, at most once in this time."""
STALE_SECONDS: Final = 300.0
"""Keys older than this are fetched anew while they go on verifying."""
RETRY_SECONDS: Final = 2.0
"""Between attempts while there are no keys yet."""
FETCH_TIMEOUT_SECONDS: Final = 4.0
MAX_JWKS_BYTES: Final = 256 * 1024
JWKS_ALGORITHMS: Final = {
    ("OKP", "Ed25519"): "EdDSA",
    ("EC", "P-256"): "ES256",
    ("RSA", None): "RS256",
}
_MIN_RSA_BITS: Final = 2048  # RFC 7518 section 3.3


class Key(NamedTuple):
    """A public key, and the one algorithm that it is good for."""

    material: Any
    algorithm: str


class KeySet:
    """The keys of a JWKS (RFC 7517), remembered: the last good ones go on while the server is away."""

    algorithms = tuple(JWKS_ALGORITHMS.values())

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, Key] | None = None
        self._fetch: asyncio.Task[None] | None = None
        self._fetched_at = self._forced_at = self._tried_at = -STALE_SECONDS

    async def find(self, key_id: object) -> Key:
        """Return the key of that id; raises `InvalidTokenError`, `KeysUnavailableError`."""
        now = time.monotonic()
        key = self._known(key_id)
        if key is not None:
            if now - self._fetched_at > STALE_SECONDS and now - self._tried_at > FORCED_FETCH_SECONDS:
                self._begin_fetch()
            return key
        await self._fetch_for_unknown(now)
        if self._keys is None:
            raise KeysUnavailableError(reason="jwks")
        key = self._known(key_id)
        if key is None:
            # Whoever sends unknown ids has used up the one fetch that they are good for.
            self._forced_at = max(self._forced_at, self._fetched_at)
            raise InvalidTokenError(reason="unknown_key")
        return key

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
            self._keys = _parse(await _download(self._url))
            self._fetched_at = time.monotonic()
            metrics.KEY_FETCHES.labels("succeeded").inc()
        except (httpx.HTTPError, ValueError, TimeoutError, RecursionError) as error:
            metrics.KEY_FETCHES.labels("failed").inc()
            logger.warning("the keys of the token server cannot be fetched", error=type(error).__name__)
        finally:
            self._fetch = None


async def _download(url: str) -> bytes:
    body = bytearray()
    async with (
        asyncio.timeout(FETCH_TIMEOUT_SECONDS),
        httpx.AsyncClient(timeout=FETCH_TIMEOUT_SECONDS) as client,
        client.stream("GET", url) as response,
    ):
        response.raise_for_status()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > MAX_JWKS_BYTES:
                raise ValueError("the key set is too large")
    return bytes(body)


def _parse(body: bytes) -> dict[str, Key]:
    """Return the keys of a set that we can use, by their ids; raises ValueError if it is no key set."""
    document = msgspec.json.decode(body)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("no key set")  # noqa: TRY004  # about a value, as the other reasons are
    keys = (_key(entry) for entry in document["keys"] if isinstance(entry, dict))
    return {key_id: key for key_id, key in keys if key is not None}


def _key(entry: dict[str, Any]) -> tuple[str, Key | None]:
    key_id = entry.get("kid")
    kind = (entry.get("kty"), None if entry.get("kty") == "RSA" else entry.get("crv"))
    algorithm = next((name for known, name in JWKS_ALGORITHMS.items() if known == kind), None)
    is_for_signing = entry.get("use", "sig") == "sig" and entry.get("alg", algorithm) == algorithm
    if not isinstance(key_id, str) or algorithm is None or not is_for_signing:
        return "", None
    try:
        material = jwt.PyJWK.from_dict(entry, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return key_id, None
    if getattr(material, "key_size", _MIN_RSA_BITS) < _MIN_RSA_BITS and algorithm == "RS256":
        return key_id, None
    return key_id, Key(material, algorithm)
