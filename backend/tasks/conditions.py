"""Entity tags of tasks and lists (RFC 9110 section 8.8.3), and conditions on them (section 13.1)."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from backend.database import Row

Moments = Sequence[str] | None
"""The values of `updated_at`, in ISO 8601, that an `If-Match` allows; None without the header or with `*`."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DIGITS: Final = 24
_OPAQUE: Final = rb'"[\x21\x23-\x7e\x80-\xff]*+"'
# Possessive, because backtracking would make the time for a header of 64 KiB quadratic.
_LIST: Final = re.compile(rb"[ \t,]*+(?:(?:W/)?+%b[ \t]*+(?:,[ \t,]*+|\Z))++" % _OPAQUE)
_TAG: Final = re.compile(rb"(?:W/)?+%b" % _OPAQUE)
# At most 14 digits, because the year of a longer number does not fit a `datetime`.
_OF_TASK: Final = re.compile(rb'"([1-9][0-9]*)-([0-9a-f]{1,14})"')


def tag_of(task: Row | dict[str, Any]) -> bytes:
    """Return the strong entity tag of a task, which changes when `updated_at` does."""
    return _spelled(task["id"], task["updated_at"])


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


def allowed(if_match: bytes | None, task_id: int) -> Moments:
    """Return the moments in the tags of this task, by strong comparison; a malformed header allows none."""
    if if_match is None or if_match == b"*":
        return None
    found = [one for tag in _tags(if_match) if (one := _OF_TASK.fullmatch(tag))]
    moments = [_EPOCH + timedelta(microseconds=int(one[2], 16)) for one in found]
    # A tag of another task does not match, nor does one with leading zeros.
    return [
        moment.isoformat()
        for one, moment in zip(found, moments, strict=True)
        if one[0] == _spelled(task_id, moment)
    ]


def _spelled(task_id: int, moment: datetime) -> bytes:
    return b'"%d-%x"' % (task_id, (moment - _EPOCH) // _MICROSECOND)


def _tags(header: bytes) -> list[bytes]:
    return _TAG.findall(header) if _LIST.fullmatch(header) else []
