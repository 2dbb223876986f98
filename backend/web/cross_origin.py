"""What a refusal of the Fetch standard's CORS protocol tells: the operator which origin, a developer what."""

from collections.abc import Collection

from loguru import logger
from starlette.datastructures import Headers

TRACE_CONTEXT = ("traceparent", "tracestate", "baggage")
"""Headers that a page's tracing sends (W3C Trace Context, W3C Baggage)."""
_MAX_ORIGINS = 20
_MAX_CHARACTERS = 200


class RefusedOrigins:
    """Warns once of each origin that is refused, of the first 20 in a process."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def warn(self, headers: Headers) -> None:
        """Log the `Origin` of a request, unless it is this service's own."""
        origin = headers.get("origin", "")[:_MAX_CHARACTERS]
        if not origin or len(self._seen) >= _MAX_ORIGINS or origin in self._seen:
            return
        if origin.partition("://")[2] == headers.get("host"):
            return
        self._seen.add(origin)
        logger.warning("CORS_ORIGINS does not name this origin: its pages cannot read answers", origin=origin)


def refused_part(headers: Headers, methods: Collection[str], allowed: Collection[str]) -> tuple[str, str]:
    """Return what of a preflight from an allowed origin is refused: a sentence, and its name for the log."""
    method = headers["access-control-request-method"]
    if method not in methods:
        return f"The method is not allowed across origins, only {', '.join(methods)}", method
    asked = [name.strip() for name in headers.get("access-control-request-headers", "").split(",")]
    refused = [name for name in asked if name and name.lower() not in allowed]
    if refused:
        return f"A header is not allowed across origins, only {', '.join(allowed)}", refused[0]
    return "This service is not open to pages of another network", "private network"
