"""A TCP proxy before PostgreSQL or the service, which cuts or silences connections when told to."""

import ctypes
import socket
import struct
import threading
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Self

from backend.database.url import connect_arguments

_ATTACH_FILTER, _DETACH_FILTER = 26, 27
_KEEP_NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF: return 0
_FILTER = struct.pack("HL", 1, ctypes.addressof(_KEEP_NOTHING))


class Loss(Enum):
    """The treatment of a message that `lose` has named."""

    CUT_BEFORE = "the connection breaks before the server has it"
    CUT_AFTER = "the connection breaks when the server has answered it"
    CUT_WITHIN = "the connection breaks in the middle of the answer"
    NO_ANSWER = "the server has it, and its answer never arrives"
    SILENCE = "from here on nothing arrives, on any connection"


class _Link:
    """One connection through the proxy; it forwards while `clear` is set."""

    def __init__(self, client: socket.socket, server: socket.socket, clear: threading.Event) -> None:
        self.client, self.server, self.clear = client, server, clear
        self.loss: Loss | None = None

    def cut(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Forwards from a port of its own to a server's socket, until it is told to fail."""

    def __init__(self, upstream: Path | tuple[str, int], database: str = "postgres") -> None:
        self._upstream, self._database = upstream, database
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._clear = threading.Event()
        self._clear.set()
        self._links: list[_Link] = []
        self._dropped: list[_Link] = []
        self._watched: tuple[bytes, Loss] | None = None
        self.lost = threading.Event()
        """Set once the message that `lose` has named arrives."""
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @classmethod
    def before(cls, url: str) -> Self:
        """Return a proxy before the database with this URL."""
        arguments = connect_arguments(url)
        (host,), (port,) = arguments["host"], arguments["port"]
        upstream = Path(host, f".s.PGSQL.{port}") if host.startswith("/") else (host, port)
        return cls(upstream, arguments["database"])

    @property
    def port(self) -> int:
        """The port of the proxy."""
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """The database behind it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{self._database}?sslmode=disable"

    def lose(self, marker: bytes, loss: Loss) -> None:
        """Lose the next message from the client that contains `marker`."""
        self.lost.clear()
        self._watched = (marker, loss)

    def fall_silent(self) -> None:
        """Take everything and forward nothing, on new connections neither; nothing is closed."""
        self._clear.clear()

    def drop_packets(self) -> None:
        """Let the kernel drop all packets from the service without acknowledgement, including SYNs."""
        self._dropped += self._links
        for end in (self._listener, *(link.client for link in self._links)):
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, _FILTER)

    def accept_connections(self) -> None:
        """Serve new connections after `drop_packets`, while the old ones stay dead."""
        self._listener.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)

    def heal(self) -> None:
        """Forward again, what was held back first."""
        self._clear.set()

    def forget(self) -> None:
        """Forward new connections. Existing ones stay silent, as after a router's restart.

        Those of `drop_packets` end, because the proxy never hears that the service has closed them.
        """
        for link in self._dropped:
            link.cut()
        if not self._clear.is_set():
            self._clear = threading.Event()
            self._clear.set()

    def close(self) -> None:
        """Cut everything."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for link in self._links:
            link.clear.set()
            link.cut()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, self._connect() as server:
            link = _Link(client, server, self._clear)
            self._links.append(link)
            answers = threading.Thread(target=self._forward_answers, args=(link,))
            answers.start()
            self._forward_requests(link)
            answers.join()

    def _connect(self) -> socket.socket:
        if isinstance(self._upstream, tuple):
            return socket.create_connection(self._upstream)
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self._upstream))
        except OSError:
            server.close()
            raise
        return server

    def _forward_requests(self, link: _Link) -> None:
        with suppress(OSError):
            while data := link.client.recv(2**16):
                if self._is_watched(data):
                    self._fail(link)
                link.clear.wait()
                link.server.sendall(data)
        link.cut()

    def _forward_answers(self, link: _Link) -> None:
        with suppress(OSError):
            while (data := link.server.recv(2**16)) and link.loss is None:
                link.clear.wait()
                link.client.sendall(data)
            if link.loss is Loss.CUT_WITHIN:
                link.client.sendall(data[:-1])
        if link.loss is not Loss.NO_ANSWER:
            link.cut()

    def _is_watched(self, data: bytes) -> bool:
        return self._watched is not None and self._watched[0] in data

    def _fail(self, link: _Link) -> None:
        assert self._watched is not None
        _, loss = self._watched
        self._watched = None
        self.lost.set()  # first: the service may answer before the next line is run
        if loss is Loss.CUT_BEFORE:
            link.cut()
        elif loss is Loss.SILENCE:
            self.fall_silent()
        else:
            link.loss = loss
