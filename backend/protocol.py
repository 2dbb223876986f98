"""HTTP/1.1 as the service speaks it: Uvicorn's, and what one connection may take of it.

Whoever is slow, endless or garbled holds a connection for a bounded time, and is told in the one error shape.
"""

import re
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Mapping
from http import HTTPStatus
from operator import attrgetter
from typing import Any, Final, cast

import msgspec
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from loguru import logger
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from backend import errors
from backend.errors import AppError
from backend.middleware import CUT_SHORT, SHED, request_id_of
from backend.transport import Flow, OneWrite, notice_silence

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request's line and headers."""
ARRIVAL_SECONDS: Final = 20.0
"""From the first byte of a request, or from the connection, to the last."""
SHED_SECONDS: Final = 1.0
"""What `Retry-After` says."""

_HOST = re.compile(rb"(\[[\da-fA-F:.]+\]|[\w.~!$&'()*+,;=%-]*)(:\d*)?[ \t]*")  # RFC 3986 section 3.2.2
_FRAMING = (b"content-length", b"transfer-encoding")
_BEYOND_64_BITS = re.compile(rb"\r\ncontent-length:[ \t]*\d{20,}[ \t]*\r\n", re.IGNORECASE)


class Protocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1, within limits on connections, headers and the time that a request takes to come.

    Most requests arrive whole in one piece: then none of this costs more than a comparison.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Uvicorn would refuse in words of its own, and count those that do nothing.
        self._most_connections, self.limit_concurrency = self.limit_concurrency, None
        self._is_arriving, self._is_in_head, self._is_refused = True, True, False
        self._useless_bytes = 0
        """Since the last head or piece of a body was complete: in an unfinished head, or behind a body."""
        self._framing: list[tuple[bytes, bytes]] = []
        """Of a body that the parser does not look for."""
        self._arrival: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as Uvicorn has it
        """Take a connection; where there are too many, an idle one is closed for it, or it is refused."""
        super().connection_made(cast(Transport, OneWrite(transport, self.loop)))
        self.flow = Flow(self.transport, self.pipeline)
        notice_silence(transport)
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
        self._end_arrival()

    def eof_received(self) -> bool:  # type: ignore[override]  # Uvicorn never goes on
        """Answer what is under way: who has said all may still listen (RFC 9112 section 9.6)."""
        self._end_arrival()
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
            self._useless_bytes += len(data)
            data = self._parse(data)
        if self._useless_bytes > MAX_HEAD_BYTES and self._is_arriving:
            self._refuse(errors.HeadersTooLargeError())
        if self._is_arriving and self._arrival is None:
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
        lines = b"".join(b"%s: %s\r\n" % line for line in self._framing)
        self._framing = []
        self.parser = HttpRequestParser(_Rest(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as Uvicorn's
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % lines)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._is_arriving = True

    def on_headers_complete(self) -> None:
        """Begin to serve it, unless it is too long or doesn't say where it goes; raises `AppError`."""
        if self._head_bytes() > MAX_HEAD_BYTES:
            raise errors.HeadersTooLargeError
        hosts = [value for name, value in self.headers if name == b"host"]
        is_named = len(hosts) == 1 and _HOST.fullmatch(hosts[0])
        if not is_named and (hosts or self.parser.get_http_version() != "1.0"):
            raise errors.MalformedRequestError(reason="host")  # RFC 9112 section 3.2
        super().on_headers_complete()
        self._is_in_head, self._useless_bytes = False, 0
        if self.parser.should_upgrade():
            self._framing = [line for line in self.headers if line[0] in _FRAMING]
        self.headers = []  # what comes behind a body is no header (RFC 9110 section 6.5.1)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        """Take in a piece of a body."""
        super().on_body(body)
        self._useless_bytes = 0

    def on_message_complete(self) -> None:
        """End a request, of which all has come."""
        if self._framing:
            return  # but its body
        super().on_message_complete()
        self._is_in_head, self._useless_bytes = True, 0
        self._end_arrival()

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

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing is under way and nothing arrives."""
        if _is_idle(self) and not self._is_arriving:
            super().timeout_keep_alive_handler()

    def _limit_arrival(self) -> None:
        self._arrival = self.loop.call_later(ARRIVAL_SECONDS, self._give_up)

    def _end_arrival(self) -> None:
        self._is_arriving = False
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _give_up(self) -> None:
        """End a request that does not come to its end, or a connection on which none has begun."""
        if self.scope is None:
            self.transport.close()
        else:
            self._refuse(errors.RequestTimeoutError())

    def _refuse(self, error: AppError) -> None:
        """Hear no more: what came is no request, or comes to no end. Whatever came before it is answered."""
        self._is_refused = True
        self._end_arrival()
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
        request_id = request_id_of(cast(Scope, self.scope or {"headers": ()}))
        ip = self.client[0] if self.client else None
        unknown = dict.fromkeys(("user_id", "method", "route", "duration_ms"))
        line = {"request_id": request_id, "ip": ip, **unknown, "status": error.status}
        logger.bind(**line, reason=error.reason).info("http.request")
        self.transport.write(_as_bytes(error, dict(self.server_state.default_headers), request_id))
        self.transport.close()


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


def _is_idle(protocol: Any) -> bool:
    return (
        protocol.cycle is None or protocol.cycle.response_complete
    ) and not protocol.transport.is_closing()


def _as_bytes(error: AppError, headers: Mapping[bytes, bytes], request_id: str) -> bytes:
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
