"""Reads a request's body: at most 64 KiB, of the media type of the route, and strict JSON (RFC 8259)."""

import json
import math
from collections.abc import AsyncGenerator
from typing import Any, Final
from urllib.parse import parse_qsl

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import FormData
from starlette.requests import Request

from backend.web import errors
from backend.web.middleware import CUT_SHORT, MAX_BODY_BYTES

FORM: Final = "application/x-www-form-urlencoded"
_MAX_FORM_FIELDS = 20


class BoundedRequest(Request):
    """Starlette's request with a limit on the body and a strict JSON parser."""

    async def body(self) -> bytes:
        """Return the body; raises `ContentTooLargeError`, or the error of an incomplete body."""
        if not hasattr(self, "_body"):
            self._body = await self._read()
        return self._body

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body, in one piece; raises as `body` does."""
        yield await self.body()
        yield b""

    async def _read(self) -> bytes:
        body, is_whole = bytearray(), False
        while not is_whole:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise errors.IncompleteBodyError
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                raise errors.ContentTooLargeError
            is_whole = not message.get("more_body")
        if error := self.scope.get("state", {}).get(CUT_SHORT):
            raise error
        return bytes(body)

    async def json(self) -> Any:
        """Return the parsed body; raises `MalformedJSONError`."""
        try:
            # The parser refuses a byte order mark, which RFC 8259 section 8.1 allows.
            return _decode((await self.body()).decode())
        except (ValueError, RecursionError):
            raise errors.MalformedJSONError from None

    def content_type(self) -> str:
        """Return the media type of the body in lower case, without parameters."""
        sent = next((value for name, value in self.scope["headers"] if name == b"content-type"), b"")
        return sent.decode("latin-1").partition(";")[0].strip().lower()


async def read_json(request: BoundedRequest) -> bytes:
    """Return the body, which is strict JSON or empty.

    Raises `UnsupportedMediaTypeError` and `MalformedJSONError`.
    """
    body = await request.body()
    if body:
        kind = request.content_type()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            raise errors.UnsupportedMediaTypeError
        await request.json()
    return body


async def read_form(request: BoundedRequest) -> FormData:
    """Return the fields of a form.

    Raises `NotFormError`, and `RequestValidationError` where a field is sent twice
    (RFC 6749 section 3.2) or the text is not UTF-8.
    """
    body = await request.body()
    if body and request.content_type() != FORM:
        raise errors.NotFormError
    try:
        fields = parse_qsl(
            body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FORM_FIELDS
        )
    except ValueError:
        raise RequestValidationError([_BAD_FORM]) from None
    if len({name for name, _ in fields}) != len(fields):
        raise RequestValidationError([_BAD_FORM])
    return FormData(dict(fields))


_BAD_FORM = {"loc": ("body",), "msg": "Each form field is UTF-8 and sent once", "type": "form_invalid"}


def _finite(text: str) -> float:
    """Return a number; raises `ValueError` for NaN, Infinity, and what is too large for a double."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no JSON number")
    return number


_decode = json.JSONDecoder(parse_constant=_finite, parse_float=_finite).decode
