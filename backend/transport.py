"""Between HTTP and its socket: when is written, when is read, and when a silent client is given up."""

import socket
from asyncio import AbstractEventLoop, Transport
from collections.abc import Sized
from typing import Final, cast

from uvicorn.protocols.http.flow_control import FlowControl

UNACKNOWLEDGED_SECONDS: Final = 30
"""How long a client may leave an answer unread."""


class OneWrite:
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


class Flow(FlowControl):
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


def notice_silence(transport: Transport) -> None:
    """Let the kernel give up on a client that acknowledges nothing for so long (RFC 5482), where it can."""
    client = cast("socket.socket | None", transport.get_extra_info("socket"))
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and client is not None and client.family in {socket.AF_INET, socket.AF_INET6}:
        client.setsockopt(socket.IPPROTO_TCP, option, UNACKNOWLEDGED_SECONDS * 1000)
