"""The middleware of every request: its id, its log lines, CORS, the checks of its head, error responses."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from time import perf_counter
from urllib.parse import unquote

from loguru import logger
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

from backend.telemetry import events, logs, metrics, traces
from backend.telemetry.events import Event
from backend.web import errors
from backend.web.cross_origin import CrossOrigin, Lines
from backend.web.drain import Drain
from backend.web.error_responses import of_framework, refuse
from backend.web.errors import AppError

MAX_BODY_BYTES = 64 * 1024
OF_UNKNOWN_LENGTH = "tasks.body_of_unknown_length"
"""Key in the scope of a request whose body is chunked."""
REFUSAL = "tasks.refusal"
"""Key in the state of a request whose head is refused: the error to answer."""
CUT_SHORT = "tasks.cut_short"
"""Key in the state of a request whose body stays incomplete: the error to answer."""
CONNECTIONS = "tasks.connections"
"""Key in the state of every request: the connections of this process, with their `unsent` bytes."""
LARGE_ANSWER_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""If a process would hold more, it sends 503 instead of a response above `LARGE_ANSWER_BYTES`."""

_IN_SEGMENT = re.compile(rb"%(?=2[Ff]|25)")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    # If a browser shows the response as a page, that loads nothing, runs nothing and is in no frame.
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
"""Headers of every response that has no header of the same name."""
_CLOSE = (b"connection", b"close")
_READY = "/health/ready"
_PROBES = ("/health", _READY, "/metrics")
_WARNINGS = {Event.DENIED, Event.LOGIN_FAILED, Event.RATE_LIMITED, Event.REFRESH_REUSED}


class Boundary:
    """Surrounds the application: refuses malformed heads, answers exceptions, and completes each response."""

    def __init__(self, app: ASGIApp, log: logs.Log, drain: Drain, origins: Iterable[str]) -> None:
        self.app = app
        self.log = log
        self.drain = drain
        self.cross_origin = CrossOrigin(app, origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self.log, self.drain)
        exchange.added = self.cross_origin.headers_for(exchange.headers)
        scope, app = exchange.scope, self.app
        self.drain.under_way += 1
        try:
            if error_of_head := _error_of_head(scope, exchange.headers):
                app = refuse(scope, error_of_head)
            elif scope["method"] == "OPTIONS" and (preflight := self.cross_origin.preflight(scope)):
                app, exchange.added = preflight, ()
            await app(scope, receive, exchange.respond)
        except Exception as error:
            refusal = of_framework(error)
            if exchange.has_begun or isinstance(refusal, errors.InternalError):
                logger.opt(exception=error).error("unexpected", request_id=events.request_id())
            if exchange.has_begun:
                raise
            await refuse(scope, refusal)(scope, receive, exchange.respond)
        finally:
            self.drain.under_way -= 1


class _Exchange:
    """A request and its response, which gets its headers here, and its log lines before its last byte."""

    added: Lines = ()
    status = 0

    def __init__(self, scope: Scope, send: Send, log: logs.Log, drain: Drain) -> None:
        self._started = perf_counter()
        self._send, self._log, self._drain = send, log, drain
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._record = events.begin(_request_id(self.headers.get(b"x-request-id")))
        self._method = scope["method"]
        self._start: Message | None = None
        # Uvicorn has its own copy of the method, and leaves out the body (RFC 9110 section 9.3.2).
        self.scope = {**scope, "method": "GET"} if self._method == "HEAD" else scope
        if b"%2" in scope["raw_path"]:
            self.scope["path"] = _path_in_segments(scope["raw_path"])
        if self.scope["path"].removeprefix(scope.get("root_path", "")) not in _PROBES:
            drain.last_request_at = self._started

    @property
    def has_begun(self) -> bool:
        """True when the client has the head of a response, so that no other can be sent."""
        return self.status > 0 and self._start is None

    async def respond(self, message: Message) -> None:
        """Send a part of the response; raises `OverloadedError` instead of a start that is too much."""
        if message["type"] == "http.response.start":
            given = dict(message["headers"])
            _check_unsent(self.scope, int(given.get(b"content-length", 0)))
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self.added, *self._more_headers(given)]
            # Held until the body comes, because without a body the headers are the last bytes.
            self._start = message
            return
        if not message.get("more_body"):
            self._observe(perf_counter() - self._started)
        if self._start is not None:
            await self._send(self._start)
            self._start = None
        await self._send(message)

    def _more_headers(self, given: dict[bytes, bytes]) -> Iterable[tuple[bytes, bytes]]:
        yield (b"x-request-id", self._record.request_id.encode())
        for line in _SAFE:
            if line[0] not in given:
                yield line
        if self._drain.is_draining:
            yield _CLOSE

    def _observe(self, seconds: float) -> None:
        scope, status, record = self.scope, self.status, self._record
        route = getattr(scope.get("route"), "path", None)
        metrics.observe(self._method, route, status, seconds)
        line: dict[str, object] = {
            "timestamp": datetime.now(UTC),
            "level": "INFO",
            "event": "",
            "request_id": record.request_id,
            "user_id": record.user_id,
            "ip": scope["client"][0] if scope["client"] else None,
            "method": self._method or None,
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1000, 3),
            **traces.current_ids(),
        }
        lines = [
            {**line, "level": "WARNING" if event in _WARNINGS else "INFO", "event": event, **fields}
            for event, fields in record.events
        ]
        line["event"] = "http.request"
        # RFC 9110 section 15.6; a process that drains is meant to be not ready.
        is_fault = status >= 500 and not (self._drain.is_draining and route == _READY)  # noqa: PLR2004
        line["level"] = "ERROR" if is_fault else "INFO"
        self._log.write(*lines, line)


def _path_in_segments(raw_path: bytes) -> str:
    """Decode a path except `%2F` and `%25`, because the path's parameter is decoded a second time."""
    return unquote(_IN_SEGMENT.sub(b"%25", raw_path).decode("latin-1"))


def _request_id(sent: bytes | None) -> str:
    """Return the client's `X-Request-ID` if it is well formed, else a new id."""
    return sent.decode() if sent and _REQUEST_ID.fullmatch(sent) else uuid7().hex


def _check_unsent(scope: Scope, size: int) -> None:
    """Raise `OverloadedError` if slow clients leave no memory for a response of `size` bytes."""
    if size <= LARGE_ANSWER_BYTES:
        return
    connections = scope.get("state", {}).get(CONNECTIONS, ())
    if size + sum(connection.unsent for connection in connections) > MAX_UNSENT_BYTES:
        raise errors.OverloadedError(reason="unsent_answers")


def _error_of_head(scope: Scope, headers: dict[bytes, bytes]) -> AppError | None:
    error: AppError | None = scope.get("state", {}).get(REFUSAL)
    # A page reads the 503 of an overloaded process only if its preflight succeeds.
    if error and not (isinstance(error, errors.OverloadedError) and scope["method"] == "OPTIONS"):
        return error
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        return errors.ContentTooLargeError()
    hosts = [name for name, _ in scope["headers"]].count(b"host")
    if hosts > 1 or (not hosts and scope["http_version"] != "1.0"):  # RFC 9112 section 3.2
        return errors.MalformedRequestError(reason="host")
    if b"transfer-encoding" in headers:
        # The length is unknown before the end, so each route reads the body, even one that takes none.
        scope[OF_UNKNOWN_LENGTH] = True
        codings = [value.lower() for name, value in scope["headers"] if name == b"transfer-encoding"]
        if codings != [b"chunked"]:
            return errors.TransferCodingError()
    return None
