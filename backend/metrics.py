"""Counters for Prometheus, by route template: no user, id or address is ever in a label."""

from functools import cache

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest

REQUESTS = Counter("http_requests_total", "Requests served", ("method", "route", "status"))
DURATION = Histogram(
    "http_request_duration_seconds", "Time to the last byte of an answer", ("method", "route")
)
DATABASE_RETRIES = Counter("database_retries_total", "Statements that were sent once more")

_KNOWN_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def observe(method: str, route: str | None, status: int, seconds: float) -> None:
    """Count one request; `route` is its template, None where none matched."""
    requests, duration = _of(method if method in _KNOWN_METHODS else "other", route or "unmatched", status)
    requests.inc()
    duration.observe(seconds)


@cache
def _of(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(method, route, status), DURATION.labels(method, route)


def exposition() -> tuple[bytes, str]:
    """Return the metrics in Prometheus' text format, and its content type."""
    return generate_latest(), CONTENT_TYPE_LATEST
