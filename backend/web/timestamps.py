"""Timestamps in answers always have six digits of a second, because text sorts and some parsers need them.

msgspec leaves out a fraction of 0, as RFC 3339 section 5.6 allows. One timestamp in a million has none.
"""

from datetime import datetime
from typing import Any


def with_fractions(content: Any) -> Any:
    """Return `content` for the JSON encoder, with each datetime written out whose fraction is 0.

    Of a list, each row has the fields of the first. Datetimes are those of fields that end in `_at`, in UTC.
    """
    if isinstance(content, list):
        names = [name for name in (content[0] if content else ()) if name.endswith("_at")]
        if any(_is_whole_somewhere(content, name) for name in names):
            return [with_fractions(row) for row in content]
        return content
    if isinstance(content, dict):
        changed = {name: _written(value) for name, value in content.items() if _may_change(value)}
        return {**content, **changed} if changed else content
    return content


def _may_change(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, datetime) and not value.microsecond)


def _is_whole_somewhere(rows: list[dict[str, Any]], name: str) -> bool:
    # A list of plain values is several times as fast as a generator that asks each for its type.
    return any([(moment := row[name]) is not None and not moment.microsecond for row in rows])  # noqa: C419  # above


def _written(value: Any) -> Any:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%S}.000000Z"
    return with_fractions(value)
