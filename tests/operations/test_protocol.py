"""Slow, endless and garbled clients hold nothing for long, and hear of it in the one error shape."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from backend import protocol
from tests.conftest import Postgres
from tests.service import JWT_SECRET, Service, program_with, running

HASTY = program_with(
    "backend.protocol.ARRIVAL_SECONDS = 3",
    "backend.server.KEEP_ALIVE_SECONDS = 4",
    "backend.transport.UNACKNOWLEDGED_SECONDS = 2",
)
MOST = 20
POST = b"POST /auth/login HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\n"
BODY = b'{"email": "nobody@example.com", "password": "wrong"}'
LOGIN = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
"""A whole request, which is answered with 401."""
GET = b"GET /health HTTP/1.1\r\nHost: api\r\n"


@pytest.fixture(scope="module")
def hasty(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that waits seconds for what it otherwise waits long for, and takes few clients."""
    log = tmp_path_factory.mktemp("hasty") / "log"
    settings = {"DATABASE_URL": database.url, "JWT_SECRET": JWT_SECRET, "MAX_CONNECTIONS": str(MOST)}
    with running(log, program=HASTY, **settings) as service:
        yield service


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(sockets: ExitStack, service: Service) -> socket.socket:
    port = int(service.url.rpartition(":")[2])
    return sockets.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))


def until_closed(client: socket.socket) -> bytes:
    """Return all that comes until the service closes."""
    received = b""
    while part := client.recv(65536):
        received += part
    return received


def answer(client: socket.socket) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return the status, headers and error of the answer, after which the service has closed."""
    head, _, body = until_closed(client).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    error = json.loads(body)
    assert error["status_code"] == int(status.split()[1])
    assert error["request_id"] == headers["x-request-id"]
    assert headers["connection"] == "close"
    return error["status_code"], headers, error


def test_what_is_no_http_is_refused_in_the_one_error_shape(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    client.sendall(b"\x16\x03\x01 this is TLS, or nothing\r\n\r\n")
    status, headers, error = answer(client)
    assert (status, error["code"]) == (400, "malformed_request")
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("length", [2**16 + 1, 2**64 - 1, 2**64, 10**100])
def test_a_length_over_the_limit_is_413_however_long_it_is(
    service: Service, sockets: ExitStack, length: int
) -> None:
    client = connect(sockets, service)
    client.sendall(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % length)
    status, _, error = answer(client)
    assert (status, error["code"]) == (413, "content_too_large")


@pytest.mark.parametrize("end", [b"", b"\r\n"], ids=["unfinished", "finished"])
def test_headers_over_the_limit_are_431(service: Service, sockets: ExitStack, end: bytes) -> None:
    client = connect(sockets, service)
    header = b"X-Long: %s\r\n" % (b"x" * (protocol.MAX_HEAD_BYTES // 40))
    client.sendall(GET + header * 40 + end)
    assert answer(client)[2]["code"] == "headers_too_large"


def test_the_request_line_counts_as_well(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    line = b"GET /health?%s HTTP/1.1\r\n" % (b"x" * (protocol.MAX_HEAD_BYTES - 500))
    client.sendall(line + b"Host: api\r\nX-Request-ID: too-long\r\nX-Long: %s\r\n\r\n" % (b"x" * 1000))
    _, _, error = answer(client)
    assert (error["code"], error["request_id"]) == ("headers_too_large", "too-long")


def test_the_second_head_of_a_piece_has_the_same_limit(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    client.sendall(GET + b"\r\n" + GET + b"X-Long: %s\r\n\r\n" % (b"x" * protocol.MAX_HEAD_BYTES))
    received = until_closed(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) in ([b"200"], [b"200", b"431"])


def test_a_head_that_begins_behind_another_has_the_same_limit(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    client.sendall(GET + b"\r\n" + GET + b"X-Long: " + b"x" * protocol.MAX_HEAD_BYTES)
    assert client.recv(65536).startswith(b"HTTP/1.1 200")
    client.sendall(b"\r\n\r\n")
    assert answer(client)[2]["code"] == "headers_too_large"


def test_fields_behind_a_body_are_no_headers(service: Service, sockets: ExitStack) -> None:
    """RFC 9110 section 6.5.1: nobody signs in or changes their address there, however it arrives."""
    trailer = b"Authorization: Bearer %s\r\n\r\n" % service.register().tokens["access_token"].encode()
    request = (
        b"GET /tasks HTTP/1.1\r\nHost: api\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    )
    client = connect(sockets, service)
    client.sendall(request + trailer)
    assert answer(client)[2]["code"] == "not_authenticated"


@pytest.mark.parametrize("path", [b"/auth/login", b"/nowhere"], ids=["read", "refused before"])
def test_fields_behind_a_body_are_not_collected_for_ever(
    service: Service, sockets: ExitStack, path: bytes
) -> None:
    client = connect(sockets, service)
    client.sendall(b"POST %s HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" % path)
    with pytest.raises(OSError, match=r"reset|Broken"):  # it is refused long before
        client.sendall(b"a: b\r\n" * 2**27)


def test_a_header_without_an_end_is_not_collected_for_ever(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    client.sendall(b"GET /health HTTP/1.1\r\nX-Endless: ")
    gibibyte = b"x" * 2**30
    with pytest.raises(OSError, match=r"reset|Broken"):  # it is refused long before
        client.sendall(gibibyte)


def test_headers_just_under_the_limit_are_served(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    head = GET + b"Connection: close\r\nX-Long: "
    client.sendall(head + b"x" * (protocol.MAX_HEAD_BYTES - len(head) - 100) + b"\r\n\r\n")
    assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "beginning",
    [b"GET /hea", b"GET /health HTTP/1.1\r\nHost: a", POST + b"Content-Length: 100\r\n\r\n{"],
    ids=["in its line", "in its headers", "in its body"],
)
def test_a_request_that_trickles_is_ended_with_408(
    hasty: Service, sockets: ExitStack, beginning: bytes
) -> None:
    client = connect(sockets, hasty)
    client.sendall(beginning)
    began = time.monotonic()
    while time.monotonic() - began < 1.5:
        client.sendall(b"a")
        time.sleep(0.1)
    status, _, error = answer(client)
    assert (status, error["code"]) == (408, "request_timeout")


def test_a_body_that_is_late_is_refused_like_all_else(hasty: Service, sockets: ExitStack) -> None:
    """With CORS headers, or a page would take it for a network error, and under the id that the log has."""
    client = connect(sockets, hasty)
    given = b"Origin: http://localhost:3000\r\nX-Request-ID: too-late\r\nContent-Length: 100\r\n\r\n{"
    client.sendall(POST + given)
    status, headers, error = answer(client)
    assert (status, error["request_id"]) == (408, "too-late")
    assert headers["access-control-allow-origin"] == "http://localhost:3000"
    assert hasty.lines(request_id="too-late", event="http.request")[0]["status"] == status


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health HTTP/1.1\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: api\r\nHost: other\r\n", 400),
        (b"GET /health HTTP/1.0\r\nHost: api\r\nHost: other\r\n", 400),
        (b"GET /health HTTP/1.0\r\n", 200),
        (b"GET /health HTTP/1.1\r\nHost: api other\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: api/path\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: \xe4pi\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: [::1]:8000 \r\n", 200),
        (b"GET /health HTTP/1.1\r\nHost:\r\n", 200),
    ],
    ids=[
        *("none", "two", "two in HTTP/1.0", "none in HTTP/1.0"),
        *("a space", "a path", "beyond ASCII", "an address", "an empty one"),
    ],
)
def test_a_request_names_its_host_once(
    service: Service, sockets: ExitStack, head: bytes, status: int
) -> None:
    """RFC 9112 section 3.2."""
    client = connect(sockets, service)
    client.sendall(head + b"\r\n")
    assert client.recv(65536).startswith(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize(
    "second",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"POST /auth/login HTTP/1.1\r\nContent-Length: 5\r\n\r\njunk!",
        b"\x16\x03\x01 no HTTP\r\n\r\n",
    ],
    ids=["without a host", "without a host, with a body", "no HTTP"],
)
def test_what_is_refused_leaves_the_request_before_it_alone(
    service: Service, sockets: ExitStack, second: bytes
) -> None:
    """Two in one piece: the first has its own body and its answer; then all ends (RFC 9112 section 9.3.2)."""
    client = connect(sockets, service)
    client.sendall(LOGIN + second)
    received = until_closed(client)
    assert received.startswith(b"HTTP/1.1 401")
    assert b"invalid_credentials" in received
    assert received.count(b"HTTP/1.1 ") == 1


def test_a_broken_body_leaves_the_request_before_it_alone(service: Service, sockets: ExitStack) -> None:
    """Both are answered in their order, each with one line in the log."""
    ids = ("broken-1", "broken-2")
    first = POST + b"X-Request-ID: broken-1\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    client = connect(sockets, service)
    client.sendall(first + POST + b"X-Request-ID: broken-2\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n")
    received = until_closed(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"401", b"400"]
    assert re.findall(rb'"code":"(\w+)"', received) == [b"invalid_credentials", b"malformed_request"]
    lines = [service.lines(event="http.request", request_id=request_id) for request_id in ids]
    assert [[line["status"] for line in found] for found in lines] == [[401], [400]]


def test_who_has_said_all_still_hears_the_answer(service: Service, sockets: ExitStack) -> None:
    """RFC 9112 section 9.6: some clients shut down their side once they have sent a request."""
    for request, status in (
        (LOGIN, 401),
        (GET + b"\r\n", 200),
        (POST + b"Content-Length: 100\r\n\r\n{", 400),
    ):
        client = connect(sockets, service)
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        received = until_closed(client)
        assert received.startswith(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize("end", [b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b""], ids=["upgrade", "CONNECT"])
def test_where_no_other_protocol_follows_the_next_request_does(
    service: Service, sockets: ExitStack, end: bytes
) -> None:
    """RFC 9110 section 7.8: who does not switch goes on as before, also with what came in the same piece."""
    method = b"GET" if end else b"CONNECT"
    client = connect(sockets, service)
    client.sendall(
        b"%s /health HTTP/1.1\r\nHost: api\r\n%s\r\n" % (method, end) * 3 + GET + b"Connection: close\r\n\r\n"
    )
    received = until_closed(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200" if end else b"405"] * 3 + [b"200"]
    assert [line for line in service.lines(level="WARNING") if "pgrade" in line["event"]] == []


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 52\r\n\r\n%s", b"Transfer-Encoding: chunked\r\n\r\n34\r\n%s\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("pieces", [1, 2, 1000])
def test_a_request_that_would_upgrade_has_its_body(
    service: Service, sockets: ExitStack, framing: bytes, pieces: int
) -> None:
    """As Java's HttpClient and `curl --http2` send it; a body taken for a request would be an attack."""
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    data = (POST + upgrade + framing % BODY) * 2 + GET + upgrade + b"Content-Length: 0\r\n\r\n"
    data += GET + b"Connection: close\r\n\r\n"
    client = connect(sockets, service)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    size = len(data) // pieces + 1
    for start in range(0, len(data), size):
        client.sendall(data[start : start + size])
    received = until_closed(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"401", b"401", b"200", b"200"]


def test_requests_are_not_collected_faster_than_they_are_answered(
    service: Service, sockets: ExitStack
) -> None:
    """Whether or not the client reads the answers."""
    process = psutil.Process(service.process.pid)
    before = process.memory_info().rss
    client = connect(sockets, service)
    client.settimeout(0.5)
    begun = time.monotonic()
    with suppress(TimeoutError):
        while time.monotonic() - begun < 4:
            client.sendall(b"GET /n HTTP/1.1\r\nHost:\r\n\r\n" * 10_000)
    assert process.memory_info().rss - before < 64 * 2**20


@pytest.mark.parametrize(
    ("request_", "rest"),
    [
        (GET + b"\r\n", b"\r\n"),
        (POST + b"Content-Length: 10\r\n\r\n", b"x" * 10),
    ],
    ids=["a line", "a body that nobody waited for"],
)
def test_what_is_no_request_keeps_no_connection(
    hasty: Service, sockets: ExitStack, request_: bytes, rest: bytes
) -> None:
    client = connect(sockets, hasty)
    client.sendall(request_.replace(b"/auth/login", b"/nowhere"))
    assert client.recv(65536).startswith(b"HTTP/1.1 ")
    client.sendall(rest)
    assert client.recv(65536) == b""


def test_a_request_that_begins_just_before_a_connection_would_be_closed_is_served(
    hasty: Service, sockets: ExitStack
) -> None:
    client = connect(sockets, hasty)
    request = GET + b"\r\n"
    client.sendall(request)
    assert client.recv(65536).startswith(b"HTTP/1.1 200")
    time.sleep(3)
    client.sendall(request[:5])
    time.sleep(2)
    client.sendall(request[5:])
    assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_each_request_has_its_own_time(hasty: Service, sockets: ExitStack) -> None:
    """Also where each piece ends one and begins the next."""
    request = GET + b"\r\n"
    client = connect(sockets, hasty)
    client.sendall(request[:5])
    began = time.monotonic()
    while time.monotonic() - began < 4.5:
        client.sendall(request[5:] + request[:5])
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.5)


def test_a_connection_that_asks_nothing_is_closed(hasty: Service, sockets: ExitStack) -> None:
    assert connect(sockets, hasty).recv(1) == b""


def test_a_slow_request_that_arrives_in_time_is_served(hasty: Service, sockets: ExitStack) -> None:
    client = connect(sockets, hasty)
    for part in (b"GET /health HTTP/1.1\r\n", b"Host: api\r\nConnection: close", b"\r\n\r\n"):
        client.sendall(part)
        time.sleep(0.2)
    assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_connection_kept_alive_outlasts_the_time_of_one_request(hasty: Service, sockets: ExitStack) -> None:
    client = connect(sockets, hasty)
    for _ in range(3):
        client.sendall(GET + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(1.5)


def test_idle_and_trickling_clients_make_room_for_those_who_ask(hasty: Service, sockets: ExitStack) -> None:
    for _ in range(2 * MOST):
        connect(sockets, hasty).sendall(b"GET /health HT")
    client = connect(sockets, hasty)
    client.sendall(GET + b"Connection: close\r\n\r\n")
    assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_room_is_made_by_those_who_ask_nothing_first(hasty: Service, sockets: ExitStack) -> None:
    half = MOST // 2
    asking = [connect(sockets, hasty) for _ in range(half)]
    silent = [connect(sockets, hasty) for _ in range(half)]
    for client in (*asking, *silent):
        client.sendall(GET + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    for client in asking:
        client.sendall(b"GET /health HT")
    for _ in range(half):
        client = connect(sockets, hasty)
        client.sendall(GET + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    for client in asking:
        client.sendall(b"TP/1.1\r\nHost: api\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_where_all_are_at_work_one_more_is_503(hasty: Service, sockets: ExitStack) -> None:
    for _ in range(MOST):
        client = connect(sockets, hasty)
        client.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 100")
    client = connect(sockets, hasty)
    status, headers, error = answer(client)
    assert (status, error["code"]) == (503, "overloaded")
    assert int(headers["retry-after"]) >= 1
    sockets.close()
    deadline = time.monotonic() + 10
    while hasty.client().get("/health").status_code == 503:
        assert time.monotonic() < deadline


def test_an_answer_that_nobody_reads_does_not_hold_its_connection(hasty: Service, sockets: ExitStack) -> None:
    ada = hasty.register()
    for number in range(300):
        ada.create(f"Task {number}", description="x" * 1000)
    client = connect(sockets, hasty)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    request = (
        f"GET /tasks HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {ada.tokens['access_token']}\r\n\r\n"
    )
    client.sendall(request.encode() * 40)
    assert held_by_the_peer(client) != []
    deadline = time.monotonic() + 20
    while held_by_the_peer(client) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert held_by_the_peer(client) == []


def held_by_the_peer(client: socket.socket) -> list[str]:
    """Return the kernel's line on the other end of a connection, while it is established (proc(5))."""
    ours, theirs = (f"0100007F:{port:04X}" for _, port in (client.getsockname(), client.getpeername()))
    return re.findall(rf"^ *\d+: {theirs} {ours} 01 .*", Path("/proc/net/tcp").read_text(), re.MULTILINE)
