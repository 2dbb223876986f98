"""Issues and verifies access tokens (RFC 9068).

The algorithm and the key come from the settings alone: a token's header chooses neither.
"""

import hashlib
import hmac
import re
from datetime import timedelta
from time import time
from typing import Any, Final
from uuid import UUID

import jwt
from uuid_utils import uuid7

from backend.auth.caller import Caller
from backend.auth.models import LOCAL
from backend.settings import Settings
from backend.web.bearer import InvalidTokenError

ALGORITHM: Final = "HS256"
TYPE: Final = "at+jwt"
MAX_TOKEN_CHARACTERS: Final = 8 * 1024
MAX_SUBJECT_CHARACTERS: Final = 255
LEEWAY: Final = timedelta(seconds=30)
"""Tolerance for an issuer's clock that runs ahead (`nbf`, `iat`); `exp` has none."""
MAX_EXPIRY: Final = 2**53
"""Seconds since the epoch; the bound also refuses NaN and infinity."""
Verified = tuple[Caller, dict[str, Any]]
"""The caller and the claims of a verified token."""
_ACCESS_TYPES = {TYPE, "jwt"}
_REASONS: Final = {
    jwt.InvalidSignatureError: "signature",
    jwt.InvalidAlgorithmError: "algorithm",
    jwt.ImmatureSignatureError: "not_yet_valid",
    jwt.DecodeError: "malformed",  # last, because the first is a kind of it
}
"""The reason that the log gives for each error of PyJWT."""
# Base64url without padding, whose unused last bits are zero: PyJWT takes padding too (RFC 7515 section 2).
_BASE64URL = "(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-][AQgw]|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048])?"
_SPELLING = re.compile(rf"{_BASE64URL}\.{_BASE64URL}\.{_BASE64URL}")


class AccessTokens:
    """Issues and verifies this service's own access tokens."""

    def __init__(self, settings: Settings) -> None:
        self.lifetime = settings.access_token_minutes * 60
        """Seconds."""
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience
        self._keys = {_key_id(key): key for key in settings.signing_keys}
        self._current = next(iter(self._keys))

    def issue(self, user_id: str, session_id: UUID) -> str:
        """Return a new access token for a session."""
        now = int(time())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": user_id,
            "sid": str(session_id),
            "iat": now,
            "exp": now + self.lifetime,
            "jti": uuid7().hex,
        }
        headers = {"typ": TYPE, "kid": self._current}
        return jwt.encode(claims, self._keys[self._current], ALGORITHM, headers=headers)

    def may_have_issued(self, header: dict[str, Any]) -> bool:
        """Return whether the header's `kid` is one of this service's own keys."""
        return header.get("kid") in self._keys

    def verify(self, token: str, header: dict[str, Any]) -> Verified:
        """Return what `token` says, expired or not; raises `InvalidTokenError`."""
        claims = self._decode(token, header.get("kid"))
        return Caller(subject(claims), LOCAL, _session_id(claims.get("sid"))), claims

    def _decode(self, token: str, key_id: object) -> dict[str, Any]:
        """Return the claims; a token without a `kid` is tried with each key."""
        keys = [key for name, key in self._keys.items() if key_id in {name, None}]
        refusal = InvalidTokenError(reason="unknown_key")
        for key in keys:
            try:
                return decode(token, key, ALGORITHM, issuer=self._issuer, audience=self._audience)
            except InvalidTokenError as error:
                refusal = error
        raise refusal


def read_header(token: str) -> dict[str, Any]:
    """Return the header of an unverified token; raises `InvalidTokenError` if it is no access token.

    Any other spelling of the same token, such as one with padding, is refused too.
    """
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise InvalidTokenError(reason="too_long")
    if not _SPELLING.fullmatch(token):
        raise InvalidTokenError(reason="malformed")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise InvalidTokenError(reason="malformed") from error
    kind = header.get("typ", TYPE)
    if not isinstance(kind, str) or kind.lower() not in _ACCESS_TYPES:
        raise InvalidTokenError(reason="type")
    return header


def decode(
    token: str, key: Any, algorithm: str, *, issuer: str | None, audience: str | None
) -> dict[str, Any]:
    """Return the claims of a token that `key` signed with `algorithm`; raises `InvalidTokenError`."""
    try:
        return jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=issuer,
            audience=audience,
            leeway=LEEWAY,
            options={"require": ["exp", "sub"], "verify_exp": False, "verify_aud": audience is not None},
        )
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), "claims")
        raise InvalidTokenError(reason=reason) from error


def subject(claims: dict[str, Any]) -> str:
    """Return `sub`, 1 to 255 characters that PostgreSQL can store; raises `InvalidTokenError`."""
    value = claims["sub"]
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_SUBJECT_CHARACTERS or not is_text(value):
        raise InvalidTokenError(reason="claims")
    return value


def is_text(value: str) -> bool:
    """Return whether PostgreSQL can store `value`."""
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def expiry(claims: dict[str, Any]) -> float:
    """Return `exp` in seconds since the epoch (RFC 7519 section 4.1.4); raises `InvalidTokenError`."""
    value = claims["exp"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_EXPIRY:
        raise InvalidTokenError(reason="claims")
    return value


def _session_id(value: object) -> UUID:
    try:
        return UUID(value)  # type: ignore[arg-type]  # any value but the text of a UUID raises
    except (ValueError, TypeError, AttributeError):
        raise InvalidTokenError(reason="claims") from None


def _key_id(key: bytes) -> str:
    """Return a key's `kid`: an HMAC, because a plain hash would let likely secrets be tried against it."""
    return hmac.digest(key, b"tasks-api key id", hashlib.sha256).hex()[:16]
