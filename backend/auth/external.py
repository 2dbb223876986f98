"""Tokens that are issued elsewhere: by a Better Auth server, or by a front end that shares a secret with us.

Keys come from the configured server alone, never from a token, and each key is good for one algorithm.
"""

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from backend.auth.caller import Caller
from backend.auth.errors import InvalidTokenError
from backend.auth.models import EXTERNAL
from backend.auth.tokens import decode, expiry, subject
from backend.settings import Settings

if TYPE_CHECKING:
    from backend.auth.jwks import KeySet

SHARED_ALGORITHM: Final = "HS256"


class ExternalTokens:
    """Tells who sent a token of a trusted issuer other than us; both kinds of them are one issuer."""

    def __init__(self, settings: Settings) -> None:
        secret, url = settings.better_auth_secret, settings.better_auth_url
        self._secret = secret.get_secret_value().encode() if secret else None
        self._keys = _key_set(url) if url else None
        self._origin = _origin(url) if url else None
        self._issuer, self._audience = settings.better_auth_issuer, settings.better_auth_audience

    def takes(self, algorithm: object) -> bool:
        """Tell whether any key of these issuers could have signed with `algorithm`."""
        by_secret = algorithm == SHARED_ALGORITHM and self._secret is not None
        return by_secret or (self._keys is not None and algorithm in self._keys.algorithms)

    async def verify(self, token: str, header: dict[str, Any]) -> tuple[Caller, dict[str, Any]]:
        """Return who sent `token`, and its claims; raises `InvalidTokenError`, `KeysUnavailableError`."""
        claims = await self._claims(token, header)
        return Caller(subject(claims), EXTERNAL, None, expiry(claims)), claims

    async def _claims(self, token: str, header: dict[str, Any]) -> dict[str, Any]:
        if header.get("alg") == SHARED_ALGORITHM and self._secret is not None:
            return decode(token, self._secret, SHARED_ALGORITHM, issuer=self._issuer, audience=self._audience)
        if self._keys is None:
            raise InvalidTokenError(reason="algorithm")
        key = await self._keys.find(header.get("kid"))
        return decode(
            token,
            key.material,
            key.algorithm,
            issuer=self._issuer or self._origin,
            audience=self._audience or self._origin,
        )


def _key_set(url: str) -> "KeySet":
    from backend.auth.jwks import KeySet  # noqa: PLC0415  # its HTTP client is for those who need it

    return KeySet(f"{url}/api/auth/jwks")


def _origin(url: str) -> str:
    """Return the origin of `url` (RFC 6454 section 6.2)."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}[parts.scheme]
    port = "" if parts.port in (None, default) else f":{parts.port}"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{port}"
