"""Refresh tokens and mail tokens: 256 random bits, stored as their SHA-256 alone.

A refresh token carries the id of its user, which is not secret, because its row is looked up by user first.
The token of a mailed link does not, so that the link stays short: its owner is looked for by the digest.
"""

import hashlib
import re
import secrets

from backend.database import Database, Statement

_TOKEN = re.compile(r"([A-Za-z0-9_-]{0,255})[A-Za-z0-9_-]{43}")
"""The id, then 32 bytes in base64url; tokens that were issued before migration 0009 start with no id."""


def new_token(user_id: str = "") -> str:
    """Return a new token, with the id of its user where there is one."""
    return user_id + secrets.token_urlsafe(32)


def digest(token: str) -> bytes:
    """Return the SHA-256 of the whole token, which is stored in its place."""
    return hashlib.sha256(token.encode()).digest()


async def find_owner(database: Database, token: str, by_digest: Statement) -> str | None:
    """Return the id of the user that `token` is said to be of, None where it can be no token of ours.

    `by_digest` finds the user of one that doesn't say. A token that says so may still be unknown.
    """
    form = _TOKEN.fullmatch(token)
    if form is None or form[1]:
        return form and form[1]
    row = await database.one(by_digest, digest=digest(token))
    return row["user_id"] if row else None
