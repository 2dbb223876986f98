"""Swagger UI and ReDoc, from assets that are served here: no page of ours asks another host for anything."""

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

ASSETS = "/docs/assets"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)
"""What the pages may load: nothing from elsewhere."""
LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
"""What ReDoc would load from elsewhere, and has no option for."""


def _asset_directory() -> Path:
    package = find_spec("fastapi_offline")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "static"


def openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, without the validation answer that FastAPI supposes on every route."""
    document = FastAPI.openapi(app)
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        supposed = operation["responses"].get("422", {})
        if "HTTPValidationError" in json.dumps(supposed):
            del operation["responses"]["422"]
        for answer in (answer for status, answer in operation["responses"].items() if status >= "4"):
            # FastAPI supposes that a route of plain text has errors of plain text.
            content = answer["content"]
            content["application/json"] |= content.pop("text/plain", {})
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


def add_docs(app: FastAPI) -> None:
    """Add `/docs`, `/redoc`, their assets and a truthful OpenAPI document to `app`."""
    app.openapi = partial(openapi, app)  # type: ignore[method-assign]  # as FastAPI's documentation has it

    assets = StaticFiles(directory=_asset_directory())

    @app.get("/openapi.json", include_in_schema=False)
    async def read_openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def swagger_ui(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        # Without persistAuthorization, which keeps the password in the browser's localStorage.
        page = get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title=f"{app.title}: Swagger UI",
            swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS}/favicon.png",
            swagger_ui_parameters={"displayRequestDuration": True},
        )
        page.headers["Content-Security-Policy"] = POLICY
        return page

    @app.get("/redoc", include_in_schema=False)
    async def redoc(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        page = get_redoc_html(
            openapi_url=f"{root}/openapi.json",
            title=f"{app.title}: ReDoc",
            redoc_js_url=f"{root}{ASSETS}/redoc.standalone.js",
            redoc_favicon_url=f"{root}{ASSETS}/favicon.png",
            with_google_fonts=False,
        )
        page.headers["Content-Security-Policy"] = POLICY
        return page

    @app.get(f"{ASSETS}/redoc.standalone.js", include_in_schema=False)
    async def read_redoc() -> Response:
        script = (_asset_directory() / "redoc.standalone.js").read_bytes()
        return Response(script.replace(LOGO, b"data:,"), media_type="text/javascript")

    @app.get(ASSETS + "/{name}", include_in_schema=False)
    async def read_asset(name: str, request: Request) -> Response:
        return await assets.get_response(name, request.scope)
