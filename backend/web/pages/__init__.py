"""Serves the pages that mailed links lead to.

A page acts only when its button is pressed, because mail scanners open links.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Final

from fastapi import FastAPI
from starlette.responses import Response

POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy, which allows the page's own style sheet, script and requests alone."""

_FILES: Final = Path(__file__).parent
_ASSETS: Final = {"page.css": "text/css", "page.js": "text/javascript"}


def _read(name: str) -> str:
    return (_FILES / name).read_text()


@dataclass(frozen=True, slots=True)
class Page:
    """The text of a page, the route that its button calls, and whether it asks for a new password."""

    title: str
    intro: str
    button: str
    action: str
    done: str
    asks_password: bool = False

    def html(self, min_length: int) -> str:
        """Return the page; its addresses are relative, because a proxy may strip a prefix (`ROOT_PATH`)."""
        field = Template(_read("password.html")).substitute(min_length=min_length)
        texts = asdict(self) | {"field": field if self.asks_password else ""}
        return Template(_read("page.html")).substitute(texts)


PAGES: Final = {
    "/reset-password": Page(
        "Reset your password",
        "Choose a new password for your account. All devices that are signed in will be signed out.",
        "Save the new password",
        "auth/password/reset",
        "Your password is changed. You can sign in with it now.",
        asks_password=True,
    ),
    "/verify-email": Page(
        "Verify your email",
        "Press the button to verify that this is your email.",
        "Verify this email",
        "auth/email/verify",
        "Your email is verified. You can close this page.",
    ),
    "/confirm-email": Page(
        "Confirm your new email",
        "Press the button to use this email for your account. Other devices will be signed out.",
        "Confirm this email",
        "auth/email/confirm",
        "Your email is changed. Sign in with the new one from now on.",
    ),
}


def add_pages(app: FastAPI) -> None:
    """Add the pages and their two assets to `app`."""
    min_length: int = app.state.settings.password_min_length
    for path, page in PAGES.items():
        _add(app, path, page.html(min_length), "text/html", {"Content-Security-Policy": POLICY})
    for name, media_type in _ASSETS.items():
        _add(app, f"/pages/{name}", _read(name), media_type, {"Cache-Control": "no-cache"})


def _add(app: FastAPI, path: str, content: str, media_type: str, headers: dict[str, str]) -> None:
    @app.get(path, include_in_schema=False)
    async def read() -> Response:
        return Response(content, media_type=media_type, headers=headers)
