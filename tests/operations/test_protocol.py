"""Slow, oversized and malformed requests get an error response; none holds its connection for long."""

import json
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from backend.web.middleware import MAX_UNSENT_BYTES
from backend.web.protocol import Protocol
from tests.conftest import Postgres, locked
from tests.service import JWT_SECRET, Service, running

HASTY = (
    "-c",
    (
        "from backend.web import protocol, server;"
        "protocol.Protocol.arrival_time = 3;"
        "server.KEEP_ALIVE_SECONDS = 4;"
        "from backend.__main__ import main; main(['serve'])"
    ),
)
QUICK = (
    "-c",
    (
        "from backend.web import protocol;"
        "protocol.Protocol.answer_time, protocol.Protocol.answer_rate = 2, 2**22;"
        "from backend.__main__ import main; main(['serve'])"
    ),
)
MOST = 20
POST = b"POST /auth/login HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\n"
BODY = b'{"email": "nobody@example.com", "password": "wrong"}'
LOGIN = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
"""A whole request, which is answered with 401."""
GET = b"GET /health HTTP/1.1\r\nHost: api\r\n"
PREFLIGHT = (
    b"OPTIONS /tasks HTTP/1.1\r\nHost: api\r\nOrigin: http://localhost:3000\r\n"
    b"Access-Control-Request-Method: GET\r\n\r\n"
)


@pytest.fixture(scope="module")
def hasty(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with short times for a request and between requests, and a low limit on connections."""
    log = tmp_path_factory.mktemp("hasty") / "log"
    settings = {"DATABASE_URL": database.url, "JWT_SECRET": JWT_SECRET, "MAX_CONNECTIONS": str(MOST)}
    with running(log, program=HASTY, **settings) as service:
        yield service


@pytest.fixture(scope="module")
def quick(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that gives a client seconds to read an answer, and a second more for each 4 MiB."""
    log = tmp_path_factory.mktemp("quick") / "log"
    with running(log, program=QUICK, DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET) as service:
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


def pour(client: socket.socket, piece: bytes) -> None:
    """Send at least a gibibyte, unless the service refuses it long before."""
    for _ in range(2**30 // len(piece) + 1):
        client.sendall(piece)


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
    header = b"X-Long: %s\r\n" % (b"x" * (Protocol.max_head_size // 40))
    client.sendall(GET + header * 40 + end)
    assert answer(client)[2]["code"] == "headers_too_large"


def test_the_request_line_counts_as_well(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    line = b"GET /health?%s HTTP/1.1\r\n" % (b"x" * (Protocol.max_head_size - 500))
    client.sendall(line + b"Host: api\r\nX-Request-ID: too-long\r\nX-Long: %s\r\n\r\n" % (b"x" * 1000))
    _, _, error = answer(client)
    assert (error["code"], error["request_id"]) == ("headers_too_large", "too-long")


def test_the_second_head_of_a_piece_has_the_same_limit(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    client.sendall(GET + b"\r\n" + GET + b"X-Long: %s\r\n\r\n" % (b"x" * Protocol.max_head_size))
    received = until_closed(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) in ([b"200"], [b"200", b"431"])


def test_a_head_that_begins_behind_another_has_the_same_limit(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    client.sendall(GET + b"\r\n" + GET + b"X-Long: " + b"x" * Protocol.max_head_size)
    assert client.recv(65536).startswith(b"HTTP/1.1 200")
    client.sendall(b"\r\n\r\n")
    assert answer(client)[2]["code"] == "headers_too_large"


def test_fields_behind_a_body_are_no_headers(service: Service, sockets: ExitStack) -> None:
    """RFC 9110 section 6.5.1: trailers cannot carry a token or a client's address."""
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
    with pytest.raises(OSError, match=r"reset|Broken"):
        pour(client, b"a: b\r\n" * 2**14)


def test_a_header_without_an_end_is_not_collected_for_ever(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    client.sendall(b"GET /health HTTP/1.1\r\nX-Endless: ")
    with pytest.raises(OSError, match=r"reset|Broken"):
        pour(client, b"x" * 2**16)


def test_headers_just_under_the_limit_are_served(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    head = GET + b"Connection: close\r\nX-Long: "
    client.sendall(head + b"x" * (Protocol.max_head_size - len(head) - 100) + b"\r\n\r\n")
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


def test_a_request_that_trickles_behind_another_is_ended_with_408(hasty: Service, sockets: ExitStack) -> None:
    client = connect(sockets, hasty)
    client.sendall(GET + b"\r\n" + GET)
    assert client.recv(65536).startswith(b"HTTP/1.1 200")
    status, _, error = answer(client)
    assert (status, error["code"]) == (408, "request_timeout")


def test_a_body_that_is_late_is_refused_like_all_else(hasty: Service, sockets: ExitStack) -> None:
    """The response has CORS headers, because a page would see a network error, and the log's request id."""
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
        (b"GET /health HTTP/1.1\r\nHost: [::1]:8000 \r\n", 200),
        (b"GET /health HTTP/1.1\r\nHost:\r\n", 200),
    ],
    ids=[
        *("none", "two", "two in HTTP/1.0", "none in HTTP/1.0", "an address", "an empty one"),
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
    """Two in one piece: both are answered in their order (RFC 9112 section 9.3.2)."""
    client = connect(sockets, service)
    client.sendall(LOGIN + second)
    received = until_closed(client)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"401", b"400"]
    assert re.findall(rb'"code":"(\w+)"', received) == [b"invalid_credentials", b"malformed_request"]


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


def test_a_request_that_would_upgrade_is_answered_in_http_1_and_so_is_the_next(
    service: Service, sockets: ExitStack
) -> None:
    """RFC 9110 section 7.8: a server may ignore `Upgrade`. The requests arrive in one piece."""
    client = connect(sockets, service)
    upgrade = GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    client.sendall(upgrade * 3 + GET + b"Connection: close\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", until_closed(client)) == [b"200"] * 4
    assert [line for line in service.lines(level="WARNING") if "pgrade" in line["event"]] == []


def test_connect_is_405_and_nothing_behind_it_is_a_request(service: Service, sockets: ExitStack) -> None:
    client = connect(sockets, service)
    client.sendall(b"CONNECT /health HTTP/1.1\r\nHost: api\r\n\r\n" + GET + b"\r\n")
    status, headers, error = answer(client)
    assert (status, error["code"], headers["allow"]) == (405, "method_not_allowed", "GET, HEAD")


@pytest.mark.parametrize(
    ("framing", "status", "code"),
    [
        (b"Transfer-Encoding: gzip, chunked", 501, "transfer_coding_unsupported"),
        (b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 501, "transfer_coding_unsupported"),
        (b"Transfer-Encoding: gzip", 501, "transfer_coding_unsupported"),
        (b"Transfer-Encoding: identity", 501, "transfer_coding_unsupported"),
        (b"Transfer-Encoding: chunked, chunked", 400, "malformed_request"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5", 400, "malformed_request"),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked", 400, "malformed_request"),
        (b"Content-Length: 5\r\nContent-Length: 6", 400, "malformed_request"),
    ],
)
@pytest.mark.parametrize("upgrade", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"], ids=["", "upgrade"])
def test_a_body_that_is_not_plainly_framed_is_refused_and_never_a_request(  # noqa: PLR0917  # a table
    service: Service, sockets: ExitStack, framing: bytes, status: int, code: str, upgrade: bytes
) -> None:
    """RFC 9112 sections 6.1 and 6.3, with or without an `Upgrade`."""
    client = connect(sockets, service)
    client.sendall(POST + upgrade + b"X-Request-ID: framed\r\n" + framing + b"\r\n\r\n" + GET + b"\r\n")
    answered, headers, error = answer(client)
    assert (answered, error["code"]) == (status, code)
    if status == 501:
        assert headers["x-request-id"] == "framed"
    assert not [line for line in service.lines(level="ERROR") if line["event"] != "http.request"]


def test_a_chunk_that_is_no_chunk_is_400_also_where_the_request_would_upgrade(
    service: Service, sockets: ExitStack
) -> None:
    client = connect(sockets, service)
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    client.sendall(POST + upgrade + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n" + GET + b"\r\n")
    status, _, error = answer(client)
    assert (status, error["code"]) == (400, "malformed_request")


@pytest.mark.parametrize("method", [b"FOO", b"get", b"BREW-TEA", b"GETT"])
def test_a_method_that_nobody_knows_is_501_and_hears_which_there_are(
    service: Service, sockets: ExitStack, method: bytes
) -> None:
    client = connect(sockets, service)
    client.sendall(method + b" /tasks HTTP/1.1\r\nHost: api\r\n\r\n")
    status, _, error = answer(client)
    assert (status, error["code"]) == (501, "method_unknown")
    assert "GET, HEAD, POST, PUT, PATCH, DELETE and OPTIONS" in error["detail"]


@pytest.mark.parametrize("target", [b"http://host", b"http://host:80?x=1", b"HTTP://host"])
def test_an_absolute_target_without_a_path_means_the_root(
    service: Service, sockets: ExitStack, target: bytes
) -> None:
    """RFC 9110 section 4.2.3."""
    for method in ("GET", "OPTIONS"):
        root = service.client().request(method, "/").status_code
        client = connect(sockets, service)
        line = f"{method} {target.decode()} HTTP/1.1\r\nHost: host\r\nConnection: close\r\n\r\n"
        client.sendall(line.encode())
        assert until_closed(client).startswith(b"HTTP/1.1 %d" % root)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 52\r\n\r\n%s", b"Transfer-Encoding: chunked\r\n\r\n34\r\n%s\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("pieces", [1, 2, 1000])
def test_a_request_that_would_upgrade_has_its_body(
    service: Service, sockets: ExitStack, framing: bytes, pieces: int
) -> None:
    """Java's HttpClient and `curl --http2` send such requests. A body read as a request is an attack."""
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
    """The limit holds for clients that read the responses and for those that do not."""
    process = psutil.Process(service.process.pid)
    before = process.memory_info().rss
    client = connect(sockets, service)
    client.settimeout(0.5)
    begun = time.monotonic()
    with suppress(TimeoutError):
        while time.monotonic() - begun < 10:
            client.sendall(b"GET /n HTTP/1.1\r\nHost:\r\n\r\n" * 10_000)
    assert process.memory_info().rss - before < 32 * 2**20


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


def test_a_body_that_comes_after_its_answer_leaves_the_connection_its_idle_time(
    hasty: Service, sockets: ExitStack
) -> None:
    client = connect(sockets, hasty)
    client.sendall(POST.replace(b"/auth/login", b"/nowhere") + b"Content-Length: 10\r\n\r\n")
    assert client.recv(65536).startswith(b"HTTP/1.1 404")
    client.sendall(b"x" * 10)
    time.sleep(3.5)  # longer than a request may take to arrive
    client.sendall(GET + b"\r\n")
    assert client.recv(65536).startswith(b"HTTP/1.1 200")


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
    """It holds even if each piece ends one request and begins the next."""
    request = GET + b"\r\n"
    client = connect(sockets, hasty)
    client.sendall(request[:5])
    began = time.monotonic()
    while time.monotonic() - began < 4.5:
        client.sendall(request[5:] + request[:5])
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.5)


def test_a_connection_that_its_client_resets_leaves_no_memory(service: Service) -> None:
    """Such connections close before any timer ends, and the limit on connections does not count them."""
    process = psutil.Process(service.process.pid)
    for times in (500, 4000):  # the first to warm up
        before = process.memory_info().rss
        for _ in range(times):
            with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as client:
                client.sendall(GET + b"\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert process.memory_info().rss - before < 8 * 2**20


def test_a_connection_that_asks_nothing_is_closed(hasty: Service, sockets: ExitStack) -> None:
    assert connect(sockets, hasty).recv(1) == b""


def test_a_slow_request_that_arrives_in_time_is_served(hasty: Service, sockets: ExitStack) -> None:
    client = connect(sockets, hasty)
    for part in (b"GET /health HTTP/1.1\r\n", b"Host: api\r\nConnection: close", b"\r\n\r\n"):
        client.sendall(part)
        time.sleep(0.2)
    assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_request_that_has_arrived_may_be_served_for_longer(
    hasty: Service, sockets: ExitStack, database: Postgres, pieces: int
) -> None:
    """Neither the time to arrive nor the time between requests, which began before, ends it."""
    ada = hasty.register()
    task_id = ada.create()["id"]
    line = f"PATCH /tasks/{task_id}/complete HTTP/1.1\r\nHost: api\r\n"
    request = f"{line}Authorization: Bearer {ada.tokens['access_token']}\r\n\r\n".encode()
    client = connect(sockets, hasty)
    client.sendall(GET + b"\r\n")
    assert client.recv(65536).startswith(b"HTTP/1.1 200")
    with locked(database, task_id):
        for start in range(0, len(request), len(request) // pieces + 1):
            client.sendall(request[start : start + len(request) // pieces + 1])
            time.sleep(0.2)
        time.sleep(4.2)
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


def test_the_longest_idle_makes_room(hasty: Service, sockets: ExitStack) -> None:
    """A connection with a recent response may be about to send its next request."""
    clients = [connect(sockets, hasty) for _ in range(MOST)]
    for client in [*clients, *clients[: MOST // 2]]:
        client.sendall(GET + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.002)  # the event loop's clock counts milliseconds
    for _ in range(MOST // 2):
        clients.append(connect(sockets, hasty))
        clients[-1].sendall(GET + b"\r\n")
        assert clients[-1].recv(65536).startswith(b"HTTP/1.1 200")
    kept, closed = clients[: MOST // 2] + clients[MOST:], clients[MOST // 2 : MOST]
    for client in kept:
        client.sendall(GET + b"\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert [client.recv(65536) for client in closed] == [b""] * len(closed)


def test_where_all_are_at_work_one_more_is_503(hasty: Service, sockets: ExitStack) -> None:
    for _ in range(MOST):
        client = connect(sockets, hasty)
        client.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 100")
    client = connect(sockets, hasty)
    client.sendall(GET + b"\r\n")
    status, headers, error = answer(client)
    assert (status, error["code"]) == (503, "overloaded")
    assert int(headers["retry-after"]) >= 1
    client = connect(sockets, hasty)  # a page can read the 503 only if its preflight succeeds
    client.sendall(PREFLIGHT)
    assert client.recv(65536).startswith(b"HTTP/1.1 200")
    sockets.close()
    deadline = time.monotonic() + 10
    while hasty.client().get("/health").status_code == 503:
        assert time.monotonic() < deadline


READERS = 39
TASKS = 1000


@pytest.fixture
def long_list(database: Postgres) -> Callable[[Service], bytes]:
    """Make a request for a list of four megabytes."""

    def make(service: Service) -> bytes:
        ada = service.register()
        database.sql(
            "INSERT INTO tasks (user_id, title, title_key, description, completed, created_at, updated_at)"
            " SELECT $1, 'Task', 'task', repeat('\U0001f600', 1000), false, now(), now()"
            " FROM generate_series(1, $2)",
            ada.id,
            TASKS,
        )
        token = ada.tokens["access_token"]
        return f"GET /tasks HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {token}\r\n\r\n".encode()

    return make


def slow_reader(sockets: ExitStack, service: Service, request: bytes) -> socket.socket:
    """Send a request, and return a socket with a small receive buffer."""
    client = sockets.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(20)
    client.connect(("127.0.0.1", int(service.url.rpartition(":")[2])))
    client.sendall(request)
    return client


def trickle(clients: Iterable[socket.socket], seconds: float) -> None:
    """Read a little of each again and again."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        for client in select.select(clients, [], [], 0)[0]:
            with suppress(OSError):
                client.recv(100)
        time.sleep(0.1)


def test_slow_readers_hold_a_bounded_memory_and_the_rest_hear_503(
    service: Service, sockets: ExitStack, long_list: Callable[[Service], bytes]
) -> None:
    request = long_list(service)
    process = psutil.Process(service.process.pid)
    before = process.memory_info().rss
    readers = [slow_reader(sockets, service, request * 2) for _ in range(READERS)]
    trickle(readers, 5)
    assert process.memory_info().rss - before < MAX_UNSENT_BYTES + 100 * 2**20
    client = connect(sockets, service)
    client.sendall(request.replace(b"Host: api", b"Host: api\r\nConnection: close"))
    status, headers, error = answer(client)
    assert (status, error["code"]) == (503, "overloaded")
    assert int(headers["retry-after"]) >= 1
    assert service.client().get("/health").status_code == 200


def test_the_second_request_of_a_connection_waits_until_the_first_answer_is_sent(
    service: Service, sockets: ExitStack, long_list: Callable[[Service], bytes]
) -> None:
    request = long_list(service)
    second = request.replace(b"Host: api", b"Host: api\r\nConnection: close\r\nX-Request-ID: the-second")
    client = slow_reader(sockets, service, request + second)
    trickle([client], 2)
    assert service.lines(request_id="the-second") == []
    received = until_closed(client)
    assert service.lines(request_id="the-second", event="http.request")[0]["status"] == 200
    assert received.count(b'"title"') in {2 * TASKS, 2 * TASKS - 1}  # a little of the first was read before


@pytest.mark.parametrize("times", [1, 40])
def test_an_answer_that_is_read_too_slowly_does_not_hold_its_connection(
    quick: Service, sockets: ExitStack, long_list: Callable[[Service], bytes], times: int
) -> None:
    client = slow_reader(sockets, quick, long_list(quick) * times)
    deadline = time.monotonic() + 20
    trickle([client], 1)
    assert held_by_the_peer(client) != []
    while held_by_the_peer(client) and time.monotonic() < deadline:
        trickle([client], 0.2)
    assert held_by_the_peer(client) == []


def test_an_answer_that_is_read_in_its_time_is_whole(
    service: Service, sockets: ExitStack, long_list: Callable[[Service], bytes]
) -> None:
    request = long_list(service).replace(b"Host: api", b"Host: api\r\nConnection: close")
    client = slow_reader(sockets, service, request)
    head, _, body = until_closed(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert len(json.loads(body)) == TASKS


def held_by_the_peer(client: socket.socket) -> list[str]:
    """Return the kernel's line on the other end of a connection, while it is established (proc(5))."""
    ours, theirs = (f"0100007F:{port:04X}" for _, port in (client.getsockname(), client.getpeername()))
    return re.findall(rf"^ *\d+: {theirs} {ours} 01 .*", Path("/proc/net/tcp").read_text(), re.MULTILINE)


@pytest.mark.parametrize("trusted", ["::ffff:127.0.0.0/104", "::ffff:127.0.0.1, ::ffff:7f00:2"])
def test_a_proxy_may_be_named_and_name_others_by_mapped_addresses(
    database: Postgres, tmp_path: Path, trusted: str
) -> None:
    """RFC 4291 section 2.5.5.2; proxies that don't use inet_ntop(3) write them in hexadecimal."""
    settings = {"DATABASE_URL": database.url, "JWT_SECRET": JWT_SECRET, "FORWARDED_ALLOW_IPS": trusted}
    with running(tmp_path / "log", **settings) as service:
        names = {"X-Forwarded-For": "203.0.113.5, ::ffff:7f00:2", "X-Request-ID": "forwarded"}
        service.client(headers=names).get("/health").raise_for_status()
        assert [line["ip"] for line in service.lines(request_id="forwarded")] == ["203.0.113.5"]


STREAMING = (
    "-c",
    """
from fastapi.responses import StreamingResponse
from backend import app
from backend.__main__ import main

create_app = app.create_app

def with_a_stream():
    application = create_app()

    @application.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(bytes(2**20) for _ in range(16))

    return application

app.create_app = with_a_stream
main(["serve"])
""",
)


def test_a_stream_of_an_owner_waits_for_a_slow_client(database: Postgres, tmp_path: Path) -> None:
    settings = {"DATABASE_URL": database.url, "JWT_SECRET": JWT_SECRET}
    with running(tmp_path / "log", program=STREAMING, **settings) as service:
        port = int(service.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /stream HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n")
            time.sleep(0.3)  # the client reads nothing yet
            received = b"".join(iter(lambda: client.recv(2**16), b""))
    assert received.count(0) == 16 * 2**20
