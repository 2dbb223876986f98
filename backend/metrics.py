"""Counters for Prometheus, by route template: no user, id or address is ever in a label."""

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest

REQUESTS = Counter("http_requests_total", "Requests served", ("method", "route", "status"))
DURATION = Histogram(
    "http_request_duration_seconds", "Time to the last byte of an answer", ("method", "route")
)
DATABASE_RETRIES = Counter("database_retries_total", "Statements that were sent once more")

_KNOWN_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def observe(method: str, route: str | None, status: int, seconds: float) -> None:
    """Count one request; `route` is its template, None where none matched."""
    method = method if method in _KNOWN_METHODS else "other"
    REQUESTS.labels(method, route or "unmatched", status).inc()
    DURATION.labels(method, route or "unmatched").observe(seconds)


def exposition() -> tuple[bytes, str]:
    """Return the metrics in Prometheus' text format, and its content type."""
    return generate_latest(), CONTENT_TYPE_LATEST
