"""Key-set paging: what a list is ordered by, and opaque cursors signed for one user, sort and order."""

import base64
import hashlib
import hmac
from collections.abc import Callable
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple, get_args
from urllib.parse import urlencode

from backend.database import Row
from backend.settings import Settings
from backend.tasks.errors import InvalidCursorError
from backend.tasks.schemas import Sort, TaskQuery

_TAG_BYTES = 16


class SortKey(NamedTuple):
    """A key that a list can be ordered by: its column, its value in a row, and that as text and back."""

    column: str
    of_row: Callable[[Row], Any]
    write: Callable[[Any], str]
    read: Callable[[str], Any]


SORT_KEYS: dict[Sort, SortKey] = {
    "created": SortKey("created_at", itemgetter("created_at"), datetime.isoformat, datetime.fromisoformat),
    "title": SortKey("title_key", lambda row: row["title"].casefold(), str, str),
}
assert set(SORT_KEYS) == set(get_args(Sort)), "each value of `sort` has its key"


class Position(NamedTuple):
    """The sort key, a value of the `SortKey`'s column, and the id of the last task of a page."""

    key: Any
    id: int


class Cursors:
    """Issues and reads cursors; they outlive a rotation of the secret as tokens do."""

    def __init__(self, settings: Settings) -> None:
        assert settings.jwt_secret is not None
        known = (settings.jwt_secret, *settings.jwt_previous_secrets)
        self._keys = [
            hashlib.blake2b(secret.get_secret_value().encode(), person=b"tasks-api cursor").digest()
            for secret in known
        ]

    def issue(self, user_id: str, query: TaskQuery, position: Position) -> str:
        """Return the cursor that goes on after `position`."""
        payload = f"{position.id} {SORT_KEYS[query.sort].write(position.key)}".encode()
        return _encode(_tag(self._keys[0], user_id, query, payload) + payload)

    def read(self, user_id: str, query: TaskQuery, cursor: str) -> Position:
        """Return where `cursor` goes on; raises `InvalidCursorError`."""
        try:
            signed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raise InvalidCursorError from None
        if _encode(signed) != cursor:  # base64 has bits to spare: each cursor has one spelling
            raise InvalidCursorError
        tag, payload = signed[:_TAG_BYTES], signed[_TAG_BYTES:]
        if not any(hmac.compare_digest(tag, _tag(key, user_id, query, payload)) for key in self._keys):
            raise InvalidCursorError
        task_id, _, key = payload.decode().partition(" ")
        return Position(SORT_KEYS[query.sort].read(key), int(task_id))


def _encode(signed: bytes) -> str:
    return base64.urlsafe_b64encode(signed).rstrip(b"=").decode()


def _tag(key: bytes, user_id: str, query: TaskQuery, payload: bytes) -> bytes:
    signed = f"{query.sort} {query.order} {user_id}\0".encode() + payload
    return hashlib.blake2b(signed, key=key, digest_size=_TAG_BYTES).digest()


def next_link(path: bytes, query: TaskQuery, cursor: str) -> bytes:
    """Return the `Link` to the next page (RFC 8288), relative to this server (RFC 3986 section 4.2)."""
    asked: dict[str, Any] = query.model_dump(include=query.model_fields_set) | {"cursor": cursor}
    return b'<%s?%s>; rel="next"' % (path, urlencode(asked).encode())
