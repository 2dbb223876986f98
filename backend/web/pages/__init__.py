"""Serves the pages that mailed links lead to.

A page acts only when its button is pressed, because mail scanners open links.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

if TYPE_CHECKING:
    from jinja2 import Template

POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy, which allows the page's own style sheet, script and requests alone."""

_FILES: Final = Path(__file__).parent
_ASSETS: Final = {"page.css": "text/css", "page.js": "text/javascript"}


@dataclass(frozen=True, slots=True)
class Page:
    """The text of a page, the route that its button calls, and whether it asks for a new password."""

    title: str
    intro: str
    button: str
    action: str
    done: str
    asks_password: bool = False


PAGES: Final = {
    "/reset-password": Page(
        "Reset your password",
        "Choose a new password for your account. All devices that are signed in will be signed out.",
        "Save the new password",
        "/auth/password/reset",
        "Your password is changed. You can sign in with it now.",
        asks_password=True,
    ),
    "/verify-email": Page(
        "Verify your email",
        "Press the button to verify that this is your email.",
        "Verify this email",
        "/auth/email/verify",
        "Your email is verified. You can close this page.",
    ),
    "/confirm-email": Page(
        "Confirm your new email",
        "Press the button to use this email for your account. Other devices will be signed out.",
        "Confirm this email",
        "/auth/email/confirm",
        "Your email is changed. Sign in with the new one from now on.",
    ),
}


@cache
def _template() -> "Template":
    # Imported for the first page, because Jinja takes megabytes of memory.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape  # noqa: PLC0415

    environment = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html")


def add_pages(app: FastAPI) -> None:
    """Add the pages and their two assets to `app`."""
    min_length: int = app.state.settings.password_min_length

    def add_page(path: str, page: Page) -> None:
        @app.get(path, include_in_schema=False)
        async def read_page(request: Request) -> Response:
            root = request.scope.get("root_path", "")
            html = _template().render(page=page, root=root, min_length=min_length)
            return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})

    def add_asset(name: str, media_type: str) -> None:
        content = (_FILES / name).read_bytes()

        @app.get(f"/pages/{name}", include_in_schema=False)
        async def read_asset() -> Response:
            return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    for path, page in PAGES.items():
        add_page(path, page)
    for name, media_type in _ASSETS.items():
        add_asset(name, media_type)
