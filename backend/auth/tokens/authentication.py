"""Returns the caller of an access token of any trusted issuer; caches verified tokens."""

from time import time
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from backend.auth.accounts import statements
from backend.auth.caller import Caller
from backend.auth.errors import ExpiredTokenError
from backend.auth.models import EXTERNAL
from backend.auth.schemas import MAX_EMAIL_CHARACTERS
from backend.auth.tokens.access import AccessTokens, expiry, is_text, read_header
from backend.auth.tokens.external import ExternalTokens
from backend.database import Database
from backend.settings import Settings
from backend.web.bearer import InvalidTokenError
from backend.web.text import Line

REMEMBERED_TOKENS: Final = 4096
"""Verified tokens kept per process, of at most `REMEMBERED_CHARACTERS` each."""
REMEMBERED_CHARACTERS: Final = 1024
REMEMBERED_SECONDS: Final = 60.0
"""The longest time until an external token is verified anew, so that stale keys are noticed."""
REMEMBERED_USERS: Final = 16_384
"""Ids of external users kept per process, whose row in `users` is known to exist."""

_Value = TypeVar("_Value")
_NAME: TypeAdapter[str] = TypeAdapter(Line)


class Authenticator:
    """Authenticates callers by their access tokens.

    The cache saves only the check of the signature: each statement checks the session and the user anew.
    """

    def __init__(self, settings: Settings, own: AccessTokens) -> None:
        self._own = own
        self._external = ExternalTokens(settings, on_renewal=self._forget)
        self._verified: dict[str, tuple[Caller, float]] = {}
        """Callers by token, each with the end of its time in the cache, in seconds since the epoch."""
        self._introduced: dict[str, None] = {}

    async def authenticate(self, database: Database, token: str) -> Caller:
        """Return the caller; raises `InvalidTokenError`, `ExpiredTokenError`, `KeysUnavailableError`."""
        verified = self._verified.get(token)
        if verified is None or verified[1] <= time():
            return await self._verify(database, token)
        return verified[0]

    def _forget(self) -> None:
        """Empty the cache. A new dict takes its place, because checks under way still add to the old one."""
        self._verified = {}

    async def _verify(self, database: Database, token: str) -> Caller:
        """Return the caller of a token that is not in the cache, and add it there."""
        cache = self._verified
        header = read_header(token)
        verified = None if self._own.may_have_issued(header) else await self._external.verify(token, header)
        caller, claims = verified or self._own.verify(token, header)
        now, until = time(), expiry(claims)
        if until <= now:
            raise ExpiredTokenError(reason="expired")
        if caller.issuer == EXTERNAL:
            await self._introduce(database, caller, claims)
            until = min(until, now + REMEMBERED_SECONDS)
        if len(token) <= REMEMBERED_CHARACTERS:
            _remember(cache, token, (caller, until), REMEMBERED_TOKENS)
        return caller

    async def _introduce(self, database: Database, caller: Caller, claims: dict[str, Any]) -> None:
        """Insert an external user at the first request; raises `InvalidTokenError` if the id is taken."""
        if caller.user_id in self._introduced:
            return
        user = await database.one(
            statements.INTRODUCE_USER,
            user_id=caller.user_id,
            issuer=caller.issuer,
            email=_email(claims.get("email")),
            name=_name(claims.get("name")),
        )
        if user is None:
            raise InvalidTokenError(reason="other_issuer")
        _remember(self._introduced, caller.user_id, None, REMEMBERED_USERS)


def _remember(memory: dict[str, _Value], key: str, value: _Value, most: int) -> None:
    """Add `value`; drop the oldest entry if there are `most` already."""
    if len(memory) >= most:
        del memory[next(iter(memory))]
    memory[key] = value


def _email(value: object) -> str | None:
    is_usable = isinstance(value, str) and is_text(value) and len(value) <= MAX_EMAIL_CHARACTERS
    return str(value) if is_usable else None


def _name(value: object) -> str | None:
    try:
        return _NAME.validate_python(value, strict=True)
    except ValidationError:
        return None
