"""Cookie sessions: the cookie that holds a refresh token, and the check of `Origin` against CSRF."""

import ipaddress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from fastapi import Depends
from fastapi.security import APIKeyCookie
from starlette.requests import Request

from backend.auth.dependencies import Caller, OwnAccount, scheme
from backend.auth.errors import CsrfRejectedError, ExpiredTokenError
from backend.web.bearer import UnauthorizedError
from backend.web.body import BoundedRequest, read_json
from backend.web.error_documentation import raises
from backend.web.errors import AppError, MissingFieldsError
from backend.web.json_response import Answer

SETS_COOKIE: Final[dict[str, Any]] = {
    "headers": {
        "Set-Cookie": {"description": "The refresh token of a cookie session", "schema": {"type": "string"}}
    }
}
"""The part of a route's `responses` for an answer that may set or delete the cookie."""
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_SECONDS_PER_DAY: Final = 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class RefreshCookie:
    """The cookie for the host of one request; `max_age` is in seconds."""

    is_local: bool
    max_age: int
    token: str | None = None
    """The refresh token that was sent; "" if a page sent none, None if the body's token counts."""

    @property
    def name(self) -> str:
        """The name; `__Host-` keeps other hosts of the domain from setting it.

        That prefix needs `Secure` and `Path=/` (RFC 6265bis section 4.1.3.2).
        """
        # Safari takes no `Secure` cookie from http://localhost, Chromium does (MDN, "Set-Cookie", Secure).
        return "refresh" if self.is_local else "__Host-refresh"

    def answer(self, tokens: dict[str, Any], status: int = 200) -> Answer:
        """Return the answer with the refresh token in the cookie and not in the body."""
        kept = {name: value for name, value in tokens.items() if name != "refresh_token"}
        line = self._line(tokens["refresh_token"], self.max_age)
        return Answer(kept, status, [(b"set-cookie", line.encode())])

    @property
    def clearing(self) -> dict[str, str]:
        """The header that deletes the cookie."""
        return {"Set-Cookie": self._line("", 0)}

    def _line(self, value: str, max_age: int) -> str:
        # `SameSite` allows other ports of the host (RFC 6265bis section 5.2), which `check_origin` refuses.
        secure = "" if self.is_local else " Secure;"
        return f"{self.name}={value}; Path=/;{secure} HttpOnly; SameSite=Strict; Max-Age={max_age}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761 section 6.3


async def get_cookie(request: Request) -> RefreshCookie:
    """Return the cookie for the request's host, without the token that was sent."""
    settings = request.app.state.settings
    days = min(settings.session_days, settings.session_idle_days)
    is_local = request.scope["scheme"] == "http" and _is_loopback(request.url.hostname or "")
    return RefreshCookie(is_local, int(days * _SECONDS_PER_DAY))


def _sent(request: Request, name: str) -> str | None:
    """Return the value of the last cookie `name`, or None.

    Browsers send cookies of a longer path first (RFC 6265 section 5.4), and ours has the shortest.
    """
    # Before Python 3.11.10 and 3.12.6 `request.cookies` takes seconds for a long one (CVE-2024-7592).
    lines = request.headers.getlist("cookie")
    cookies = [cookie.strip() for line in lines for cookie in line.split(";")]
    start = f"{name}="
    return next((cookie[len(start) :] for cookie in reversed(cookies) if cookie.startswith(start)), None)


def check_origin(request: Request) -> None:
    """Raise `CsrfRejectedError` unless `Origin` is this service's own or one of `CORS_ORIGINS`.

    A `*` in `CORS_ORIGINS` allows no origin here, because any page could use the cookie then.
    """
    sent = request.headers.getlist("origin")
    allowed = (_own_origin(request), *request.app.state.settings.cors_origins)
    if len(sent) != 1 or sent[0] == "*" or sent[0] not in allowed:
        raise CsrfRejectedError(reason="csrf")


def _own_origin(request: Request) -> str:
    """Return this service's origin as browsers send it, without a default port (Fetch standard, 3.2)."""
    scheme, host = request.scope["scheme"], request.headers.get("host", "").lower()
    return f"{scheme}://{host.removesuffix(_DEFAULT_PORTS.get(scheme, ''))}"


async def _read(request: BoundedRequest) -> Any:
    """Return the JSON of the body before it is validated; {} for no body."""
    return await request.json() if await read_json(request) else {}


@raises(CsrfRejectedError)
async def cookie_for_sign_in(request: BoundedRequest) -> RefreshCookie:
    """Return the cookie; raises `CsrfRejectedError` if a foreign origin asks for a session."""
    body = await _read(request)
    if isinstance(body, dict) and body.get("session") == "cookie":
        check_origin(request)
    return await get_cookie(request)


class CookieToken(APIKeyCookie):
    """Reads the refresh token from the cookie if the body has none."""

    raises = (CsrfRejectedError,)

    async def __call__(self, request: BoundedRequest) -> RefreshCookie:  # type: ignore[override]  # narrower
        """Return the cookie, with its token unless the body's token counts.

        Raises `CsrfRejectedError`, and `MissingFieldsError` for a program that sent neither body nor cookie.
        """
        body, cookie = await _read(request), await get_cookie(request)
        if not isinstance(body, dict) or "refresh_token" in body:
            return cookie
        token = _sent(request, cookie.name)
        if token is None and "origin" not in request.headers:
            if not await request.body():
                raise MissingFieldsError("body")
            return cookie
        check_origin(request)
        return replace(cookie, token=token or "")


class Leaving(OwnAccount):
    """Guards sign-out: the cookie counts if the access token is missing or has expired."""

    raises = (*OwnAccount.raises, CsrfRejectedError)

    async def __call__(self, request: Request) -> Caller | str:  # type: ignore[override]  # or a cookie's token
        """Return the access token's caller or the cookie's refresh token; raises `CsrfRejectedError` too."""
        cookie = await get_cookie(request)
        try:
            return await super().__call__(request)
        except AppError as error:
            token = _sent(request, cookie.name)
            if token is not None and _may_use_cookie(error):
                check_origin(request)
                return token
            # A page of another origin can't send `Authorization`, so it can't have the cookie deleted.
            if "authorization" in request.headers:
                error.headers |= cookie.clearing
            raise

    async def confirm(self, request: Request) -> None:
        """Raise `RevokedTokenError` if the caller's session is gone; a cookie names no caller."""
        try:
            await super().confirm(request)
        except UnauthorizedError as error:
            if not _may_use_cookie(error):
                raise


def _may_use_cookie(error: AppError) -> bool:
    return isinstance(error, ExpiredTokenError) or error.reason == "missing"


CookieDep = Annotated[RefreshCookie, Depends(get_cookie)]
SignInCookieDep = Annotated[RefreshCookie, Depends(cookie_for_sign_in)]
CookieTokenDep = Annotated[
    RefreshCookie,
    Depends(CookieToken(name="__Host-refresh", scheme_name="RefreshCookie", auto_error=False)),
]
LeavingDep = Annotated[Caller | str, Depends(Leaving(**scheme))]
