"""Makes access tokens for tests: by the secret shared with a front end, or as altered copies of ours."""

import time
from typing import Any

import jwt

from tests.service import JWT_SECRET

SHARED_SECRET = "a secret that the front end shares with us"


def claims_for(sub: object, **claims: Any) -> dict[str, Any]:
    """Return claims that live for ten minutes; one that is given as None is left out."""
    every = {"sub": sub, "exp": int(time.time()) + 600, **claims}
    return {name: value for name, value in every.items() if value is not None}


def shared_token(
    sub: object, *, secret: str = SHARED_SECRET, headers: dict[str, Any] | None = None, **claims: Any
) -> str:
    """Return a token as a front end's own code signs it."""
    return jwt.encode(claims_for(sub, **claims), secret, "HS256", headers=headers)


def resigned(
    token: str, *, secret: str = JWT_SECRET, headers: dict[str, Any] | None = None, **claims: Any
) -> str:
    """Return a token of ours with other claims or headers, by default signed as ours are."""
    read = jwt.decode_complete(token, options={"verify_signature": False})
    return jwt.encode(read["payload"] | claims, secret, "HS256", headers=read["header"] | (headers or {}))
