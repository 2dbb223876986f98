"""Refresh tokens and mail tokens: 256 random bits, stored as their SHA-256 alone.

A refresh token starts with its user's id, because its row is looked up by user first. The id is no secret.
A mail token carries no id, because the link must stay short. Its user is found by the digest.
"""

import hashlib
import re
import secrets

_TOKEN = re.compile(r"([A-Za-z0-9_-]{0,255})[A-Za-z0-9_-]{43}")
"""The user's id, then 32 bytes in base64url. Tokens issued before migration 0009 have no id."""


def new_token(user_id: str = "") -> str:
    """Return a new token that starts with `user_id`."""
    return user_id + secrets.token_urlsafe(32)


def digest(token: str) -> bytes:
    """Return the SHA-256 of the whole token. Tables store it instead of the token."""
    return hashlib.sha256(token.encode()).digest()


def owner_of(token: str) -> str | None:
    """Return the user's id that `token` carries, "" if it carries none; None for a malformed token."""
    form = _TOKEN.fullmatch(token)
    return form and form[1]
