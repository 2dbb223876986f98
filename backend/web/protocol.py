"""Limits each connection: a slow, oversized or malformed request gets an error response and is closed.

Uvicorn's own protocol limits neither heads, nor the time of a request or an answer, nor unsent bytes.
"""

import math
import re
from asyncio import Transport
from collections.abc import Sized
from itertools import chain
from operator import attrgetter
from typing import Any, Final

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from backend.web import errors
from backend.web.cross_origin import METHODS
from backend.web.errors import AppError
from backend.web.middleware import CONNECTIONS, CUT_SHORT, REFUSAL

_KNOWN: Final = "|".join(METHODS).encode()
_UNKNOWN_METHOD: Final = re.compile(rb"(?m)^(?!(%s) )[\w!#$%%&'*+.^`|~-]+ \S+ HTTP/1\.\d\r?$" % _KNOWN)
_WITHOUT_PATH: Final = re.compile(rb"^\w+://[^/?#]+(?=\?|$)")
_FINAL_STATUS: Final = re.compile(rb"HTTP/1\.1 [2-5]")


class Protocol(HttpToolsProtocol):
    """Uvicorn's protocol within limits: sizes in bytes, times in seconds.

    Its timer for an idle connection also limits the arrival of a request and the reading of an answer.
    """

    max_head_size = 64 * 1024
    arrival_time = 20.0
    answer_time = 30.0  # for an answer to be read, beside the time that its size takes at `answer_rate`
    answer_rate = 64 * 1024
    unsent = 0  # the size of an answer of which the kernel has not taken all yet
    idle_since = math.inf  # infinite while a request is served
    _unparsed = 0  # bytes since a head or a piece of a body was complete
    _arrived = _timed = None  # the scopes of the last request that is complete, and of the last with a timer
    _is_answered = _is_deaf = False
    flow: "_Flow"

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as Uvicorn has it
        """Take a connection, and make room for it if there are too many."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # `pause_writing` tells of each byte that waits
        self.flow = self.transport = _Flow(transport, self.pipeline)  # type: ignore[assignment]  # it has what Uvicorn uses
        self._allow(self.arrival_time)
        self.app_state.setdefault(CONNECTIONS, self.connections)
        most, self.limit_concurrency = self.limit_concurrency, None  # Uvicorn's 503 has another shape
        if most is not None and len(self.connections) > most:
            self._make_room()
        self.idle_since = self.loop.time()

    def _make_room(self) -> None:
        """Close the connection that is idle for longest; if there is none, requests on this one are 503."""
        longest: Any = min(self.connections, key=attrgetter("idle_since"))
        if longest.idle_since < math.inf:
            self.connections.remove(longest)
            longest.transport.abort()
        else:
            self.app_state = self.app_state | {REFUSAL: errors.OverloadedError(reason="too_many_connections")}

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; Uvicorn keeps the timer, and with it the memory, of one that was reset."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def _allow(self, seconds: float) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Answer 408 to a request that has begun; close a connection that is idle or not read."""
        if self.scope is not self._arrived and not self.flow.write_paused:
            self._refuse(errors.RequestTimeoutError())
        elif self.flow.write_paused or self.idle_since < math.inf:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse `data`; the rest of a request that is not complete has its time."""
        self._unparsed += len(data)
        while data and not self._is_deaf:
            try:
                self.parser.feed_data(data)
                break
            except HttpParserUpgrade as stop:
                data = self._head_without_upgrade() + data[stop.args[0] :]
            except HttpParserError as error:
                self._refuse(_refusal_of(error, data))
        if self.scope is self._arrived:
            return
        if self._unparsed > self.max_head_size:
            self._refuse(errors.HeadersTooLargeError())
        elif self._timed is not self.scope:
            self._timed = self.scope
            self._allow(self.arrival_time)

    def _head_without_upgrade(self) -> bytes:
        """Return the head for a new parser, because the request stays HTTP/1.1 (RFC 9110 section 7.8)."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as Uvicorn's
        lines = [b"%s: %s\r\n" % line for line in self.headers if line[0] != b"upgrade"]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(lines))

    def on_headers_complete(self) -> None:
        """Hand the request to the application, with the error to answer if there is one."""
        is_connect = self.parser.get_method() == b"CONNECT"
        if self.parser.should_upgrade() and not is_connect:
            return
        size = len(self.url) + sum(map(len, chain(*self.headers))) + len(b": \r\n") * len(self.headers)
        if size > self.max_head_size:
            self.scope["state"][REFUSAL] = errors.HeadersTooLargeError()
        if not self.url.startswith(b"/"):
            self.url = _WITHOUT_PATH.sub(rb"\g<0>/", self.url)  # RFC 9110 section 4.2.3
        super().on_headers_complete()
        self.idle_since, self._unparsed = math.inf, 0
        self.headers = []  # fields behind a body are not headers (RFC 9110 section 6.5.1)
        self._is_deaf = is_connect or REFUSAL in self.scope["state"]
        if self._is_deaf:
            self._arrived, self.cycle.keep_alive = self.scope, False

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        super().on_body(body)
        self._unparsed = 0

    def on_message_complete(self) -> None:
        """End the request's arrival."""
        if not self.parser.should_upgrade():
            super().on_message_complete()
            self._arrived, self._unparsed = self.scope, 0
            if self.cycle.response_complete:
                self._allow(self.timeout_keep_alive)

    def on_response_complete(self) -> None:
        """Go on to the next request once the kernel has taken all of the answer."""
        if self.flow.written:  # the answer to a HEAD request, which has no body to wait for
            self.flow.write(b"")
        self._is_answered = self.flow.write_paused
        if not self._is_answered:
            self.idle_since = math.inf if self.pipeline else self.loop.time()
            super().on_response_complete()
            if self.scope is not self._arrived:
                self._allow(self.arrival_time)

    def pause_writing(self) -> None:
        """Give the client its time to read; a trickle does not extend it."""
        super().pause_writing()
        self.flow.pause_reading()
        self.unsent = sum(map(len, self.flow.written))
        self._allow(self.answer_time + self.unsent / self.answer_rate)

    def resume_writing(self) -> None:
        """Go on: all is sent."""
        super().resume_writing()
        self.unsent = 0
        self.flow.resume_reading()
        if self._is_answered:
            self.on_response_complete()

    def _refuse(self, error: AppError) -> None:
        """Answer `error` after all requests before it, and close."""
        if self.cycle is None or self.cycle.scope is not self.scope:
            self.url, self.scope["state"][REFUSAL] = b"/", error
            self.on_headers_complete()
            self.scope["method"] = ""
            return
        self._is_deaf, self._arrived = True, self.scope
        if self.cycle.response_complete:
            self.transport.close()
        else:
            self.scope["state"][CUT_SHORT] = error
            self.cycle.keep_alive = self.cycle.more_body = False
            self.cycle.message_event.set()


class _Flow(FlowControl):
    """Reads on once no request waits and no answer is unsent; writes an answer's head with its body."""

    def __init__(self, transport: Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting, self.written = waiting, list[bytes]()
        self.is_closing, self.abort = transport.is_closing, transport.abort

    def resume_reading(self) -> None:
        if not self._waiting and not self.write_paused:
            super().resume_reading()

    def write(self, data: bytes) -> None:
        self.written.append(data)
        if not _FINAL_STATUS.match(data) and not self.is_closing():
            self._transport.writelines(self.written)
            self.written = []

    def close(self) -> None:
        self.write(b"")
        self._transport.close()


def _refusal_of(error: HttpParserError, data: bytes) -> AppError:
    if str(error) == "Content-Length overflow":
        return errors.ContentTooLargeError()
    if isinstance(error, HttpParserInvalidMethodError) and _UNKNOWN_METHOD.search(data):
        return errors.UnknownMethodError()
    return errors.MalformedRequestError()
