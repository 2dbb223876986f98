"""Refresh tokens and mail tokens: 256 random bits, stored as their SHA-256 alone.

A refresh token starts with its user's id, because its row is looked up by user first. The id is no secret.
A mail token carries no id, because the link must stay short. Its user is found by the digest.
"""

import hashlib
import re
import secrets

from backend.database import Database, Statement

_TOKEN = re.compile(r"([A-Za-z0-9_-]{0,255})[A-Za-z0-9_-]{43}")
"""The user's id, then 32 bytes in base64url. Tokens issued before migration 0009 have no id."""


def new_token(user_id: str = "") -> str:
    """Return a new token that starts with `user_id`."""
    return user_id + secrets.token_urlsafe(32)


def digest(token: str) -> bytes:
    """Return the SHA-256 of the whole token. Tables store it instead of the token."""
    return hashlib.sha256(token.encode()).digest()


async def find_owner(database: Database, token: str, by_digest: Statement) -> str | None:
    """Return the user's id that `token` carries; None for a malformed token.

    `by_digest` finds the user of a token without an id, and None results if it finds none. A token with an
    id may still be unknown.
    """
    form = _TOKEN.fullmatch(token)
    if form is None or form[1]:
        return form and form[1]
    row = await database.one(by_digest, digest=digest(token))
    return row["user_id"] if row else None
