"""CORS: which origins, methods and headers pages may use, and the error for all others."""

from collections.abc import Iterable
from http import HTTPStatus

from loguru import logger
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from backend.telemetry import events
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
"""Characters of a header that are logged."""
_VARY = (b"vary", b"Origin")

Lines = Iterable[tuple[bytes, bytes]]


class CrossOriginError(AppError):
    """A preflight names an origin, a method or a header that is not allowed."""

    status = 400
    code = "cors_refused"

    def __init__(self, refused: str) -> None:
        super().__init__()
        self.detail = (
            f"A page may not send this: {refused}. Pages of known origins may send {', '.join(METHODS)}, "
            f"with {', '.join(ALLOWED_HEADERS)}"
        )


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
        # Prepared, because Starlette's own code looks up each of them for each response.
        lines = [(name.lower().encode(), value.encode()) for name, value in self.simple_headers.items()]
        self._of_other_origin = [*lines, _VARY] if self.allow_all_origins else [_VARY]
        self._by_origin = {
            origin.encode(): [*lines, (b"access-control-allow-origin", origin.encode()), _VARY]
            for origin in allowed
        }

    def headers_for(self, headers: dict[bytes, bytes]) -> Lines:
        """Return the headers of the response to a request with `headers`."""
        origin = headers.get(b"origin")
        if origin is None:
            return (_VARY,)
        if origin not in self._by_origin and not self.allow_all_origins:
            self._warn_of(origin, headers.get(b"host", b""))
        return self._by_origin.get(origin, self._of_other_origin)

    def preflight(self, scope: Scope) -> Response | None:
        """Answer a preflight (Fetch standard, section 3.3), or return None; raises `CrossOriginError`."""
        headers = Headers(scope=scope)
        if not {"origin", "access-control-request-method"} <= set(headers):
            return None
        response = self.preflight_response(headers)
        if response.status_code == HTTPStatus.OK:
            return response
        if self.is_allowed_origin(headers["origin"]):
            asked = headers.get("access-control-request-headers", "").split(",")
            names = [headers["access-control-request-method"], *map(str.strip, asked)]
            allowed = {"", *METHODS, *self.allow_headers}
            refused = ", ".join(name for name in names if not {name, name.lower()} & allowed)
            refused = refused[:_MAX_CHARACTERS] or "private network"
            logger.info("cors.refused", request_id=events.request_id(), refused=refused)
        raise CrossOriginError(bytes(response.body).decode().removeprefix("Disallowed CORS "))

    def _warn_of(self, origin: bytes, host: bytes) -> None:
        """Log an origin that is refused, once, unless it is this service's own."""
        shown = origin[:_MAX_CHARACTERS].decode("latin-1")
        is_own = origin.partition(b"://")[2] == host
        if is_own or shown in self._warned_of or len(self._warned_of) >= _MAX_ORIGINS:
            return
        self._warned_of.add(shown)
        logger.warning("CORS_ORIGINS does not name this origin: its pages cannot read answers", origin=shown)
