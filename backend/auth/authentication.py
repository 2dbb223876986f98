"""From a token to its caller: ours or another issuer's, remembered once verified, introduced if new to us."""

from time import time
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from backend.auth import statements
from backend.auth.caller import Caller
from backend.auth.errors import ExpiredTokenError, InvalidTokenError
from backend.auth.external import ExternalTokens
from backend.auth.models import EXTERNAL
from backend.auth.schemas import MAX_EMAIL_CHARACTERS
from backend.auth.tokens import AccessTokens, is_text, read_header
from backend.database import Database
from backend.settings import Settings
from backend.text import Line

REMEMBERED_TOKENS: Final = 4096
"""Verified tokens kept per process, of at most `REMEMBERED_CHARACTERS` each."""
REMEMBERED_CHARACTERS: Final = 1024
REMEMBERED_USERS: Final = 16_384
"""External users of whom this process knows that they have their row."""

_Value = TypeVar("_Value")
_NAME: TypeAdapter[str] = TypeAdapter(Line)


class Authenticator:
    """Tells who sent a token; what it remembers is the signature's check and nothing else.

    Whether the session and the user still live is part of the statement that does the work, each time.
    """

    def __init__(self, settings: Settings, own: AccessTokens) -> None:
        self._own = own
        self._external = ExternalTokens(settings)
        self._callers: dict[str, Caller] = {}
        self._introduced: dict[str, None] = {}

    async def authenticate(self, database: Database, token: str) -> Caller:
        """Return the caller; raises `InvalidTokenError`, `ExpiredTokenError`, `KeysUnavailableError`."""
        caller = self._callers.get(token)
        if caller is None:
            caller = await self._verify(database, token)
            if len(token) <= REMEMBERED_CHARACTERS:
                _remember(self._callers, token, caller, REMEMBERED_TOKENS)
        elif caller.expires_at <= time():
            del self._callers[token]
            raise ExpiredTokenError(reason="expired")
        return caller

    async def _verify(self, database: Database, token: str) -> Caller:
        header = read_header(token)
        if self._own.may_have_issued(header) or not self._external.takes(header.get("alg")):
            caller = self._own.verify(token, header)
            claims: dict[str, Any] = {}
        else:
            caller, claims = await self._external.verify(token, header)
        if caller.expires_at <= time():
            raise ExpiredTokenError(reason="expired")
        if caller.issuer == EXTERNAL:
            await self._introduce(database, caller, claims)
        return caller

    async def _introduce(self, database: Database, caller: Caller, claims: dict[str, Any]) -> None:
        """Write an external user at their first request; raises `InvalidTokenError` if the id is taken."""
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
    """Keep `value`, and let go of the oldest when there are too many."""
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
