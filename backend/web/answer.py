"""The JSON answer of a route, written once."""

from collections.abc import Sequence
from typing import Final

import msgspec
from starlette.responses import Response

from backend.web.timestamps import with_fractions

_encode: Final = msgspec.json.Encoder().encode


def encode(content: object) -> bytes:
    """Return `content` as JSON; it may hold what rows hold: text, numbers, timestamps in UTC and UUIDs."""
    return _encode(with_fractions(content))


class Answer(Response):
    """A response whose content is JSON: a row as a dict, or a list of them, needs no model to be written.

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
