"""The log: one line for each event and each request, with every field; no input changes a line's shape."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import jwt
import pytest

from backend.telemetry.events import Event
from tests.conftest import Postgres
from tests.service import (
    JWT_SECRET,
    PASSWORD,
    ROOT,
    Account,
    Service,
    environment,
    free_port,
    wait_until_healthy,
)

FIELDS = {
    *("timestamp", "level", "event", "request_id", "user_id"),
    *("ip", "method", "route", "status", "duration_ms"),
}


def lines_of(service: Service, response: httpx2.Response) -> list[dict[str, Any]]:
    """Return the lines of one request; the last is `http.request`."""
    deadline = time.monotonic() + 5
    while True:
        lines = service.lines(request_id=response.headers["X-Request-ID"])
        if named(lines, "http.request") or time.monotonic() > deadline:
            return lines
        time.sleep(0.01)


def named(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


# Events


Story = tuple[Event, httpx2.Response, Any]


def stories(service: Service, ada: Account, bob: Account) -> Iterator[Story]:
    """Yield each event with the response during which it happened, and the id of the request's user."""
    anybody = service.client()
    new = {"email": "storied@example.com", "password": PASSWORD}
    response = anybody.post("/auth/register", json=new)
    yield Event.REGISTERED, response, response.json()["user"]["id"]
    yield Event.LOGIN, anybody.post("/auth/login", json={"email": ada.email, "password": PASSWORD}), ada.id
    form = {"username": ada.email, "password": PASSWORD}
    yield Event.LOGIN, anybody.post("/auth/token", data=form), ada.id
    wrong = {"email": ada.email, "password": "wrong"}
    yield Event.LOGIN_FAILED, anybody.post("/auth/login", json=wrong), None
    unknown = {"username": "nobody@example.com", "password": "wrong"}
    yield Event.LOGIN_FAILED, anybody.post("/auth/token", data=unknown), None
    yield Event.TASK_CREATED, ada.client.post("/tasks", json={"title": "Milk"}), ada.id
    path = f"/tasks/{ada.create()['id']}"
    yield Event.TASK_UPDATED, ada.client.patch(path, json={"title": "Tea"}), ada.id
    yield Event.TASK_UPDATED, ada.client.put(path, json={"completed": True}), ada.id
    yield Event.TASK_REOPENED, ada.client.patch(f"{path}/complete"), ada.id
    yield Event.TASK_COMPLETED, ada.client.patch(f"{path}/complete"), ada.id
    yield Event.DENIED, bob.client.get(path), bob.id
    yield Event.TASK_DELETED, ada.client.delete(path), ada.id
    yield Event.DENIED, anybody.get("/tasks"), None
    yield Event.LOGOUT, ada.client.post("/auth/logout"), ada.id
    yield Event.DENIED, ada.client.get("/tasks"), ada.id


def stories_of_sessions(service: Service, database: Postgres, carl: Account) -> Iterator[Story]:
    """Yield the events of a session and an account, up to the end of both."""
    login = {"email": carl.email, "password": PASSWORD}
    others = [service.client().post("/auth/login", json=login).json() for _ in range(2)]
    ids = [each["id"] for each in carl.client.get("/auth/sessions").json() if not each["current"]]
    yield Event.SESSION_REVOKED, carl.client.delete(f"/auth/sessions/{ids[0]}"), carl.id
    yield Event.SESSION_REVOKED, carl.client.delete("/auth/sessions"), carl.id
    assert service.client(others[0]["access_token"]).get("/tasks").status_code == 401
    refreshing = {"refresh_token": carl.tokens["refresh_token"]}
    yield Event.REFRESHED, service.client().post("/auth/refresh", json=refreshing), carl.id
    change = {"current_password": PASSWORD, "new_password": f"{PASSWORD}, a new one"}
    response = carl.client.post("/auth/password", json=change)
    yield Event.PASSWORD_CHANGED, response, carl.id
    database.sql("UPDATE refresh_tokens SET spent_at = now() - interval '1 hour' WHERE spent_at < now()")
    yield Event.REFRESH_REUSED, service.client().post("/auth/refresh", json=refreshing), carl.id
    again = {**login, "password": change["new_password"]}
    client = service.client(service.client().post("/auth/login", json=again).json()["access_token"])
    confirmation = {"password": change["new_password"]}
    yield Event.ACCOUNT_DELETED, client.request("DELETE", "/auth/me", json=confirmation), carl.id


def stories_of_mail(service: Service, database: Postgres, dora: Account) -> Iterator[Story]:
    """Yield the events of mail tokens, which are written to the database instead of mailed."""

    def token_for(purpose: str) -> dict[str, str]:
        database.sql(
            "INSERT INTO mail_tokens (digest, user_id, purpose, email, expires_at)"
            " VALUES (sha256($1), $2, $3, $4, now() + interval '1 hour')",
            purpose.encode(),
            dora.id,
            purpose,
            dora.email,
        )
        return {"token": purpose}

    client = service.client()
    yield Event.EMAIL_VERIFIED, client.post("/auth/email/verify", json=token_for("verify")), dora.id
    database.sql("UPDATE users SET pending_email = email WHERE id = $1", dora.id)
    yield Event.EMAIL_CHANGED, client.post("/auth/email/confirm", json=token_for("change")), dora.id
    reset = token_for("reset") | {"new_password": f"{PASSWORD}, a new one"}
    yield Event.PASSWORD_RESET, client.post("/auth/password/reset", json=reset), dora.id


ELSEWHERE = {Event.MAIL_SENT, Event.MAIL_FAILED, Event.ACCOUNT_DISABLED, Event.ACCOUNT_ENABLED}
"""Events outside of requests: those of the outbox (`auth/mail`) and of `test_users_command.py`."""


def story_of_too_many(service: Service) -> Iterator[Story]:
    """Register three times where two are allowed."""
    for _ in range(2):
        service.register()
    new = {"email": "third@example.com", "password": PASSWORD}
    yield Event.RATE_LIMITED, service.client().post("/auth/register", json=new), None


WARNINGS = {Event.DENIED, Event.LOGIN_FAILED, Event.REFRESH_REUSED, Event.RATE_LIMITED}


def test_each_event_is_logged_once_with_every_field(
    service: Service, new_service: Callable[..., Service], database: Postgres, ada: Account, bob: Account
) -> None:
    limited = new_service(RATE_LIMIT_ENABLED="true", RATE_LIMIT_REGISTER="2/hour")
    told = set()
    for teller, event, response, user_id in (
        *((service, *story) for story in stories(service, ada, bob)),
        *((service, *story) for story in stories_of_sessions(service, database, service.register())),
        *((service, *story) for story in stories_of_mail(service, database, service.register())),
        *((limited, *story) for story in story_of_too_many(limited)),
    ):
        told.add(event)
        lines = lines_of(teller, response)
        (line,) = named(lines, event)
        (request,) = named(lines, "http.request")
        assert set(line) >= FIELDS
        assert set(request) == FIELDS
        for entry in lines:
            assert (entry["user_id"], entry["ip"]) == (user_id, "127.0.0.1")
            assert (entry["method"], entry["status"]) == (response.request.method, response.status_code)
            assert entry["route"].split("/")[:2] == response.request.url.path.split("/")[:2]
            assert 0 < entry["duration_ms"] < 30_000
            at = datetime.fromisoformat(entry["timestamp"])
            assert at.utcoffset() == timedelta(0)
            assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
        level = "WARNING" if event in WARNINGS else "INFO"
        assert (line["level"], request["level"]) == (level, "INFO")
    assert told == set(Event) - ELSEWHERE


def test_a_task_event_names_the_task_and_what_was_sent_but_not_the_text(
    service: Service, ada: Account
) -> None:
    task = ada.create("A title of ada's")
    changes = {"description": "Her words", "completed": True}
    response = ada.client.patch(f"/tasks/{task['id']}", json=changes)
    (line,) = named(lines_of(service, response), Event.TASK_UPDATED)
    assert (line["task_id"], line["fields"]) == (task["id"], ["completed", "description"])
    assert (line["route"], "Her words" in str(line)) == ("/tasks/{task_id}", False)


def test_a_refused_or_failed_change_is_no_event(service: Service, ada: Account, bob: Account) -> None:
    path = f"/tasks/{ada.create()['id']}"
    for response in (
        ada.client.patch(path, json={}),
        ada.client.post("/tasks", json={"title": ""}),
        bob.client.delete(path),
        ada.client.delete("/tasks/9223372036854775807"),
        service.client().post("/auth/register", json={"email": ada.email, "password": PASSWORD}),
    ):
        assert {line["event"] for line in lines_of(service, response)} <= {"http.request", Event.DENIED}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/tasks/{}"),
        ("PUT", "/tasks/{}"),
        ("PATCH", "/tasks/{}"),
        ("PATCH", "/tasks/{}/complete"),
        ("DELETE", "/tasks/{}"),
    ],
)
def test_a_foreign_task_is_denied_with_its_reason(
    service: Service, ada: Account, bob: Account, method: str, path: str
) -> None:
    response = bob.client.request(method, path.format(ada.create()["id"]), json={"title": "Mine"})
    assert response.status_code == 403
    (line,) = named(lines_of(service, response), Event.DENIED)
    assert (line["reason"], line["user_id"]) == ("foreign_task", bob.id)


def test_a_foreign_task_of_the_user_scoped_routes_is_denied_in_the_log_alone(
    service: Service, ada: Account, bob: Account
) -> None:
    response = bob.client.get(f"/api/{bob.id}/tasks/{ada.create()['id']}")
    assert response.status_code == 404
    (line,) = named(lines_of(service, response), Event.DENIED)
    assert (line["reason"], line["status"]) == ("foreign_task", 404)
    unknown = bob.client.get(f"/api/{bob.id}/tasks/9223372036854775807")
    assert not named(lines_of(service, unknown), Event.DENIED)


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        ({}, "missing"),
        ({"Authorization": "Basic YTpi"}, "malformed"),
        ({"Authorization": "Bearer a.b.c"}, "malformed"),
    ],
)
def test_each_401_is_denied_with_its_reason_on_every_route(
    service: Service, authorization: dict[str, str], reason: str
) -> None:
    """`auth/test_access_tokens.py` has the reasons for well-formed tokens."""
    client = service.client(headers=authorization)
    for method, path in (
        ("GET", "/auth/me"),
        ("POST", "/auth/logout"),
        ("POST", "/tasks"),
        ("GET", "/tasks/no-id"),
        ("PATCH", "/tasks/1/complete"),
    ):
        response = client.request(method, path)
        assert response.status_code == 401
        (line,) = named(lines_of(service, response), Event.DENIED)
        assert (line["reason"], line["user_id"], line["status"]) == (reason, None, 401)


def test_a_failed_sign_in_names_the_account_and_not_the_email(service: Service, ada: Account) -> None:
    for email, account_id in ((ada.email, ada.id), ("nobody@example.com", None)):
        response = service.client().post("/auth/login", json={"email": email, "password": "wrong"})
        (line,) = named(lines_of(service, response), Event.LOGIN_FAILED)
        assert (line["account_id"], email in str(line)) == (account_id, False)


# Requests


@pytest.mark.parametrize(
    ("request_line", "options", "status", "route"),
    [
        ("GET /health", {}, 200, "/health"),
        ("HEAD /health", {}, 200, "/health"),
        ("GET /health/ready", {}, 200, "/health/ready"),
        ("GET /metrics", {}, 200, "/metrics"),
        ("GET /docs", {}, 200, "/docs"),
        ("GET /docs/assets/nowhere.css", {}, 404, "/docs/assets/{name}"),
        ("GET /openapi.json", {}, 200, "/openapi.json"),
        ("GET /nothing/here", {}, 404, None),
        ("GET /tasks/", {"headers": {"Authorization": "Bearer x"}}, 404, None),
        ("DELETE /tasks", {}, 405, None),
        ("POST /auth/login", {"content": b"x" * 65_537}, 413, None),
        ("POST /auth/login", {"content": iter([b"x" * 40_000] * 2)}, 413, "/auth/login"),
        ("POST /auth/login", {"json": {}}, 400, "/auth/login"),
        ("POST /auth/login", {"content": b"{"}, 415, "/auth/login"),
        (
            "OPTIONS /tasks",
            {"headers": {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "GET"}},
            200,
            None,
        ),
        (
            "OPTIONS /tasks",
            {"headers": {"Origin": "http://evil.example.com", "Access-Control-Request-Method": "GET"}},
            400,
            None,
        ),
    ],
)
def test_every_request_is_one_line(
    service: Service, request_line: str, options: dict[str, Any], status: int, route: str | None
) -> None:
    method, path = request_line.split()
    response = service.client().request(method, path, **options)
    assert response.status_code == status
    (line,) = lines_of(service, response)
    assert (line["event"], line["method"], line["status"]) == ("http.request", method, status)
    assert set(line) == FIELDS
    if route is not None:
        assert line["route"] == route


def test_a_request_is_in_the_log_when_its_answer_is_here(service: Service, ada: Account) -> None:
    """The log has each event before the client gets the response, even a response without a body."""
    for _ in range(20):
        answers = [ada.client.delete(f"/tasks/{ada.create()['id']}"), ada.client.head("/health")]
        for response in answers:
            assert service.lines(request_id=response.headers["X-Request-ID"], event="http.request")


def test_a_request_that_ends_too_early_is_one_line(service: Service) -> None:
    head = (
        b"POST /auth/login HTTP/1.1\r\nHost: x\r\nX-Request-ID: ended-early\r\n"
        b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    with socket.create_connection(address) as connection:
        connection.sendall(head)
        time.sleep(0.2)
    deadline = time.monotonic() + 20
    while not (lines := service.lines(request_id="ended-early")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [(line["event"], line["status"]) for line in lines] == [("http.request", 400)]


def test_a_crash_is_an_error_line_that_says_where(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    database = new_database()
    service = new_service(DATABASE_URL=database.url)
    ada = service.register()
    database.sql("ALTER TABLE tasks RENAME COLUMN title TO heading")
    response = ada.client.get("/tasks")
    assert response.status_code == 500
    lines = lines_of(service, response)
    (crash,), (request,) = named(lines, "unexpected"), named(lines, "http.request")
    assert (len(lines), crash["level"], request["level"]) == (2, "ERROR", "ERROR")
    assert "asyncpg.exceptions.UndefinedColumnError 42703" in crash["exception"]
    assert "connection.py" in crash["exception"]
    assert "heading" not in crash["exception"]


# Form


def test_the_lines_of_uvicorn_and_of_libraries_are_json_too(
    new_service: Callable[..., Service], new_empty_database: Callable[[], Postgres]
) -> None:
    service = new_service(DATABASE_URL=new_empty_database().url)
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    with socket.create_connection(address) as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        answer = connection.recv(4096).decode()
    (refusal,) = service.lines(event="http.request", status=400)
    assert answer.startswith("HTTP/1.1 400")
    assert f"x-request-id: {refusal['request_id']}\r\n" in answer
    assert refusal["ip"] == "127.0.0.1"
    events = [line["event"] for line in service.lines()]
    assert "Application startup complete." in events  # Uvicorn
    assert any(event.startswith("Running upgrade") for event in events)  # Alembic
    assert "Invalid HTTP request received." not in events  # the line above has it, with its id
    assert all(set(line) >= {"timestamp", "level", "event"} for line in service.lines())


BREAKS = "\n \r \v \f \x1c \x1d \x1e \x85 \u2028 \u2029 \x1b]0;owned\x07 \x1b[2J \x9b31m"
"""Characters that end a line in some program, and sequences that a terminal executes."""

FAKE = '{"event": "auth.login", "user_id": "eve"}'


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _token_of(user_id: str) -> str:
    """Return a token with a valid signature for that user id, and without a session."""
    claims = {"iss": "tasks-api", "aud": "tasks-api", "sub": user_id, "sid": str(UUID(int=0))}
    return jwt.encode({**claims, "exp": int(time.time()) + 60}, JWT_SECRET, "HS256")


def _raw_request(name: str, service: Service, ada: Account) -> None:
    """Sign in with header bytes that no client library sends."""
    body = json.dumps({"email": ada.email, "password": PASSWORD}).encode()
    # A lone CR or LF ends a header, and most other control characters end the request.
    for value in (BREAKS, "\x85 \x9b31m \xa0", "\t\u2028\u2029\t"):
        kept = "".join(char for char in value if ord(char) >= 0x80 or char in "\t ")
        for encoded in (kept.encode(), kept.encode("latin-1", "ignore"), value.encode()):
            headers = [
                name.encode() + b": " + encoded + FAKE.encode(),
                b"Content-Type: application/json",
                b"Content-Length: %d" % len(body),
            ]
            _send(service, b"POST /auth/login HTTP/1.1", *headers, body=body)


def _send(service: Service, *head: bytes, body: bytes = b"") -> None:
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    with socket.create_connection(address) as connection:
        connection.sendall(b"\r\n".join([*head, b"Connection: close", b"", b""]) + body)
        while connection.recv(65_536):
            pass


INJECTIONS: dict[str, Callable[[Service, Account], object]] = {
    "path": lambda service, _: service.client().get(f"/tasks/{_quoted(BREAKS + FAKE)}"),
    "path of no route": lambda service, _: service.client().get(f"/{_quoted(BREAKS + FAKE)}"),
    "query": lambda _, ada: ada.client.get("/tasks", params={"cursor": BREAKS + FAKE, BREAKS: BREAKS}),
    "title": lambda _, ada: ada.client.post("/tasks", json={"title": f"\u2028 \u2029 {FAKE}"}),
    "bad title": lambda _, ada: ada.client.post("/tasks", json={"title": BREAKS + FAKE}),
    "field": lambda _, ada: ada.client.post("/tasks", json={BREAKS + FAKE: BREAKS}),
    "body": lambda _, ada: ada.client.post("/tasks", content=(BREAKS + FAKE).encode()),
    "name": lambda _, ada: ada.client.patch("/auth/me", json={"name": f"\u2028{FAKE}"}),
    "email": lambda service, _: service.client().post(
        "/auth/register", json={"email": f"{BREAKS}@example.com", "password": BREAKS + FAKE}
    ),
    "password": lambda service, _: service.client().post(
        "/auth/login", json={"email": "nobody@example.com", "password": BREAKS + FAKE}
    ),
    "form": lambda service, _: service.client().post(
        "/auth/token", data={"username": BREAKS + FAKE, "password": "x", BREAKS: "x"}
    ),
    **{
        f"header {name}": partial(_raw_request, name)
        for name in (
            *("X-Request-ID", "User-Agent", "X-Forwarded-For", "X-Forwarded-Proto", "Host"),
            *("Authorization", "Origin", "Content-Type", "Referer", "X-Real-IP"),
        )
    },
    "user of a token": lambda service, _: service.client(_token_of(BREAKS + FAKE)).get("/tasks"),
    "method": lambda service, _: _send(service, (BREAKS + FAKE).encode() + b" /tasks HTTP/1.1"),
    "version": lambda service, _: _send(service, b"GET /tasks HTTP/" + (BREAKS + FAKE).encode()),
}


@pytest.fixture(scope="module")
def pretty(
    new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service in a pseudo-terminal; `log` holds the bytes that the terminal got."""
    port, log = str(free_port()), tmp_path_factory.mktemp("pretty") / "screen"
    terminal, worker = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "backend", "serve"],
        cwd=ROOT,
        env=environment(DATABASE_URL=new_database().url, JWT_SECRET=JWT_SECRET, PORT=port, LOG_FORMAT=""),
        stdin=subprocess.DEVNULL,
        stdout=worker,
        stderr=worker,
    )
    os.close(worker)
    screen = threading.Thread(target=_copy, args=(terminal, log))
    screen.start()
    service = Service(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_until_healthy(service)
        yield service
    finally:
        service.stop()
        screen.join()
        os.close(terminal)


def _copy(terminal: int, log: Path) -> None:
    """Copy the terminal's output until its last writer has gone, which is an error on Linux."""
    with log.open("wb", buffering=0) as file:
        while True:
            try:
                shown = os.read(terminal, 65_536)
            except OSError:
                return
            if not shown:
                return
            file.write(shown)


def shown(service: Service) -> str:
    """Return the output up to a request of our own, with a terminal's CR LF as LF."""
    last, deadline = uuid4().hex, time.monotonic() + 20
    service.client().get("/health", headers={"X-Request-ID": last})
    while True:
        text = service.log.read_bytes().decode()
        if last in text and text.endswith("\n"):
            return text.replace("\r\n", "\n")
        assert time.monotonic() < deadline
        time.sleep(0.02)


COLOURS = re.compile(r"\x1b\[(?:0|2|3\d)m")
LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{6} (?:INFO|WARNING|ERROR)\s+\S")


@pytest.mark.parametrize("case", INJECTIONS)
def test_no_input_breaks_a_line_of_json(service: Service, ada: Account, case: str) -> None:
    before = len(shown(service))
    INJECTIONS[case](service, ada)
    text = shown(service)[before:]
    assert text
    assert text.isascii()
    for line in text.splitlines():
        assert line.isprintable()
        parsed = json.loads(line)
        assert set(parsed) >= {"timestamp", "level", "event"}
        assert parsed["user_id" if "user_id" in parsed else "event"] != "eve"
    assert len(text.splitlines()) == text.count("\n")


@pytest.mark.parametrize("case", INJECTIONS)
def test_no_input_breaks_a_line_for_a_person(pretty: Service, case: str) -> None:
    ada = pretty.register()
    before = len(shown(pretty))
    INJECTIONS[case](pretty, ada)
    text = shown(pretty)[before:]
    assert text
    for line in text.removesuffix("\n").split("\n"):
        plain = COLOURS.sub("", line)
        assert plain.isprintable()
        assert LINE.match(plain)


def test_a_terminal_gets_lines_for_a_person(pretty: Service) -> None:
    response = pretty.client().get("/tasks", headers={"X-Request-ID": "seen-by-a-person"})
    assert response.status_code == 401
    text = shown(pretty)
    (denied, request) = [COLOURS.sub("", line) for line in text.split("\n") if "seen-by-a-person" in line]
    assert "auth.denied  GET /tasks 401" in denied
    assert "reason=missing" in denied
    assert re.search(r"INFO\s+http\.request  GET /tasks 401 \d+\.\d+ ms", request)
    assert "Application startup complete." in text
    assert not text.startswith("{")


def test_the_format_can_be_chosen(new_service: Callable[..., Service]) -> None:
    service = new_service(LOG_FORMAT="pretty")
    assert service.client().get("/health").status_code == 200
    for line in shown(service).removesuffix("\n").split("\n"):
        assert LINE.match(COLOURS.sub("", line))


def test_what_is_no_terminal_gets_json(new_service: Callable[..., Service]) -> None:
    service = new_service(LOG_FORMAT="")
    assert service.client().get("/health").status_code == 200
    assert service.lines(event="http.request", route="/health")
