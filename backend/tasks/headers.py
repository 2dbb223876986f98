"""Headers of the task routes: entity tags, conditions on them and `Idempotency-Key`.

Entity tags are those of RFC 9110 section 8.8.3, conditions those of section 13.1. FastAPI's `Header` would
validate each header again.
"""

import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from starlette.requests import Request

from backend.database import Row
from backend.web.errors import FieldError, InvalidRequestError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DIGITS: Final = 24
_OPAQUE: Final = rb'"[\x21\x23-\x7e\x80-\xff]*+"'
# Possessive, because backtracking would make the time for a header of 64 KiB quadratic.
_LIST: Final = re.compile(rb"[ \t,]*+(?:(?:W/)?+%b[ \t]*+(?:,[ \t,]*+|\Z))++" % _OPAQUE)
_TAG: Final = re.compile(rb"(?:W/)?+%b" % _OPAQUE)
_KEY: Final = re.compile(rb"[\x21-\x7e]{1,255}")
_INVALID_KEY: Final = FieldError(
    field="Idempotency-Key", message="Send 1 to 255 visible ASCII characters", type="idempotency_key_invalid"
)


def tag_of(task: Row | dict[str, Any]) -> bytes:
    """Return the strong entity tag of a task, which changes when `updated_at` does.

    `statements` has the same in SQL.
    """
    return b'"%d-%x"' % (task["id"], (task["updated_at"] - _EPOCH) // _MICROSECOND)


def tag_of_page(body: bytes, query: bytes, link: bytes | None) -> bytes:
    """Return the weak entity tag of a page, made from its body, its query and its `Link`."""
    digest = sha256(body)
    digest.update(b"%b\0%b" % (query, link or b""))
    return b'W/"%b"' % digest.hexdigest()[:_DIGITS].encode()


def is_known(request: Request, tag: bytes) -> bool:
    """Return whether `If-None-Match` is `*` or names `tag`, by weak comparison."""
    sent = _read(request, b"if-none-match")
    if sent is None:
        return False
    opaque = tag.removeprefix(b"W/")
    return sent == b"*" or any(one.removeprefix(b"W/") == opaque for one in _tags(sent))


def allowed_tags(request: Request) -> list[str] | None:
    """Return the tags in `If-Match`, none of a malformed one; None without the header or with `*`."""
    sent = _read(request, b"if-match")
    if sent is None or sent == b"*":
        return None
    return [tag.decode("latin-1") for tag in _tags(sent)]


async def get_idempotency_key(request: Request) -> str | None:
    """Return the `Idempotency-Key` of the request; raises `InvalidRequestError`."""
    sent = _read(request, b"idempotency-key")
    if sent is not None and not _KEY.fullmatch(sent):
        raise InvalidRequestError([_INVALID_KEY])
    return None if sent is None else sent.decode()


def _read(request: Request, name: bytes) -> bytes | None:
    """Return the value of the (lower case) header, its lines joined as RFC 9110 section 5.3 says."""
    found = [value for key, value in request.scope["headers"] if key == name]
    return b", ".join(found).strip(b" \t") if found else None


def _tags(header: bytes) -> list[bytes]:
    return _TAG.findall(header) if _LIST.fullmatch(header) else []
