"""The middleware of every request: its id, its log lines, the checks of its head, and error responses."""

import re
from collections.abc import Sequence
from time import perf_counter
from urllib.parse import unquote

from loguru import logger
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

from backend.telemetry import events, logs, metrics, traces
from backend.telemetry.events import Event, RequestRecord
from backend.web import errors
from backend.web.drain import Drain
from backend.web.error_responses import refuse
from backend.web.framework_errors import of_framework

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
_SAFE_NAMES = frozenset(name for name, _ in _SAFE)
_CLOSE = (b"connection", b"close")
_READY = "/health/ready"
_PROBES = ("/health", _READY, "/metrics")
_WARNINGS = {Event.DENIED, Event.LOGIN_FAILED, Event.RATE_LIMITED, Event.REFRESH_REUSED}


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header with this name, which is in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return value  # type: ignore[no-any-return]  # ASGI's scope is untyped
    return None


class Observer:
    """Gives each request its id, adds the headers of every response, and writes the log lines."""

    def __init__(self, app: ASGIApp, log: logs.Log, drain: Drain) -> None:
        self.app = app
        self.log = log
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; its log lines are written before the last byte is sent."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        record = events.begin(request_id_of(scope))
        method = scope["method"]
        start: Message | None = None
        status = 0
        if method == "HEAD":
            # Uvicorn has its own copy of the method, and leaves out the body (RFC 9110 section 9.3.2).
            scope = {**scope, "method": "GET"}

        async def respond(message: Message) -> None:
            nonlocal start, status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = self._headers(message["headers"], record)
                # Held until the body comes, because without a body the headers are the last bytes.
                start = message
                return
            if not message.get("more_body"):
                self._observe(scope, method, record, status, perf_counter() - started)
            if start is not None:
                await send(start)
                start = None
            await send(message)

        if b"%2" in scope["raw_path"]:
            scope["path"] = _path_in_segments(scope["raw_path"])
        if scope["path"].removeprefix(scope.get("root_path", "")) not in _PROBES:
            self.drain.last_request_at = started
        self.drain.under_way += 1
        try:
            await self.app(scope, receive, respond)
        finally:
            self.drain.under_way -= 1

    def _headers(
        self, given: Sequence[tuple[bytes, bytes]], record: RequestRecord
    ) -> list[tuple[bytes, bytes]]:
        names = dict(given)
        headers = [*given, (b"x-request-id", record.request_id.encode())]
        has_none = _SAFE_NAMES.isdisjoint(names)  # as most responses
        headers += _SAFE if has_none else [line for line in _SAFE if line[0] not in names]
        if self.drain.is_draining:
            headers.append(_CLOSE)
        return headers

    def _observe(self, scope: Scope, method: str, record: RequestRecord, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        metrics.observe(method, route, status, seconds)
        line: dict[str, object] = {
            "timestamp": logs.now(),
            "level": "INFO",
            "event": "",
            "request_id": record.request_id,
            "user_id": record.user_id,
            "ip": scope["client"][0] if scope["client"] else None,
            "method": method or None,
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
        is_fault = status >= 500 and not (self.drain.is_draining and route == _READY)  # noqa: PLR2004
        line["level"] = "ERROR" if is_fault else "INFO"
        self.log.write(*lines, line)


def _path_in_segments(raw_path: bytes) -> str:
    """Decode a path except `%2F` and `%25`, because the path's parameter is decoded a second time."""
    return unquote(_IN_SEGMENT.sub(b"%25", raw_path).decode("latin-1"))


def request_id_of(scope: Scope) -> str:
    """Return the client's `X-Request-ID` if it is well formed, else a new id."""
    sent = dict(scope["headers"]).get(b"x-request-id")
    return sent.decode() if sent and _REQUEST_ID.fullmatch(sent) else uuid7().hex


class Boundary:
    """Checks each request's head, and turns every exception into an error response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; never raises."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = is_too_much = False

        async def respond(message: Message) -> None:
            nonlocal started, is_too_much
            started = True
            if message["type"] == "http.response.start" and _is_too_much(scope, message):
                is_too_much = True
                await refuse(scope, errors.OverloadedError(reason="unsent_answers"))(scope, receive, send)
            elif not is_too_much:
                await send(message)

        try:
            _refuse_head(scope)
            await self.app(scope, receive, respond)
        except Exception as error:
            refusal = of_framework(error)
            if started or isinstance(refusal, errors.InternalError):
                logger.opt(exception=error).error("unexpected", request_id=events.request_id())
            if started:
                raise
            await refuse(scope, refusal)(scope, receive, send)


def _is_too_much(scope: Scope, start: Message) -> bool:
    """Return whether slow clients leave no memory for a response of this size."""
    for name, value in start["headers"]:  # most often the first
        if name == b"content-length":
            size = int(value)
            if size <= LARGE_ANSWER_BYTES:
                return False
            connections = scope.get("state", {}).get(CONNECTIONS, ())
            unsent: int = sum(connection.unsent for connection in connections)
            return unsent + size > MAX_UNSENT_BYTES
    return False


def _refuse_head(scope: Scope) -> None:
    if error := scope.get("state", {}).get(REFUSAL):
        raise error
    names = [name for name, _ in scope["headers"]]
    if b"content-length" in names and any(map(is_too_large, _values(scope, b"content-length"))):
        raise errors.ContentTooLargeError
    hosts = names.count(b"host")
    if hosts > 1 or (not hosts and scope["http_version"] != "1.0"):  # RFC 9112 section 3.2
        raise errors.MalformedRequestError(reason="host")
    if b"transfer-encoding" in names:
        # The length is unknown before the end, so each route reads the body, even one that takes none.
        scope[OF_UNKNOWN_LENGTH] = True
        if [coding.lower() for coding in _values(scope, b"transfer-encoding")] != [b"chunked"]:
            raise errors.TransferCodingError


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def is_too_large(length: str | bytes) -> bool:
    """Return whether a `Content-Length` is above `MAX_BODY_BYTES`."""
    return length.isdigit() and int(length) > MAX_BODY_BYTES
