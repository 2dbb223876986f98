"""Verifies access tokens of other issuers: a Better Auth server, or a front end with a shared secret.

Keys come from the configured server alone, never from a token. Each key is used with one algorithm only.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urljoin

from pydantic import AnyHttpUrl

from backend.auth.caller import Caller
from backend.auth.models import EXTERNAL
from backend.auth.tokens.access import decode, expiry, subject
from backend.settings import Settings

if TYPE_CHECKING:
    from jwt import PyJWK

    from backend.auth.tokens.jwks import KeySet

SHARED_ALGORITHM: Final = "HS256"


class Verified(NamedTuple):
    """The caller and the claims of a verified token, and the key of the JWKS that verified it."""

    caller: Caller
    claims: dict[str, Any]
    key: "PyJWK | None" = None
    """None where a secret of the settings verified the token."""


class ExternalTokens:
    """Verifies the tokens of both kinds of external issuer, which count as one issuer."""

    def __init__(self, settings: Settings) -> None:
        secret, url = settings.better_auth_secret, settings.better_auth_url
        self._secret = secret.get_secret_value().encode() if secret else None
        self._keys = _key_set(url) if url else None
        self._origin = _origin(url) if url else None
        self._issuer, self._audience = settings.better_auth_issuer, settings.better_auth_audience

    async def verify(self, token: str, header: dict[str, Any]) -> Verified | None:
        """Return what `token` says, expired or not; None if no external issuer signs with its algorithm.

        Raises `InvalidTokenError`, `KeysUnavailableError`.
        """
        algorithm, issuer, audience = header.get("alg"), self._issuer, self._audience
        if algorithm == SHARED_ALGORITHM and self._secret is not None:
            claims = decode(token, self._secret, SHARED_ALGORITHM, issuer=issuer, audience=audience)
            return _verified(claims)
        if self._keys is None or algorithm not in self._keys.algorithms:
            return None
        key = await self._keys.find(header.get("kid"))
        issuer, audience = issuer or self._origin, audience or self._origin
        claims = decode(token, key.key, key.algorithm_name, issuer=issuer, audience=audience)
        return _verified(claims, key)

    def still_trusts(self, key: "PyJWK | None") -> bool:
        """Return whether a token that `key` verified needs no new check: the key is still published."""
        return key is None or (self._keys is not None and self._keys.holds(key))


def _verified(claims: dict[str, Any], key: "PyJWK | None" = None) -> Verified:
    return Verified(Caller(subject(claims), EXTERNAL, None, expiry(claims)), claims, key)


def _key_set(url: str) -> "KeySet":
    from backend.auth.tokens.jwks import KeySet  # noqa: PLC0415  # its HTTP client takes memory

    return KeySet(f"{url}/api/auth/jwks")


def _origin(url: str) -> str:
    """Return the origin of `url`, without a default port, as the URL standard has it (section 4.7)."""
    return str(AnyHttpUrl(urljoin(url, "/"))).rstrip("/")
