"""Limits each connection: a slow, oversized or malformed request gets an error response and is closed.

Uvicorn's own protocol limits neither heads, nor the time of a request or an answer, nor unsent bytes.
"""

import re
from asyncio import AbstractEventLoop, TimerHandle, Transport
from collections.abc import Callable, Sized
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from backend.web import errors
from backend.web.cross_origin import METHODS
from backend.web.errors import AppError
from backend.web.middleware import CUT_SHORT, REFUSAL, UNSENT

_REQUEST_LINE: Final = re.compile(rb"^([\w!#$%&'*+.^`|~-]+) \S+ HTTP/1\.\d\r?$", re.MULTILINE)
_WITHOUT_PATH: Final = re.compile(rb"^\w+://[^/?#]+(?=\?|$)")


class Protocol(HttpToolsProtocol):
    """Uvicorn's protocol within limits: sizes in bytes, times in seconds."""

    max_head_size = 64 * 1024
    arrival_time = 20.0  # from a request's first byte, or from the connection, to the request's last byte
    answer_time = 30.0  # for an answer to be read, beside the time that its size takes at `answer_rate`
    answer_rate = 64 * 1024
    flow: "_Flow"
    transport: Any  # `_OneWrite`, which Uvicorn takes for a transport
    _is_arriving = _is_in_head = True
    _is_deaf = _is_answered = False
    _unparsed = 0  # bytes since a head or a piece of a body was complete
    idle_since = 0.0
    unsent = 0  # the size of an answer of which the kernel has not taken all yet
    _refusal: AppError | None = None
    _deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as Uvicorn has it
        """Take a connection. Above the limit the longest idle is closed, or a request here is 503."""
        super().connection_made(cast(Transport, _OneWrite(transport, self.loop)))
        transport.set_write_buffer_limits(0)  # `pause_writing` tells of each byte that waits
        self.flow = _Flow(self.transport)
        self.flow.waiting = self.pipeline
        self.app_state.setdefault(UNSENT, partial(_unsent, self.connections))
        self._limit(self.arrival_time, self._give_up)
        self.idle_since = self.loop.time()
        most, self.limit_concurrency = self.limit_concurrency, None  # Uvicorn's 503 has another shape
        if most is not None and len(self.connections) > most:
            idle = [other for other in self.connections if other is not self and _is_idle(other)]
            if idle:
                min(idle, key=_idle_since).transport.close()
            else:
                self._refusal = errors.OverloadedError(reason="too_many_connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._limit(0, None)
        super().connection_lost(exc)

    def _limit(self, seconds: float, end: Callable[[], None] | None) -> None:
        """Replace the deadline of this connection."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, end) if end else None

    def data_received(self, data: bytes) -> None:
        """Parse `data`; what is left to come of a request has its time."""
        while data and not self._is_deaf:
            self._unparsed += len(data)
            data = self._parse(data)
        if self._is_arriving and self._unparsed > self.max_head_size:
            self._refuse(errors.HeadersTooLargeError())
        elif self._is_arriving and self._deadline is None:
            self._limit(self.arrival_time, self._give_up)

    def _parse(self, data: bytes) -> bytes:
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as stop:
            if not self._is_in_head:  # CONNECT: what comes behind it is no request
                self.cycle.keep_alive = False
                self._stop()
                return b""
            # The request stays HTTP/1.1 (RFC 9110 section 7.8), with its body.
            lines = [line for line in self.headers if line[0] != b"upgrade"]
            version = self.parser.get_http_version().encode()
            request_line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)
            return self._begin_anew(request_line, lines) + data[stop.args[0] :]
        except HttpParserError as error:
            self._refuse(_refusal_of(error, data))
        return b""

    def _begin_anew(self, request_line: bytes, lines: list[tuple[bytes, bytes]]) -> bytes:
        """Take a new parser, and return the head that it is to parse."""
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as Uvicorn's
        self._unparsed = 0
        return b"%s\r\n%s\r\n" % (request_line, b"".join(b"%s: %s\r\n" % line for line in lines))

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._is_arriving = self._is_in_head = True

    def on_headers_complete(self) -> None:
        """Hand the request to the application, with the error to answer if there is one."""
        size = len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)
        if size > self.max_head_size:
            self._refusal = errors.HeadersTooLargeError()
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT" and self._refusal is None:
            return
        if not self.url.startswith(b"/"):
            self.url = _WITHOUT_PATH.sub(rb"\g<0>/", self.url)  # RFC 9110 section 4.2.3
        super().on_headers_complete()
        self._is_in_head, self._unparsed = False, 0
        self.headers = []  # fields behind a body are not headers (RFC 9110 section 6.5.1)
        if self._refusal is not None:
            self.scope["state"][REFUSAL], self.cycle.keep_alive = self._refusal, False
            self._stop()
            raise self._refusal  # the parser stops here

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        super().on_body(body)
        self._unparsed = 0

    def on_message_complete(self) -> None:
        """End the request's arrival."""
        if not self.parser.should_upgrade():
            super().on_message_complete()
            self._is_arriving, self._unparsed = False, 0
            if self._deadline is not None and not self.unsent:
                self._limit(0, None)

    def on_response_complete(self) -> None:
        """Go on to the next request once the kernel has taken all of the answer."""
        if self.pipeline:
            self.transport.flush()  # else the event loop does, for all connections at once
        self._is_answered, self.idle_since = self.flow.write_paused, self.loop.time()
        if self._is_answered:
            self.flow.pause_reading()
        else:
            super().on_response_complete()

    def pause_writing(self) -> None:
        """Give the client its time to read; a trickle does not extend it."""
        super().pause_writing()
        self.flow.pause_reading()
        self.unsent = sum(len(piece) for piece in self.transport.written)
        self._limit(self.answer_time + self.unsent / self.answer_rate, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: all is sent."""
        super().resume_writing()
        self.unsent = 0
        self._limit(self.arrival_time, self._give_up if self._is_arriving else None)
        if self._is_answered:
            self.on_response_complete()
        else:
            self.flow.resume_reading()

    def _give_up(self) -> None:
        if self.scope is None:
            self.transport.close()
        else:
            self._refuse(errors.RequestTimeoutError())

    def _stop(self) -> None:
        self._is_deaf, self._is_arriving = True, False
        if not self.unsent:
            self._limit(0, None)

    def _refuse(self, error: AppError) -> None:
        """Answer `error` after all requests before it, and close."""
        if self._is_deaf:
            return
        self._stop()
        if self._is_in_head:
            self._refusal = error
            known = [line for line in self.headers if line[0] in {b"x-request-id", b"origin"}]
            head = self._begin_anew(b"GET / HTTP/1.1", known)
            with suppress(HttpParserError):
                self.parser.feed_data(head)
            self.scope["method"] = ""
        elif self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.scope["state"][CUT_SHORT] = error
            self.cycle.keep_alive = self.cycle.more_body = False
            self.cycle.message_event.set()


class _Flow(FlowControl):
    """Reads on once no request waits and no answer is unsent."""

    waiting: Sized = ()

    def resume_reading(self) -> None:
        if not self.waiting and not self.write_paused:
            super().resume_reading()


class _OneWrite:
    """Joins what is written at once: an answer's head and body are one system call, not two."""

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        self._transport, self._loop, self.written = transport, loop, list[bytes]()
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self.written:
            self._loop.call_soon(self.flush)
        self.written.append(data)

    def flush(self) -> None:
        if self.written and not self.is_closing():
            self._transport.writelines(self.written)
        self.written = []

    def close(self) -> None:
        self.flush()
        self._transport.close()


def _is_idle(protocol: Any) -> bool:
    is_answered = protocol.cycle is None or (protocol.cycle.response_complete and not protocol.unsent)
    return is_answered and not protocol.transport.is_closing()


def _idle_since(protocol: Any) -> float:
    return cast(float, protocol.idle_since)


def _unsent(connections: Any) -> int:
    return sum(protocol.unsent for protocol in connections)


def _refusal_of(error: HttpParserError, data: bytes) -> AppError:
    if str(error) == "Content-Length overflow":
        return errors.ContentTooLargeError()
    methods = _REQUEST_LINE.findall(data) if isinstance(error, HttpParserInvalidMethodError) else []
    is_unknown = any(method.decode() not in METHODS for method in methods)
    return errors.UnknownMethodError() if is_unknown else errors.MalformedRequestError()
