"""A proxy reads the statements that reach PostgreSQL: a request is one, which checks the caller's session."""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import product
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2
import pytest

from backend.database.url import connect_arguments
from tests.conftest import Postgres
from tests.service import JWT_SECRET, PASSWORD, Account, Service, running

WARM_UP = 2
"""A connection prepares a statement at its first use, which takes one more round trip."""

ROUTES: dict[tuple[str, str], dict[str, Any] | None] = {
    ("POST", "/tasks"): {"title": "Buy bread"},
    ("GET", "/tasks"): None,
    ("GET", "/tasks/{task_id}"): None,
    ("PUT", "/tasks/{task_id}"): {"title": "Buy bread"},
    ("PATCH", "/tasks/{task_id}"): {"description": None},
    ("PATCH", "/tasks/{task_id}/complete"): None,
    ("DELETE", "/tasks/{task_id}"): None,
    ("GET", "/auth/me"): None,
    ("PATCH", "/auth/me"): {"name": "Ada"},
    ("POST", "/auth/logout"): None,
}


class Sent(NamedTuple):
    """A statement and its values in the wire format. A text is its bytes in UTF-8."""

    sql: str
    values: tuple[bytes | None, ...] = ()


class Proxy:
    """Stands in front of PostgreSQL; `sent` and `round_trips` are what went through since `forget`."""

    def __init__(self, database: Postgres) -> None:
        arguments = connect_arguments(database.url)
        self._server = arguments["host"][0], arguments["port"][0]
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        name = quote(arguments["database"])
        self.url = f"postgresql://{arguments['user']}@127.0.0.1:{port}/{name}?sslmode=disable"
        self.forget()

    def forget(self) -> None:
        """Count anew."""
        self.sent: list[Sent] = []
        self.round_trips = 0

    def serve(self) -> None:
        """Forward each connection until `close`."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = _connect(*self._server)
            frontend = Frontend(self)
            Thread(target=_pump, args=(client, server, frontend.read), daemon=True).start()
            Thread(target=_pump, args=(server, client, lambda _: None), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _connect(host: str, port: int) -> socket.socket:
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{host}/.s.PGSQL.{port}")
    return connection


def _pump(source: socket.socket, target: socket.socket, look: Callable[[bytes], None]) -> None:
    with source, suppress(OSError):  # either end may close first
        while data := source.recv(65536):
            look(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class Frontend:
    """Reads what one client sends (PostgreSQL documentation, chapter "Frontend/Backend Protocol")."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._unread = bytearray()
        self._is_started = False
        self._statements: dict[bytes, str] = {}
        self._bound = Sent("")

    def read(self, data: bytes) -> None:
        """Take the messages that are complete with `data`; the first one has no type."""
        self._unread += data
        while True:
            start = int(self._is_started)
            length = start + int.from_bytes(self._unread[start : start + 4])
            if not start + 4 <= length <= len(self._unread):
                return
            kind, body = bytes(self._unread[:start]), bytes(self._unread[start + 4 : length])
            del self._unread[:length]
            self._is_started = True
            self._take(kind, body)

    def _take(self, kind: bytes, body: bytes) -> None:
        match kind:
            case b"P":  # Parse
                name, sql, _ = body.split(b"\0", 2)
                self._statements[name] = sql.decode()
            case b"B":  # Bind
                _, name, values = body.split(b"\0", 2)
                self._bound = Sent(self._statements[name], _bound_values(values))
            case b"E":  # Execute
                self._proxy.sent.append(self._bound)
            case b"Q":  # a simple query
                self._proxy.sent.append(Sent(body[:-1].decode()))
        self._proxy.round_trips += kind in {b"S", b"H", b"Q"}  # Sync, Flush: now an answer is due


def _bound_values(data: bytes) -> tuple[bytes | None, ...]:
    formats = int.from_bytes(data[:2])
    at, values = 2 + 2 * formats + 2, list[bytes | None]()
    for _ in range(int.from_bytes(data[at - 2 : at])):
        length = int.from_bytes(data[at : at + 4], signed=True)
        at += 4
        values.append(None if length < 0 else data[at : at + length])
        at += max(length, 0)
    return tuple(values)


@pytest.fixture(scope="module")
def proxy(new_database: Callable[[], Postgres]) -> Iterator[Proxy]:
    """A proxy before a database of its own."""
    proxy = Proxy(new_database())
    thread = Thread(target=proxy.serve)
    thread.start()
    yield proxy
    proxy.close()
    thread.join(10)


@pytest.fixture(scope="module")
def behind(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Run a service with settings, whose one connection goes through the proxy."""
    settings = {"DATABASE_URL": proxy.url, "JWT_SECRET": JWT_SECRET, "DATABASE_POOL_SIZE": "1"}
    with ExitStack() as stack:

        def run(**more: str) -> Service:
            log = tmp_path_factory.mktemp("behind") / "log"
            return stack.enter_context(running(log, **settings, **more))

        yield run


@pytest.fixture(scope="module")
def watched(behind: Callable[..., Service]) -> Service:
    return behind()


@pytest.fixture(scope="module")
def concealing(behind: Callable[..., Service]) -> Service:
    return behind(CONCEAL_FOREIGN_TASKS="true")


def send(
    proxy: Proxy, account: Account, route: tuple[str, str], task: dict[str, Any], **query: Any
) -> httpx2.Response:
    """Send one request; the proxy tells what it cost."""
    method, path = route
    proxy.forget()
    url = path.format(task_id=task["id"], user_id=account.id)
    return account.client.request(method, url, json=ROUTES[route], params=query)


def on_tasks(proxy: Proxy) -> list[Sent]:
    """Return the statements on the table, without those of the driver."""
    return [sent for sent in proxy.sent if re.search(r"\btasks\b", sent.sql)]


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_request_that_succeeds_is_one_statement_and_one_round_trip(
    watched: Service, proxy: Proxy, route: tuple[str, str]
) -> None:
    for _ in range(WARM_UP + 1):
        account = watched.register()
        response = send(proxy, account, route, account.create("Buy milk", description="Two litres"))
        assert response.is_success, response.text
    assert len(proxy.sent) == proxy.round_trips == 1


def test_no_statement_has_the_driver_ask_for_a_type(
    proxy: Proxy, new_service: Callable[..., Service]
) -> None:
    """It asks by a slow query, once on each connection, for arrays of all types but text."""
    account = new_service(DATABASE_URL=proxy.url).register()
    proxy.forget()
    for (method, path), body in ROUTES.items():
        url = path.format(task_id=account.create()["id"])
        account.client.request(method, url, json=body).raise_for_status()
    assert [sent.sql for sent in proxy.sent if "pg_type" in sent.sql] == []


def test_a_change_of_email_checks_the_session_by_the_statements_that_do_the_work(
    new_service: Callable[..., Service], proxy: Proxy
) -> None:
    account = new_service(DATABASE_URL=proxy.url).register()
    proxy.forget()
    data = {"new_email": f"new.{account.email}", "password": PASSWORD}
    account.client.post("/auth/email", json=data).raise_for_status()
    assert (
        len([sent for sent in proxy.sent if account.id.encode() in sent.values and "caller" in sent.sql]) == 2
    )


@pytest.mark.parametrize("route", [route for route in ROUTES if "/tasks" in route[1]], ids=" ".join)
def test_a_condition_or_a_new_key_is_part_of_the_one_statement(
    watched: Service, proxy: Proxy, route: tuple[str, str]
) -> None:
    for _ in range(WARM_UP + 1):
        account = watched.register()
        task = account.create()
        tag = account.client.get(f"/tasks/{task['id']}").headers["ETag"]
        account.client.headers |= {"If-Match": tag, "Idempotency-Key": "a-key"}
        response = send(proxy, account, route, task)
        assert response.is_success, response.text
    assert len(proxy.sent) == proxy.round_trips == 1


def test_every_list_is_one_statement_and_one_round_trip(watched: Service, proxy: Proxy) -> None:
    account = watched.register()
    tasks = [account.create(title, completed=title in "ab") for title in "abcd"]
    route = ("GET", "/tasks")
    for status, sort, order in product(
        ("all", "pending", "completed"), ("created", "title"), ("asc", "desc")
    ):
        query = {"status": status, "sort": sort, "order": order, "limit": 1}
        link = send(proxy, account, route, tasks[0], **query).links["next"]["url"]
        for cursor in ({}, {"cursor": httpx2.URL(link).params["cursor"]}):
            for _ in range(WARM_UP + 1):
                assert len(send(proxy, account, route, tasks[0], **query, **cursor).json()) == 1
            assert len(proxy.sent) == proxy.round_trips == 1


def test_no_task_route_is_left_out_here(watched: Service) -> None:
    paths = watched.client().get("/openapi.json").json()["paths"]
    documented = {
        (method.upper(), path)
        for path, methods in paths.items()
        for method, operation in methods.items()
        if "tasks" in operation["tags"] and not path.startswith("/api/")  # the same handlers
    }
    assert documented == {(method, path) for method, path in ROUTES if "/tasks" in path}


@pytest.mark.parametrize("path", ["/health", "/metrics", "/docs", "/redoc", "/openapi.json", "/nowhere"])
def test_what_needs_no_data_leaves_the_database_alone(watched: Service, proxy: Proxy, path: str) -> None:
    """A probe must not keep a serverless database awake."""
    client = watched.client(watched.register().tokens["access_token"])
    proxy.forget()
    assert client.get(path).status_code == (404 if path == "/nowhere" else 200)
    assert proxy.round_trips == 0


@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_token_that_is_none_is_refused_without_the_database(
    watched: Service, proxy: Proxy, route: tuple[str, str]
) -> None:
    method, path = route
    proxy.forget()
    for client in (watched.client(), watched.client("no.such.token")):
        response = client.request(method, path.format(task_id=1), json=ROUTES[route])
        assert response.status_code == 401
    assert proxy.round_trips == 0


@pytest.mark.parametrize("route", [route for route in ROUTES if "/tasks" in route[1]], ids=" ".join)
def test_every_statement_on_tasks_names_the_caller_and_a_miss_costs_a_second(
    watched: Service, proxy: Proxy, route: tuple[str, str]
) -> None:
    """Each statement contains the ownership condition, for every caller and every task."""
    ada, bob, gone = (watched.register() for _ in range(3))
    task, deleted = ada.create(), ada.create()
    ada.client.delete(f"/tasks/{deleted['id']}")
    gone.client.post("/auth/logout")
    looks = {}
    for account, target in ((bob, task), (ada, deleted), (gone, task), (ada, task)):
        response = send(proxy, account, route, target)
        found = on_tasks(proxy)
        assert all(account.id.encode() in sent.values for sent in found)
        looks[account.email, target["id"]] = (response.status_code, len(found))
    is_of_one = "{task_id}" in route[1]
    success = {"POST": 201, "DELETE": 204}.get(route[0], 200)
    assert looks == {
        (bob.email, task["id"]): (403, 2) if is_of_one else (success, 1),
        (ada.email, deleted["id"]): (404, 2) if is_of_one else (success, 1),
        (gone.email, task["id"]): (401, 1),
        (ada.email, task["id"]): (success, 1),
    }


@pytest.mark.parametrize("route", [route for route in ROUTES if "{task_id}" in route[1]], ids=" ".join)
def test_a_miss_of_a_concealed_task_costs_no_second_statement(
    concealing: Service, proxy: Proxy, route: tuple[str, str]
) -> None:
    """CONCEAL_FOREIGN_TASKS saves the look at tasks of others, which on a cluster asks all nodes."""
    ada, bob = concealing.register(), concealing.register()
    task = ada.create()
    refused = send(proxy, bob, route, task)
    assert (refused.status_code, refused.json()["code"]) == (404, "task_not_found")
    assert len(on_tasks(proxy)) == 1
