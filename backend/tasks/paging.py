"""Key-set paging: the sort keys of a list, and opaque cursors signed for one user, sort and order."""

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
from backend.tasks.schemas import Sort, TaskQuery
from backend.web.errors import FieldError, InvalidRequestError

_SIGNATURE_LETTERS = 32
_INVALID = FieldError(field="cursor", message="This cursor is not for this list", type="cursor_invalid")


class SortKey(NamedTuple):
    """A sort key: its column, its value in a row, and the conversion of the value's text back to it."""

    column: str
    of_row: Callable[[Row], Any]
    read: Callable[[str], Any]


SORT_KEYS: dict[Sort, SortKey] = {
    "created": SortKey("created_at", itemgetter("created_at"), datetime.fromisoformat),
    "title": SortKey("title_key", lambda row: row["title"].casefold(), str),
}
assert set(SORT_KEYS) == set(get_args(Sort)), "each value of `sort` has its key"


class Position(NamedTuple):
    """The sort key, a value of the `SortKey`'s column, and the id of the last task of a page."""

    key: Any
    id: int


class Cursors:
    """Issues and reads cursors, which `JWT_SECRET` signs; those of `JWT_PREVIOUS_SECRETS` stay valid."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [
            hashlib.blake2b(key, person=b"tasks-api cursor").digest() for key in settings.signing_keys
        ]

    def issue(self, user_id: str, query: TaskQuery, position: Position) -> str:
        """Return the cursor of the page after `position`."""
        text = f"{position.id} {position.key}"
        payload = base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()
        return _signature(self._keys[0], user_id, query, payload) + payload

    def read(self, user_id: str, query: TaskQuery, cursor: str) -> Position:
        """Return the position that `cursor` holds; raises `InvalidRequestError`."""
        sent, payload = cursor[:_SIGNATURE_LETTERS].encode(), cursor[_SIGNATURE_LETTERS:]
        ours = (_signature(key, user_id, query, payload).encode() for key in self._keys)
        if not any(hmac.compare_digest(sent, one) for one in ours):
            raise InvalidRequestError([_INVALID])
        task_id, _, key = base64.urlsafe_b64decode(f"{payload}==").decode().partition(" ")
        return Position(SORT_KEYS[query.sort].read(key), int(task_id))


def _signature(key: bytes, user_id: str, query: TaskQuery, payload: str) -> str:
    signed = f"{query.sort} {query.order} {user_id}\0{payload}".encode()
    return hashlib.blake2b(signed, key=key, digest_size=_SIGNATURE_LETTERS // 2).hexdigest()


def next_link(path: bytes, query: TaskQuery, cursor: str) -> bytes:
    """Return the `Link` to the next page (RFC 8288), relative to this server (RFC 3986 section 4.2)."""
    asked: dict[str, Any] = query.model_dump(include=query.model_fields_set) | {"cursor": cursor}
    return b'<%s?%s>; rel="next"' % (path, urlencode(asked).encode())
