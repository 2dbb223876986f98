"""Serves Swagger UI, ReDoc and their assets, so that the pages load nothing from another host."""

import gzip
from asyncio import to_thread
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from backend.web.errors import NotFoundError
from backend.web.openapi import openapi

ASSETS: Final = "/docs/assets"
_VERSION: Final = version("fastapi-offline")
"""The beginning of each asset's name, which therefore changes with the assets."""
POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
"""The Content-Security-Policy of both pages, which forbids other hosts."""
LOGO: Final = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
"""An image on another host, which ReDoc loads and has no option against."""
_MEDIA_TYPES: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
    "favicon.png": "image/png",
}
_FOR_A_YEAR: Final = {"Cache-Control": "public, max-age=31536000, immutable", "Content-Encoding": "gzip"}


@cache
def _compressed(file: str) -> bytes:
    """Return a file of the pages, compressed by gzip, which every browser accepts."""
    package = find_spec("fastapi_offline")
    assert package is not None
    assert package.origin is not None
    content = (Path(package.origin).parent / "static" / file).read_bytes()
    return gzip.compress(content.replace(LOGO, b"data:,"))


def add_docs(app: FastAPI) -> None:
    """Add `/docs`, `/redoc`, their assets and the OpenAPI document to `app`; `/` leads to `/docs`."""
    app.openapi = partial(openapi, app)  # type: ignore[method-assign]  # as FastAPI's documentation has it
    app.get("/", include_in_schema=False)(lead_to_docs)
    app.get("/openapi.json", include_in_schema=False)(read_openapi)
    app.get("/docs", include_in_schema=False)(swagger_ui)
    app.get("/redoc", include_in_schema=False)(redoc)
    app.get(ASSETS + "/{name}", include_in_schema=False)(read_asset)


async def lead_to_docs(request: Request) -> RedirectResponse:
    """Redirect to `/docs`."""
    return RedirectResponse(f"{_root(request)}/docs")


async def read_openapi(request: Request) -> JSONResponse:
    """Return the OpenAPI document; its server is the prefix of `ROOT_PATH`."""
    return JSONResponse(request.app.openapi() | {"servers": [{"url": _root(request) or "/"}]})


async def swagger_ui(request: Request) -> HTMLResponse:
    """Return the page of Swagger UI."""
    # Not persistAuthorization, because it keeps the password in the browser's localStorage.
    page = get_swagger_ui_html(
        openapi_url=f"{_root(request)}/openapi.json",
        title=f"{request.app.title}: Swagger UI",
        swagger_js_url=_asset(request, "swagger-ui-bundle.js"),
        swagger_css_url=_asset(request, "swagger-ui.css"),
        swagger_favicon_url=_asset(request, "favicon.png"),
        swagger_ui_parameters={"displayRequestDuration": True},
    )
    page.headers["Content-Security-Policy"] = POLICY
    return page


async def redoc(request: Request) -> HTMLResponse:
    """Return the page of ReDoc."""
    page = get_redoc_html(
        openapi_url=f"{_root(request)}/openapi.json",
        title=f"{request.app.title}: ReDoc",
        redoc_js_url=_asset(request, "redoc.standalone.js"),
        redoc_favicon_url=_asset(request, "favicon.png"),
        with_google_fonts=False,
    )
    page.headers["Content-Security-Policy"] = POLICY
    return page


async def read_asset(name: str) -> Response:
    """Return an asset, compressed; raises `NotFoundError`."""
    version_of_page, _, file = name.partition("-")
    if version_of_page != _VERSION or file not in _MEDIA_TYPES:
        raise NotFoundError
    content = await to_thread(_compressed, file)
    return Response(content, headers=_FOR_A_YEAR, media_type=_MEDIA_TYPES[file])


def _asset(request: Request, file: str) -> str:
    return f"{_root(request)}{ASSETS}/{_VERSION}-{file}"


def _root(request: Request) -> str:
    """Return the path prefix that a proxy strips: ASGI's `root_path`, or an empty string."""
    return str(request.scope.get("root_path", ""))
