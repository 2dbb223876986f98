"""CORS: which origins, methods and headers pages may use, and the errors for all others."""

from collections.abc import Iterable
from http import HTTPStatus

from loguru import logger
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from backend.telemetry import events
from backend.web import errors
from backend.web.error_responses import render
from backend.web.errors import AppError

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

    def examine(
        self, scope: Scope, error: AppError | None
    ) -> tuple[Response | None, Iterable[tuple[bytes, bytes]]]:
        """Return the response to a preflight, or None and the headers for the application's response.

        The headers are prepared, because Starlette's own code looks up each of them for each response.
        """
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None:
            return None, self._vary
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return self._preflight(headers, error), ()
        added = self._by_origin.get(origin, self._of_other_origin)
        if added is self._of_other_origin and not self.allow_all_origins:
            self._warn_of(headers)
        return None, added

    def _preflight(self, headers: Headers, error: AppError | None) -> Response:
        """Answer a preflight (Fetch standard, section 3.3), whose head may have an `error`."""
        response = self.preflight_response(headers)
        if isinstance(error, errors.OverloadedError):
            error = None  # the page reads it in the answer to its own request, and when to try again
        if error is None and response.status_code != HTTPStatus.OK:
            error = self._refusal(headers)
        if error is None:
            return response
        refusal = render(error, errors.SELF_CONTAINED)
        for name in ("Vary", "Access-Control-Allow-Origin"):
            if name in response.headers:
                refusal.headers[name] = response.headers[name]
        return refusal

    def _warn_of(self, headers: Headers) -> None:
        """Log an origin that is refused, once, unless it is this service's own."""
        origin = headers["origin"][:_MAX_CHARACTERS]
        is_own = origin.partition("://")[2] == headers.get("host", "")
        if is_own or origin in self._warned_of or len(self._warned_of) >= _MAX_ORIGINS:
            return
        self._warned_of.add(origin)
        logger.warning("CORS_ORIGINS does not name this origin: its pages cannot read answers", origin=origin)

    def _refusal(self, headers: Headers) -> AppError:
        error = CrossOriginError()
        if not self.is_allowed_origin(headers["origin"]):
            self._warn_of(headers)
            return error
        error.detail, name = self._refused_part(headers)
        logger.info("cors.refused", request_id=events.request_id(), refused=name[:100])
        return error

    def _refused_part(self, headers: Headers) -> tuple[str, str]:
        """Return why a preflight from an allowed origin is refused, and the refused name for the log."""
        method = headers["access-control-request-method"]
        if method not in METHODS:
            return f"The method is not allowed across origins, only {', '.join(METHODS)}", method
        asked = headers.get("access-control-request-headers", "").split(",")
        for name in filter(None, map(str.strip, asked)):
            if name.lower() not in self.allow_headers:
                return f"A header is not allowed across origins, only {', '.join(self.allow_headers)}", name
        return "This service is not open to pages of another network", "private network"


class CrossOriginError(AppError):
    """A preflight names an origin, a method or a header that is not allowed."""

    status = 400
    code = "cors_refused"
    detail = "This origin, method or header is not allowed"
