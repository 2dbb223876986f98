"""The JSON answer of a route, written once."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Final

import msgspec
from starlette.responses import Response

_encode: Final = msgspec.json.Encoder().encode
# Text can't look like one: its quotes are escaped.
_WHOLE_SECOND: Final = re.compile(rb'(_at":"[\dT:-]{19})Z"')


def encode(content: object) -> bytes:
    """Return `content` as JSON; it may hold what rows hold: text, numbers, timestamps in UTC and UUIDs.

    A timestamp, in a field that ends in `_at`, has six digits of a second. msgspec leaves out a fraction
    of 0, as RFC 3339 section 5.6 allows, but text sorts and some parsers need it.
    """
    body = _encode(content)
    if isinstance(content, list) and _have_fractions(content):  # a long text takes long to search
        return body
    return _WHOLE_SECOND.sub(rb'\1.000000Z"', body) if _WHOLE_SECOND.search(body) else body


def _have_fractions(rows: list[Any]) -> bool:
    """Tell whether these are structs, whose moments are never null, and none of them is a whole second."""
    if not rows or not isinstance(rows[0], msgspec.Struct):
        return False
    return all(all(map(fraction, rows)) for fraction in _fractions_of(type(rows[0])))


@cache
def _fractions_of(kind: type[msgspec.Struct]) -> list[Callable[[Any], int]]:
    return [attrgetter(f"{name}.microsecond") for name in kind.__struct_fields__ if name.endswith("_at")]


class Answer(Response):
    """A response whose content is JSON: a row as a dict or a struct, or a list of them, needs no model.

    As with any response that a FastAPI handler returns, the status is the response's own.
    """

    media_type = "application/json"

    def __init__(
        self, content: object, status_code: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        # Starlette's own constructor would encode and look up each header.
        self.status_code, self.background = status_code, None
        self.body = encode(content)
        length = (b"content-length", b"%d" % len(self.body))
        self.raw_headers = [length, (b"content-type", b"application/json"), *headers]
