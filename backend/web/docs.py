"""Serves Swagger UI, ReDoc and their assets, so that the pages load nothing from another host."""

import gzip
import hashlib
from asyncio import to_thread
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from backend.web.errors import NotFoundError
from backend.web.openapi import openapi

ASSETS: Final = "/docs/assets"
POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
"""The Content-Security-Policy of both pages, which forbids other hosts."""
LOGO: Final = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
"""An image on another host, which ReDoc loads and has no option against."""
_MEDIA_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".png": "image/png"}
_FOR_A_YEAR: Final = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}


class Asset(NamedTuple):
    """A file of the pages, compressed by gzip; its name has a digest of the content."""

    name: str
    media_type: str
    compressed: bytes


@cache
def _assets() -> dict[str, Asset]:
    """Return the assets by their plain names; the first call takes long, because it compresses 3 MB."""
    package = find_spec("fastapi_offline")
    assert package is not None
    assert package.origin is not None
    files = (Path(package.origin).parent / "static").iterdir()
    return {file.name: _asset(file) for file in files if file.suffix in _MEDIA_TYPES}


def _asset(file: Path) -> Asset:
    content = file.read_bytes().replace(LOGO, b"data:,")
    version = hashlib.sha256(content).hexdigest()[:16]
    # Without the time, so that all workers have the same bytes.
    compressed = gzip.compress(content, mtime=0)
    return Asset(f"{file.stem}.{version}{file.suffix}", _MEDIA_TYPES[file.suffix], compressed)


def _takes_gzip(accepted: str) -> bool:
    """Return whether an `Accept-Encoding` allows gzip (RFC 9110 section 12.5.3)."""
    weights = {"*": "0"}
    for each in accepted.lower().split(","):
        coding, _, weight = each.partition(";")
        weights[coding.strip()] = weight.strip().removeprefix("q=") or "1"
    return weights.get("gzip", weights["*"]).strip("0.") != ""


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
    assets = await to_thread(_assets)
    # Not persistAuthorization, because it keeps the password in the browser's localStorage.
    page = get_swagger_ui_html(
        openapi_url=f"{_root(request)}/openapi.json",
        title=f"{request.app.title}: Swagger UI",
        swagger_js_url=_url(request, assets["swagger-ui-bundle.js"]),
        swagger_css_url=_url(request, assets["swagger-ui.css"]),
        swagger_favicon_url=_url(request, assets["favicon.png"]),
        swagger_ui_parameters={"displayRequestDuration": True},
    )
    page.headers["Content-Security-Policy"] = POLICY
    return page


async def redoc(request: Request) -> HTMLResponse:
    """Return the page of ReDoc."""
    assets = await to_thread(_assets)
    page = get_redoc_html(
        openapi_url=f"{_root(request)}/openapi.json",
        title=f"{request.app.title}: ReDoc",
        redoc_js_url=_url(request, assets["redoc.standalone.js"]),
        redoc_favicon_url=_url(request, assets["favicon.png"]),
        with_google_fonts=False,
    )
    page.headers["Content-Security-Policy"] = POLICY
    return page


async def read_asset(name: str, request: Request) -> Response:
    """Return an asset by its versioned name, compressed if the client accepts gzip."""
    assets = await to_thread(_assets)
    asset = next((asset for asset in assets.values() if asset.name == name), None)
    if asset is None:
        raise NotFoundError
    if _takes_gzip(",".join(request.headers.getlist("accept-encoding"))):
        headers = {**_FOR_A_YEAR, "Content-Encoding": "gzip"}
        return Response(asset.compressed, headers=headers, media_type=asset.media_type)
    content = await to_thread(gzip.decompress, asset.compressed)
    return Response(content, headers=_FOR_A_YEAR, media_type=asset.media_type)


def _url(request: Request, asset: Asset) -> str:
    return f"{_root(request)}{ASSETS}/{asset.name}"


def _root(request: Request) -> str:
    """Return the path prefix that a proxy strips: ASGI's `root_path`, or an empty string."""
    return str(request.scope.get("root_path", ""))
