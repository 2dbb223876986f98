"""The JSON response of a route, serialised once by msgspec."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Final

import msgspec
from starlette.responses import Response

_encode: Final = msgspec.json.Encoder().encode
# No text of a user matches, because its quotes are escaped.
_WHOLE_SECOND: Final = re.compile(rb'(_at":"[\dT:-]{19})Z"')


def encode(content: object) -> bytes:
    """Return `content`, made of text, numbers, timestamps in UTC and UUIDs, as JSON.

    A field with a name in `_at` is a timestamp with six digits of a second. msgspec leaves out a fraction
    of 0 (RFC 3339 section 5.6 allows that), but some parsers and sorting by text need it.
    """
    body = _encode(content)
    if isinstance(content, list) and _have_fractions(content):  # because searching a long text is slow
        return body
    return _WHOLE_SECOND.sub(rb'\1.000000Z"', body) if _WHOLE_SECOND.search(body) else body


def _have_fractions(rows: list[Any]) -> bool:
    """Return whether these are structs of which no timestamp is a whole second."""
    if not rows or not isinstance(rows[0], msgspec.Struct):
        return False
    return all(all(map(fraction, rows)) for fraction in _fractions_of(type(rows[0])))


@cache
def _fractions_of(kind: type[msgspec.Struct]) -> list[Callable[[Any], int]]:
    return [attrgetter(f"{name}.microsecond") for name in kind.__struct_fields__ if name.endswith("_at")]


class Answer(Response):
    """A JSON response of rows, as dicts or structs, without a pydantic model between.

    The status is the response's own, as for any response that a FastAPI handler returns.
    """

    media_type = "application/json"

    def __init__(
        self, content: object, status_code: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        # Starlette's constructor is not called, because it encodes and looks up each header.
        self.status_code, self.background = status_code, None
        self.body = encode(content)
        length = (b"content-length", b"%d" % len(self.body))
        self.raw_headers = [length, (b"content-type", b"application/json"), *headers]
