"""Entity tags of tasks and lists (RFC 9110 section 8.8.3), and conditions on them (section 13.1)."""

import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from backend.database import Row

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DIGITS: Final = 24
_OPAQUE: Final = rb'"[\x21\x23-\x7e\x80-\xff]*+"'
# Possessive, because backtracking would make the time for a header of 64 KiB quadratic.
_LIST: Final = re.compile(rb"[ \t,]*+(?:(?:W/)?+%b[ \t]*+(?:,[ \t,]*+|\Z))++" % _OPAQUE)
_TAG: Final = re.compile(rb"(?:W/)?+%b" % _OPAQUE)


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


def is_known(if_none_match: bytes | None, tag: bytes) -> bool:
    """Return whether `If-None-Match` is `*` or names `tag`, by weak comparison."""
    if if_none_match is None:
        return False
    opaque = tag.removeprefix(b"W/")
    return if_none_match == b"*" or any(one.removeprefix(b"W/") == opaque for one in _tags(if_none_match))


def allowed(if_match: bytes | None) -> list[str] | None:
    """Return the tags in `If-Match`, none of a malformed one; None without the header or with `*`."""
    if if_match is None or if_match == b"*":
        return None
    return [tag.decode("latin-1") for tag in _tags(if_match)]


def _tags(header: bytes) -> list[bytes]:
    return _TAG.findall(header) if _LIST.fullmatch(header) else []
