"""How the application meets the network: Uvicorn, and what one connection may take of it.

Whoever is slow, endless or garbled holds a connection for a bounded time, and is told in the one error shape.
"""

import re
import resource
import socket
from asyncio import AbstractEventLoop, TimerHandle, Transport
from collections.abc import Callable, Mapping, Sized
from contextlib import nullcontext, suppress
from http import HTTPStatus
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import uvicorn
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from loguru import logger
from starlette.types import Scope
from uuid_utils import uuid7
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from backend import errors, metrics
from backend.errors import AppError
from backend.middleware import CUT_SHORT, SHED, request_id_of
from backend.settings import Settings, SettingsError

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request's line and headers."""
ARRIVAL_SECONDS: Final = 20.0
"""From the first byte of a request, or from the connection, to the last."""
KEEP_ALIVE_SECONDS: Final = 75
"""Longer than proxies keep theirs: who closes first is never in the middle of a request."""
UNACKNOWLEDGED_SECONDS: Final = 30
"""How long a client may leave an answer unread."""
WORKER_SECONDS: Final = 10
"""How long a worker may take to start or to show that it lives, before it is replaced."""
SHED_SECONDS: Final = 1.0
"""What `Retry-After` says."""
DESCRIPTORS_BESIDE_CLIENTS: Final = 1100
"""More than a database pool may have, and what else a process opens."""

_HOST = re.compile(rb"(\[[\da-fA-F:.]+\]|[\w.~!$&'()*+,;=%-]*)(:\d*)?[ \t]*")  # RFC 3986 section 3.2.2
_FRAMING = (b"content-length", b"transfer-encoding")
_BEYOND_64_BITS = re.compile(rb"\r\ncontent-length:[ \t]*\d{20,}[ \t]*\r\n", re.IGNORECASE)


def run(settings: Settings, *, reload: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; the caller has made sure of the schema."""
    _allow_descriptors(settings.max_connections + DESCRIPTORS_BESIDE_CLIENTS)
    with metrics.shared_by_workers() if settings.workers > 1 else nullcontext():
        _run_uvicorn(settings, reload=reload)


def _run_uvicorn(settings: Settings, *, reload: bool) -> None:
    uvicorn.run(
        "backend.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=None if reload else settings.workers,
        reload=reload,
        reload_dirs=[str(Path(__file__).parent)] if reload else None,
        loop="uvloop",
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_worker_healthcheck=WORKER_SECONDS,
        # What the drain before it (see `drain.py`) has left.
        timeout_graceful_shutdown=max(
            1, round(settings.shutdown_grace_seconds - settings.shutdown_drain_seconds)
        ),
        proxy_headers=settings.forwarded_allow_ips is not None,
        forwarded_allow_ips=settings.forwarded_allow_ips,
        server_header=False,
    )


def check_address(settings: Settings) -> None:
    """Raise `SettingsError` if nobody can listen there; said before anything else is started."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise SettingsError(f"HOST: {error.strerror}") from None
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise SettingsError(f"HOST, PORT: {settings.host}:{settings.port}: {error.strerror}") from None


def _allow_descriptors(wanted: int) -> None:
    """Raise the soft limit on open files as far as needed and allowed: often it is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


class Protocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1, within limits on connections, headers and the time that a request takes to come.

    Most requests arrive whole in one piece: then none of this costs more than a comparison.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Uvicorn would refuse in words of its own, and count those that do nothing.
        self._most_connections, self.limit_concurrency = self.limit_concurrency, None
        self._is_arriving, self._is_in_head, self._is_refused = True, True, False
        self._useless_bytes = self._piece_bytes = self._bytes_before = 0
        """Since the last head or piece of a body was complete: in an unfinished head, or behind a body."""
        self._framing: list[tuple[bytes, bytes]] = []
        """Of a body that the parser does not look for."""
        self._arrival: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as Uvicorn has it
        """Take a connection; where there are too many, an idle one is closed for it, or it is refused."""
        super().connection_made(cast(Transport, _OneWrite(transport, self.loop)))
        self.flow = _Flow(self.transport, self.pipeline)
        _notice_silence(transport)
        self._limit_arrival()
        if self._most_connections is not None and len(self.connections) > self._most_connections:
            idle = [known for known in self.connections if known is not self and _is_idle(known)]
            if idle:
                min(idle, key=attrgetter("_is_arriving")).transport.close()  # who asks nothing goes first
            else:
                self._refuse(errors.OverloadedError(reason="too_many_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        super().connection_lost(exc)
        self._is_arriving = False
        self._limit_arrival()

    def eof_received(self) -> bool:  # type: ignore[override]  # Uvicorn never goes on
        """Answer what is under way: who has said all may still listen (RFC 9112 section 9.6)."""
        self._is_arriving = False
        self._limit_arrival()
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
            return False
        if self.cycle.more_body:
            self._refuse(errors.IncompleteBodyError())
        self.cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        """Take in what has come; what is left to come has its time."""
        while data and not self._is_refused:
            self._piece_bytes = len(data)
            self._useless_bytes += self._piece_bytes
            data = self._parse(data)
        if self._useless_bytes > MAX_HEAD_BYTES and self._is_arriving:
            self._refuse(errors.HeadersTooLargeError())
        if self._is_arriving is not (self._arrival is not None):
            self._limit_arrival()

    def _parse(self, data: bytes) -> bytes:
        """Return what is left: the parser stops where another protocol might begin (RFC 9110 section 7.8).

        None does, so it is the body, which httptools takes for that protocol, or the next request.
        """
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as stop:
            if self._framing:
                self._look_for_body()
            return data[stop.args[0] :]
        except HttpParserError as error:
            refusal = error.__context__
            if not isinstance(refusal, AppError):
                is_endless = _BEYOND_64_BITS.search(data)
                refusal = errors.ContentTooLargeError() if is_endless else errors.MalformedRequestError()
            self._refuse(refusal)
        return b""

    def _look_for_body(self) -> None:
        """Go on with a parser that takes what comes for a body, and for the requests behind it."""
        self.parser = HttpRequestParser(_Rest(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as Uvicorn's
        lines = b"".join(b"%s: %s\r\n" % line for line in self._framing)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % lines)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._is_arriving = self._is_in_head = True
        self._bytes_before = 0 if self._useless_bytes else self._piece_bytes
        self._useless_bytes = self._useless_bytes or 1

    def on_headers_complete(self) -> None:
        """Begin to serve it, unless it is too long or doesn't say where it goes; raises `AppError`."""
        at_most = self._useless_bytes + self._bytes_before
        if at_most > MAX_HEAD_BYTES and self._head_bytes() > MAX_HEAD_BYTES:
            raise errors.HeadersTooLargeError
        hosts = [value for name, value in self.headers if name == b"host"]
        is_named = len(hosts) == 1 and _HOST.fullmatch(hosts[0])
        if not is_named and (hosts or self.parser.get_http_version() != "1.0"):
            raise errors.MalformedRequestError(reason="host")  # RFC 9112 section 3.2
        super().on_headers_complete()
        self._unset_keepalive_if_required()
        self._is_in_head, self._useless_bytes = False, 0
        is_upgrade = self.parser.should_upgrade()
        self._framing = [line for line in self.headers if line[0] in _FRAMING] if is_upgrade else []
        self.headers = []  # what comes behind a body is no header (RFC 9110 section 6.5.1)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        """Take in a piece of a body."""
        super().on_body(body)
        self._useless_bytes = 0

    def on_message_complete(self) -> None:
        """End a request, of which all has come."""
        if self._framing and self.parser.should_upgrade():
            return  # but its body
        super().on_message_complete()
        self._is_arriving, self._is_in_head, self._useless_bytes = False, True, 0
        if self._arrival is not None:
            self._limit_arrival()

    def on_response_complete(self) -> None:
        """Go on to the next request; whoever was refused for want of capacity is not heard for a moment.

        Or clients that repeat themselves at once would keep the service at nothing but refusing them.
        """
        super().on_response_complete()
        if SHED in self.cycle.scope["state"] and not self.transport.is_closing():
            self.flow.pause_reading()
            self.loop.call_later(SHED_SECONDS, self._hear)

    def _hear(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _limit_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None
        if self._is_arriving:
            self._arrival = self.loop.call_later(ARRIVAL_SECONDS, self._give_up)

    def _give_up(self) -> None:
        """End a request that does not come to its end, or a connection on which none has begun."""
        if self._is_in_head and not self._useless_bytes:
            self.transport.close()
        else:
            self._refuse(errors.RequestTimeoutError())

    def _refuse(self, error: AppError) -> None:
        """Hear no more: what came is no request, or comes to no end. Whatever came before it is answered."""
        self._is_refused, self._is_arriving = True, False
        self._limit_arrival()
        last = self.cycle
        if last is not None and not last.response_complete:
            last.keep_alive = False
            self.flow.pause_reading()
            if last.more_body:
                last.scope["state"][CUT_SHORT] = error
                last.more_body = False
                last.message_event.set()
        elif self._is_in_head and not self.transport.is_closing():
            self._answer(error)
        else:
            self.transport.close()

    def _answer(self, error: AppError) -> None:
        """Answer what never becomes a request of the application's, and log it."""
        scope = cast("Scope | None", self.scope)
        request_id = request_id_of(scope) if scope else uuid7().hex
        ip = self.client[0] if self.client else None
        unknown = dict.fromkeys(("user_id", "method", "route", "duration_ms"))
        line = {"request_id": request_id, "ip": ip, **unknown, "status": error.status}
        logger.bind(**line, reason=error.reason).info("http.request")
        self.transport.write(_answer(error, dict(self.server_state.default_headers), request_id))
        self.transport.close()


class _Flow(FlowControl):
    """Hears nothing more from a client until its requests are answered but for the last one.

    Uvicorn would after each answer, and thousands would pile up of who sends faster than is answered.
    """

    def __init__(self, transport: Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Hear the client again, if none of its requests waits."""
        if not self._waiting:
            super().resume_reading()


class _Rest:
    """What a parser tells a protocol that has its first head already: only what comes behind."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol, self._is_behind_head = protocol, False

    def __getattr__(self, name: str) -> Callable[..., None]:
        callback = getattr(self._protocol, name)

        def tell(*arguments: Any) -> None:
            if self._is_behind_head:
                callback(*arguments)

        return tell

    def on_headers_complete(self) -> None:
        """Begin to tell."""
        if self._is_behind_head:
            self._protocol.on_headers_complete()
        self._is_behind_head = True


class _OneWrite:
    """A transport that sends what is written at once as one: an answer's head and body are two writes.

    Each would be a system call, and wake the client up: one in ten microseconds of a small answer.
    """

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._written: list[bytes] = []
        self.get_extra_info, self.is_closing = transport.get_extra_info, transport.is_closing
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading

    def write(self, data: bytes) -> None:
        """Send `data`, with what else is written before the event loop goes on."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def _flush(self) -> None:
        written, self._written = self._written, []
        if written and not self._transport.is_closing():
            self._transport.writelines(written)

    def close(self) -> None:
        """Close the connection once all is sent."""
        self._flush()
        self._transport.close()


def _answer(error: AppError, headers: Mapping[bytes, bytes], request_id: str) -> bytes:
    body = msgspec.json.encode(error.body(errors.SELF_CONTAINED, request_id))
    lines = {
        **headers,
        **{name.lower().encode(): value.encode() for name, value in error.headers.items()},
        b"content-type": b"application/json",
        b"content-length": b"%d" % len(body),
        b"cache-control": b"no-store",
        b"x-content-type-options": b"nosniff",
        b"x-request-id": request_id.encode(),
        b"connection": b"close",
    }
    head = b"".join(b"%s: %s\r\n" % line for line in lines.items())
    phrase = HTTPStatus(error.status).phrase.encode()
    return b"HTTP/1.1 %d %s\r\n%s\r\n%s" % (error.status, phrase, head, body)


def _is_idle(protocol: Any) -> bool:
    return (
        protocol.cycle is None or protocol.cycle.response_complete
    ) and not protocol.transport.is_closing()


def _notice_silence(transport: Transport) -> None:
    """Let the kernel give up on a client that acknowledges nothing for so long (RFC 5482), where it can."""
    client = cast("socket.socket | None", transport.get_extra_info("socket"))
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and client is not None and client.family in {socket.AF_INET, socket.AF_INET6}:
        client.setsockopt(socket.IPPROTO_TCP, option, UNACKNOWLEDGED_SECONDS * 1000)
