"""Request headers of the task routes. FastAPI's `Header` would validate each one again."""

import re
from typing import Final

from starlette.requests import Request

from backend.web.errors import FieldError, InvalidRequestError

_KEY: Final = re.compile(rb"[\x21-\x7e]{1,255}")
_INVALID_KEY: Final = FieldError(
    field="Idempotency-Key", message="Send 1 to 255 visible ASCII characters", type="idempotency_key_invalid"
)


def read_header(request: Request, name: bytes) -> bytes | None:
    """Return the value of the (lower case) header, its lines joined as RFC 9110 section 5.3 says."""
    found = [value for key, value in request.scope["headers"] if key == name]
    return b", ".join(found).strip(b" \t") if found else None


async def get_idempotency_key(request: Request) -> str | None:
    """Return the `Idempotency-Key` of the request; raises `InvalidRequestError`."""
    sent = read_header(request, b"idempotency-key")
    if sent is not None and not _KEY.fullmatch(sent):
        raise InvalidRequestError([_INVALID_KEY])
    return None if sent is None else sent.decode()
