"""CORS: which origins, methods and headers pages may use, and the errors for all others."""

from collections.abc import Collection, Iterable
from http import HTTPStatus

from loguru import logger
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.telemetry import events
from backend.web import errors
from backend.web.error_responses import render
from backend.web.errors import AppError
from backend.web.middleware import is_too_large

TRACE_CONTEXT = ("traceparent", "tracestate", "baggage")
"""Headers that a page's tracing sends (W3C Trace Context, W3C Baggage)."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ALLOWED_HEADERS = (
    "Authorization",
    "Content-Type",
    "X-Request-ID",
    "If-Match",
    "If-None-Match",
    "Idempotency-Key",
    *TRACE_CONTEXT,
)
EXPOSED_HEADERS = ("Location", "Link", "ETag", "Retry-After", "X-Request-ID")
_MAX_ORIGINS = 20
"""Origins that one process warns of."""
_MAX_CHARACTERS = 200
"""Characters of an origin that are logged."""


def refused_part(headers: Headers, methods: Collection[str], allowed: Collection[str]) -> tuple[str, str]:
    """Return why a preflight from an allowed origin is refused, and the refused name for the log."""
    method = headers["access-control-request-method"]
    if method not in methods:
        return f"The method is not allowed across origins, only {', '.join(methods)}", method
    asked = [name.strip() for name in headers.get("access-control-request-headers", "").split(",")]
    refused = [name for name in asked if name and name.lower() not in allowed]
    if refused:
        return f"A header is not allowed across origins, only {', '.join(allowed)}", refused[0]
    return "This service is not open to pages of another network", "private network"


class CrossOrigin(CORSMiddleware):
    """Starlette's CORS for `CORS_ORIGINS`, whose refused preflights have the JSON body of all errors."""

    def __init__(self, app: ASGIApp, origins: Iterable[str]) -> None:
        allowed = tuple(origins)
        super().__init__(
            app,
            allow_origins=allowed,
            allow_methods=METHODS,
            # With "*" Starlette would allow every origin to send the cookie.
            allow_credentials="*" not in allowed,
            allow_headers=ALLOWED_HEADERS,
            expose_headers=EXPOSED_HEADERS,
        )
        self._warned_of: set[str] = set()
        exposed = [(name.lower().encode(), value.encode()) for name, value in self.simple_headers.items()]
        self._vary = [(b"vary", b"Origin")]
        without_credentials = [line for line in exposed if line[0] != b"access-control-allow-credentials"]
        self._of_other_origin = [*without_credentials, *self._vary]
        self._by_origin = {
            origin: [*exposed, (b"access-control-allow-origin", origin.encode()), *self._vary]
            for origin in allowed
        }

    async def simple_response(
        self, scope: Scope, receive: Receive, send: Send, request_headers: Headers
    ) -> None:
        """Serve a request that is not a preflight.

        The headers are prepared, because Starlette's own method looks up each of them for each response.
        """
        origin, added = request_headers.get("origin"), self._vary
        if origin is not None:
            added = self._by_origin.get(origin, self._of_other_origin)
            if added is self._of_other_origin and not self.allow_all_origins:
                self._warn_of(origin[:_MAX_CHARACTERS], request_headers.get("host", ""))

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self.app(scope, receive, respond)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight (Fetch standard, section 3.3)."""
        response = super().preflight_response(request_headers)
        is_long = is_too_large(request_headers.get("content-length", ""))
        if response.status_code == HTTPStatus.OK and not is_long:
            return response
        error = errors.ContentTooLargeError() if is_long else self._refusal(request_headers)
        refusal = render(error, errors.SELF_CONTAINED)
        for name in ("Vary", "Access-Control-Allow-Origin"):
            if name in response.headers:
                refusal.headers[name] = response.headers[name]
        return refusal

    def _warn_of(self, origin: str, host: str) -> None:
        """Log an origin that is refused, once, unless it is this service's own."""
        is_own = origin.partition("://")[2] == host
        if is_own or origin in self._warned_of or len(self._warned_of) >= _MAX_ORIGINS:
            return
        self._warned_of.add(origin)
        logger.warning("CORS_ORIGINS does not name this origin: its pages cannot read answers", origin=origin)

    def _refusal(self, request_headers: Headers) -> AppError:
        error, origin = CrossOriginError(), request_headers["origin"]
        if not self.is_allowed_origin(origin):
            self._warn_of(origin[:_MAX_CHARACTERS], request_headers.get("host", ""))
            return error
        error.detail, name = refused_part(request_headers, self.allow_methods, self.allow_headers)
        logger.info("cors.refused", request_id=events.request_id(), refused=name[:100])
        return error


class CrossOriginError(AppError):
    """A preflight names an origin, a method or a header that is not allowed."""

    status = 400
    code = "cors_refused"
    detail = "This origin, method or header is not allowed"
