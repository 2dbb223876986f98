"""Our own tokens: access tokens (RFC 9068) are issued and verified, refresh tokens made and digested.

The algorithm and the key come from our settings alone; nothing in a token's header can choose them.
"""

import hashlib
import hmac
import secrets
from datetime import timedelta
from time import time
from typing import Any, Final
from uuid import UUID

import jwt
from uuid_utils import uuid7

from backend.auth.caller import Caller
from backend.auth.errors import InvalidTokenError
from backend.auth.models import LOCAL
from backend.settings import Settings

ALGORITHM: Final = "HS256"
TYPE: Final = "at+jwt"
MAX_TOKEN_CHARACTERS: Final = 8 * 1024
MAX_SUBJECT_CHARACTERS: Final = 255
LEEWAY: Final = timedelta(seconds=30)
"""For clocks that run ahead of ours (`nbf`, `iat`); an expiry has none."""
MAX_EXPIRY: Final = 2**53
"""Seconds; also keeps out NaN and infinity, which no clock ever passes."""
_ACCESS_TYPES = {TYPE, "jwt"}


class AccessTokens:
    """Issues our access tokens, and tells who sent one."""

    def __init__(self, settings: Settings) -> None:
        assert settings.jwt_secret is not None
        self.lifetime = settings.access_token_minutes * 60
        """Seconds."""
        self._issuer, self._audience = settings.jwt_issuer, settings.jwt_audience
        secret_keys = [
            secret.get_secret_value().encode()
            for secret in (settings.jwt_secret, *settings.jwt_previous_secrets)
        ]
        self._keys = {_key_id(key): key for key in secret_keys}
        self._current = _key_id(secret_keys[0])

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
        """Tell whether a token with this header names a key of ours."""
        return header.get("kid") in self._keys

    def verify(self, token: str, header: dict[str, Any]) -> Caller:
        """Return who sent `token`, expired or not; raises `InvalidTokenError` (contract section 5)."""
        claims = self._decode(token, header.get("kid"))
        return Caller(
            user_id=subject(claims),
            issuer=LOCAL,
            session_id=_session_id(claims.get("sid")),
            expires_at=expiry(claims),
        )

    def _decode(self, token: str, key_id: object) -> dict[str, Any]:
        if key_id is not None and key_id not in self._keys:
            raise InvalidTokenError(reason="unknown_key")
        keys = [self._keys[str(key_id)]] if key_id is not None else list(self._keys.values())
        for key in keys[:-1]:
            try:
                return decode(token, key, ALGORITHM, issuer=self._issuer, audience=self._audience)
            except InvalidTokenError:
                continue
        return decode(token, keys[-1], ALGORITHM, issuer=self._issuer, audience=self._audience)


def read_header(token: str) -> dict[str, Any]:
    """Return the header of an unverified token; raises `InvalidTokenError` if it is no access token."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise InvalidTokenError(reason="too_long")
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
    except jwt.InvalidSignatureError as error:
        raise InvalidTokenError(reason="signature") from error
    except jwt.InvalidAlgorithmError as error:
        raise InvalidTokenError(reason="algorithm") from error
    except jwt.ImmatureSignatureError as error:
        raise InvalidTokenError(reason="not_yet_valid") from error
    except jwt.DecodeError as error:
        raise InvalidTokenError(reason="malformed") from error
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidTokenError(reason="claims") from error


def subject(claims: dict[str, Any]) -> str:
    """Return `sub`: a text of 1 to 255 characters that PostgreSQL can hold."""
    value = claims["sub"]
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_SUBJECT_CHARACTERS or not is_text(value):
        raise InvalidTokenError(reason="claims")
    return value


def is_text(value: str) -> bool:
    """Tell whether PostgreSQL can hold `value`."""
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def expiry(claims: dict[str, Any]) -> float:
    """Return `exp` in seconds since the epoch (RFC 7519 section 4.1.4)."""
    value = claims["exp"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_EXPIRY:
        raise InvalidTokenError(reason="claims")
    return value


def _session_id(value: object) -> UUID:
    try:
        return UUID(value)  # type: ignore[arg-type]  # whatever is no UUID text raises
    except (ValueError, TypeError, AttributeError):
        raise InvalidTokenError(reason="claims") from None


def _key_id(key: bytes) -> str:
    """Name a key without telling anything about it."""
    return hmac.digest(key, b"tasks-api key id", hashlib.sha256).hex()[:16]


def new_refresh_token() -> str:
    """Return a refresh token: 256 random bits."""
    return secrets.token_urlsafe(32)


def digest(refresh_token: str) -> bytes:
    """Return what is stored of a refresh token: its SHA-256."""
    return hashlib.sha256(refresh_token.encode()).digest()
