"""Documents the headers of the task routes for OpenAPI, because FastAPI cannot see them in dependencies."""

from typing import Any, Final

from backend.tasks.schemas import TaskRead


def _parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    schema = {"type": "string", **schema}
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _header(name: str, description: str) -> dict[str, Any]:
    return {name: {"description": description, "schema": {"type": "string"}}}


def _options(parameter: dict[str, Any], responses: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the options of a route that document its request header and its responses by status."""
    return {"openapi_extra": {"parameters": [parameter]}, "responses": responses}


_IF_MATCH: Final = _parameter(
    "If-Match", "Change the task only if its `ETag` is one of these; `*` stands for any (RFC 9110)"
)
_IF_NONE_MATCH: Final = _parameter(
    "If-None-Match", "Answer 304 without a body if the `ETag` is still one of these (RFC 9110)"
)
_KEY: Final = _parameter(
    "Idempotency-Key",
    "A value of your own, a new one for each task. A second request with it creates no second task",
    minLength=1,
    maxLength=255,
    pattern=r"^[\x21-\x7E]+$",
)
_TAG: Final = _header("ETag", "Changes whenever a value of the task changes, and only then")
_PAGE_TAG: Final = _header("ETag", "Changes when anything on the page changes")
_LINK: Final = _header("Link", "The address of the next page, if there is one (RFC 8288)")
_PLACED: Final = _TAG | _header("Location", "The address of the task, relative to this server")
_UNCHANGED: Final = "Not Modified"

CREATE: Final = _options(
    _KEY,
    {
        200: {"model": TaskRead, "description": "The task that this key created", "headers": _PLACED},
        201: {"headers": _PLACED},
    },
)
LIST: Final = _options(
    _IF_NONE_MATCH,
    {200: {"headers": _PAGE_TAG | _LINK}, 304: {"description": _UNCHANGED, "headers": _PAGE_TAG}},
)
READ: Final = _options(
    _IF_NONE_MATCH, {200: {"headers": _TAG}, 304: {"description": _UNCHANGED, "headers": _TAG}}
)
CHANGE: Final = _options(_IF_MATCH, {200: {"headers": _TAG}})
DELETE: Final = _options(_IF_MATCH, {})
