"""Verifies access tokens of other issuers: a Better Auth server, or a front end with a shared secret.

Keys come from the configured server alone, never from a token. Each key is used with one algorithm only.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin

from backend.auth.caller import Caller
from backend.auth.models import EXTERNAL
from backend.auth.tokens.access import Verified, decode, subject
from backend.settings import Settings

if TYPE_CHECKING:
    from backend.auth.tokens.jwks import KeySet

SHARED_ALGORITHM: Final = "HS256"


class ExternalTokens:
    """Verifies the tokens of both kinds of external issuer, which count as one issuer.

    `on_renewal` is called when the keys of the JWKS were fetched anew, some of which may be gone.
    """

    def __init__(self, settings: Settings, on_renewal: Callable[[], None]) -> None:
        secret, url = settings.better_auth_secret, settings.better_auth_url
        self._secret = secret.get_secret_value().encode() if secret else None
        self._keys = _key_set(url, on_renewal) if url else None
        self._origin = urljoin(url, "/").rstrip("/") if url else None
        self._issuer, self._audience = settings.better_auth_issuer, settings.better_auth_audience

    async def verify(self, token: str, header: dict[str, Any]) -> Verified | None:
        """Return what `token` says, expired or not; None if no configured key is for its algorithm.

        Raises `InvalidTokenError`, `KeysUnavailableError`.
        """
        issuer, audience = self._issuer, self._audience
        if header.get("alg") == SHARED_ALGORITHM:
            if self._secret is None:
                return None
            claims = decode(token, self._secret, SHARED_ALGORITHM, issuer=issuer, audience=audience)
        elif self._keys is None or header.get("alg") not in self._keys.algorithms:
            return None
        else:
            key = await self._keys.find(header.get("kid"))
            issuer, audience = issuer or self._origin, audience or self._origin
            claims = decode(token, key.key, key.algorithm_name, issuer=issuer, audience=audience)
        return Caller(subject(claims), EXTERNAL, None), claims


def _key_set(url: str, on_renewal: Callable[[], None]) -> "KeySet":
    from backend.auth.tokens.jwks import KeySet  # noqa: PLC0415  # its HTTP client takes memory

    return KeySet(f"{url}/api/auth/jwks", on_renewal)
