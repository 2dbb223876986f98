"""Serves the JavaScript client for pages in a browser, and its TypeScript types."""

import hashlib
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

_FILES: Final = Path(__file__).parent
_TYPES: Final = {"tasks-api.js": "text/javascript", "tasks-api.d.ts": "application/typescript"}
_CACHE: Final = "public, max-age=3600"
"""One hour, because the API stays compatible with an older module."""


def add_client(app: FastAPI) -> None:
    """Add `/client/tasks-api.js` and `/client/tasks-api.d.ts` to `app`."""
    for name, media_type in _TYPES.items():
        _add_file(app, name, media_type)


def _add_file(app: FastAPI, name: str, media_type: str) -> None:
    content = (_FILES / name).read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    # Allows pages of other origins that have a Cross-Origin-Embedder-Policy.
    headers = {"ETag": etag, "Cache-Control": _CACHE, "Cross-Origin-Resource-Policy": "cross-origin"}

    @app.get(f"/client/{name}", include_in_schema=False)
    async def read_file(request: Request) -> Response:
        asked = ",".join(request.headers.getlist("if-none-match"))
        # The weak comparison (RFC 9110 section 13.1.2).
        if asked.strip() == "*" or etag in {each.strip().removeprefix("W/") for each in asked.split(",")}:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)
