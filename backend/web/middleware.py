"""The middleware of every request: its id and log lines, the limits on its head, the last word on errors."""

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
from backend.web.framework_errors import of_framework
from backend.web.refusals import refuse

MAX_BODY_BYTES = 64 * 1024
OF_UNKNOWN_LENGTH = "tasks.body_of_unknown_length"
"""In the scope of a request whose body is sent in chunks."""
REFUSAL = "tasks.refusal"
"""In the state of a request whose head is not acceptable: the error to answer with."""
CUT_SHORT = "tasks.cut_short"
"""In the state of a request whose body comes to no end: the error to answer with."""
CONNECTIONS = "tasks.connections"
"""In the state of every request: the connections of this process, whose `unsent` are bytes of answers."""
LARGE_ANSWER_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""Past so much unsent in a process, an answer above `LARGE_ANSWER_BYTES` is 503 instead."""

_IN_SEGMENT = re.compile(rb"%(?=2[Ff]|25)")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    # For an answer that somebody takes for a page: it may load and run nothing, and be framed nowhere.
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
)
"""On every answer that does not say otherwise."""
_SAFE_NAMES = frozenset(name for name, _ in _SAFE)
_CLOSE = (b"connection", b"close")
_PROBES = ("/health", "/health/ready", "/metrics")
_WARNINGS = {Event.DENIED, Event.LOGIN_FAILED, Event.RATE_LIMITED, Event.REFRESH_REUSED}


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header of that (lower case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return value  # type: ignore[no-any-return]  # ASGI's scope is untyped
    return None


class Observer:
    """Gives the request its id, adds the headers of every answer, and writes the log lines."""

    def __init__(self, app: ASGIApp, log: logs.Log, drain: Drain) -> None:
        self.app = app
        self.log = log
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; its lines are written before its last byte is sent."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        record = events.begin(request_id_of(scope))
        method = scope["method"]
        start: Message | None = None
        status = 0
        if method == "HEAD":
            # The server leaves out the body by its own copy of the method (RFC 9110 section 9.3.2).
            scope = {**scope, "method": "GET"}

        async def respond(message: Message) -> None:
            nonlocal start, status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = self._headers(message["headers"], record)
                # Sent with the body: where there is none, a client has its answer with the headers.
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
        # Most answers bring none of them.
        is_silent = _SAFE_NAMES.isdisjoint(names)
        headers += _SAFE if is_silent else [line for line in _SAFE if line[0] not in names]
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
        line["level"] = "ERROR" if status >= 500 else "INFO"  # noqa: PLR2004  # RFC 9110 section 15.6
        self.log.write(*lines, line)


def _path_in_segments(raw_path: bytes) -> str:
    """Decode a path but for `%2F`, a part of a segment, and `%25`: the parameter is decoded once more."""
    return unquote(_IN_SEGMENT.sub(b"%25", raw_path).decode("latin-1"))


def request_id_of(scope: Scope) -> str:
    """Return the id that the client has given its request, if it is one, or a new one."""
    sent = dict(scope["headers"]).get(b"x-request-id")
    return sent.decode() if sent and _REQUEST_ID.fullmatch(sent) else uuid7().hex


class Boundary:
    """Refuses what is too large before reading it, and answers every error, a crash by a clean 500."""

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
    """Tell whether clients that read slowly leave no memory for an answer of this size."""
    for name, value in start["headers"]:  # the first is most often the one
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
        # Its length shows only when it is read: a route does, even one that takes no body.
        scope[OF_UNKNOWN_LENGTH] = True
        if [coding.lower() for coding in _values(scope, b"transfer-encoding")] != [b"chunked"]:
            raise errors.TransferCodingError


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def is_too_large(length: str | bytes) -> bool:
    """Return whether a `Content-Length` is above `MAX_BODY_BYTES`."""
    return length.isdigit() and int(length) > MAX_BODY_BYTES
