"""Errors on every route: their order, their one shape, and the headers of every answer."""

import http.client
import re
import socket
from collections.abc import Callable, Iterator
from time import time
from typing import Any

import httpx2
import jwt
import pytest

from backend.database.embedded import EmbeddedServer
from tests.conftest import Postgres
from tests.programs import needs_own_server
from tests.service import JWT_SECRET, PASSWORD, Account, Service, running

ORIGIN = "http://localhost:3000"
LIMIT = 64 * 1024
JSON = {"Content-Type": "application/json"}
METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
ROUTES = {
    "/auth/register": {"POST"},
    "/auth/login": {"POST"},
    "/auth/token": {"POST"},
    "/auth/logout": {"POST"},
    "/auth/refresh": {"POST"},
    "/auth/me": {"GET", "PATCH", "DELETE"},
    "/auth/password": {"POST"},
    "/auth/password/forgot": {"POST"},
    "/auth/password/reset": {"POST"},
    "/auth/email": {"POST", "DELETE"},
    "/auth/email/confirm": {"POST"},
    "/auth/email/verification": {"POST"},
    "/auth/email/verify": {"POST"},
    "/auth/sessions": {"GET", "DELETE"},
    "/auth/sessions/1": {"DELETE"},
    "/tasks": {"GET", "POST"},
    "/tasks/1": {"GET", "PUT", "PATCH", "DELETE"},
    "/tasks/1/complete": {"PATCH"},
    "/health": {"GET"},
    "/health/ready": {"GET"},
    "/metrics": {"GET"},
}
PAGES = {path: {"GET"} for path in ("/docs", "/redoc", "/openapi.json")}
GUARDED = [
    (method, path)
    for path, methods in ROUTES.items()
    for method in sorted(methods)
    if path in {"/auth/logout", "/auth/me", "/auth/password", "/auth/email"}
    or path.startswith(("/auth/sessions", "/tasks"))
]
READABLE = [path for path, methods in (ROUTES | PAGES).items() if "GET" in methods]


def refused(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Check that this is that error, in the one shape and with every header of an error; return its body."""
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/json")
    body: dict[str, Any] = response.json()
    expected = {"status_code", "detail", "code", "request_id"}
    expected |= {"errors"} if code == "validation_error" else set()
    expected |= {"error", "error_description"} if response.request.url.path == "/auth/token" else set()
    assert set(body) == expected
    assert (body["status_code"], body["code"]) == (status, code)
    assert re.fullmatch(r"[A-Z][\w ,:./<>-]+", body["detail"])
    assert response.headers.get_list("X-Request-ID") == [body["request_id"]]
    assert response.headers.get_list("X-Content-Type-Options") == ["nosniff"]
    assert response.headers.get_list("Cache-Control") == ["no-store"]
    assert "Origin" in response.headers["Vary"]
    assert response.headers.get("Access-Control-Allow-Origin") == response.request.headers.get("Origin")
    assert ("WWW-Authenticate" in response.headers) == (status == 401)
    assert ("Retry-After" in response.headers) == (status == 503)
    for problem in body.get("errors", ()):
        assert set(problem) == {"field", "message", "type"}
    return body


def exchange(
    service: Service, method: str, path: str, headers: str = "", body: bytes = b""
) -> httpx2.Response:
    """Send these bytes over a socket, and read one answer without having ended the request."""
    request = httpx2.Request(method, service.url + path, headers={"Origin": ORIGIN})
    with socket.create_connection((request.url.host, request.url.port or 80), timeout=10) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: {ORIGIN}\r\n{headers}\r\n"
        connection.sendall(head.encode() + body)
        answer = http.client.HTTPResponse(connection, method=method)
        answer.begin()
        content = answer.read()
    return httpx2.Response(answer.status, headers=answer.getheaders(), content=content, request=request)


def chunks(size: int) -> bytes:
    """Return `size` bytes of a chunked body without its end."""
    return b"".join(b"%x\r\n%s\r\n" % (part, b" " * part) for part in (size // 2, size - size // 2))


def forged(account: Account, secret: str = JWT_SECRET, **claims: Any) -> str:
    """Return the account's access token with other claims, signed with `secret`."""
    real = jwt.decode(account.tokens["access_token"], options={"verify_signature": False})
    return jwt.encode({**real, **claims}, secret, "HS256", headers={"typ": "at+jwt"})


@pytest.fixture
def stranger(service: Service) -> httpx2.Client:
    """A client of an SPA without a token."""
    return service.client(headers={"Origin": ORIGIN})


@pytest.fixture(scope="module")
def grace(service: Service) -> Account:
    """An account with one task and one session, in an SPA."""
    account = service.register()
    account.client.headers["Origin"] = ORIGIN
    account.create()
    return account


@pytest.fixture(scope="module")
def signed_out(service: Service) -> httpx2.Client:
    """A client whose session has ended."""
    account = service.register()
    assert account.client.post("/auth/logout").status_code == 204
    account.client.headers["Origin"] = ORIGIN
    return account.client


def test_the_routes_of_this_file_are_the_routes_of_the_document(stranger: httpx2.Client) -> None:
    document = stranger.get("/openapi.json").json()
    documented = {
        path.replace("{task_id}", "1").replace("{session_id}", "1"): methods
        for path, methods in document["paths"].items()
        if not path.startswith("/api/")  # the same handlers, which `tests/tasks/test_user_scoped.py` compares
    }
    assert {path: {method.upper() for method in methods} for path, methods in documented.items()} == ROUTES
    guarded = [
        (method.upper(), path)
        for path, methods in documented.items()
        for method in methods
        if {"Bearer": []} in methods[method]["security"]
    ]
    assert sorted(guarded) == sorted(GUARDED)


# The error of each kind of request


@pytest.mark.parametrize(
    ("method", "path", "options", "error"),
    [
        ("POST", "/tasks", {"json": {"title": ""}}, (400, "validation_error")),
        ("POST", "/tasks", {}, (400, "validation_error")),
        ("POST", "/tasks", {"headers": JSON}, (400, "validation_error")),
        ("GET", "/tasks?limit=0", {}, (400, "validation_error")),
        ("PATCH", "/auth/me", {"json": {}}, (400, "validation_error")),
        ("POST", "/tasks", {"content": b"{", "headers": JSON}, (400, "malformed_json")),
        ("POST", "/auth/login", {"content": b"\xef\xbb\xbf{}", "headers": JSON}, (400, "malformed_json")),
        ("POST", "/tasks", {"content": b"{}"}, (415, "unsupported_media_type")),
        ("POST", "/tasks", {"data": {"title": "Buy milk"}}, (415, "unsupported_media_type")),
        ("POST", "/tasks", {"json": "x" * LIMIT}, (413, "content_too_large")),
        ("GET", f"/tasks/{2**63 - 1}", {}, (404, "task_not_found")),
        ("GET", "/tasks/abc", {}, (404, "task_not_found")),
        ("GET", "/nowhere", {}, (404, "not_found")),
        ("GET", "/docs/assets/nowhere", {}, (404, "not_found")),
        ("POST", "/tasks/1", {}, (405, "method_not_allowed")),
    ],
)
def test_each_situation_has_its_status(
    grace: Account, method: str, path: str, options: dict[str, Any], error: tuple[int, str]
) -> None:
    refused(grace.client.request(method, path, **options), *error)


@pytest.mark.parametrize(
    ("method", "rest"), [("GET", ""), ("PUT", ""), ("PATCH", ""), ("DELETE", ""), ("PATCH", "/complete")]
)
def test_a_task_that_is_anothers_is_403(grace: Account, ada: Account, method: str, rest: str) -> None:
    body = {"title": "Mine"} if method in {"PUT", "PATCH"} else None
    response = grace.client.request(method, f"/tasks/{ada.create()['id']}{rest}", json=body)
    refused(response, 403, "task_forbidden")


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_every_route_that_is_somebodys_is_401_without_a_token(
    stranger: httpx2.Client, method: str, path: str
) -> None:
    response = stranger.request(method, path)
    refused(response, 401, "not_authenticated")
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("sent", ["Bearer", "Basic YTpi", "Token abc", "eyJhbGciOiJIUzI1NiJ9.e30.YQ", ""])
def test_a_header_of_another_form_is_told_the_form_of_a_token_and_challenged_without_an_error(
    stranger: httpx2.Client, sent: str
) -> None:
    response = stranger.get("/tasks", headers={"Authorization": sent})
    detail = refused(response, 401, "not_authenticated")["detail"]
    assert detail.endswith("Authorization: Bearer <access token>")
    assert response.headers["WWW-Authenticate"] == "Bearer"


def assert_invalid_token(response: httpx2.Response, code: str) -> None:
    detail = refused(response, 401, code)["detail"]
    challenge = f'Bearer error="invalid_token", error_description="{detail}"'
    assert response.headers["WWW-Authenticate"] == challenge


def test_a_token_that_does_not_hold_is_challenged_with_the_error(
    service: Service, grace: Account, signed_out: httpx2.Client
) -> None:
    tokens = {
        "rubbish": "invalid_token",
        forged(grace, "somebody else's secret, also long enough"): "invalid_token",
        forged(grace, exp=int(time())): "token_expired",
        signed_out.headers["Authorization"].removeprefix("Bearer "): "token_revoked",
    }
    for token, code in tokens.items():
        assert_invalid_token(service.client(token, headers={"Origin": ORIGIN}).get("/tasks"), code)


def test_two_authorization_headers_are_401(service: Service, grace: Account) -> None:
    header = f"Authorization: {grace.client.headers['Authorization']}\r\n"
    assert_invalid_token(exchange(service, "GET", "/tasks", header * 2), "invalid_token")


@pytest.mark.parametrize(
    ("options", "status", "code", "error"),
    [
        ({}, 400, "validation_error", "invalid_request"),
        ({"data": {"username": "ada@example.com"}}, 400, "validation_error", "invalid_request"),
        (
            {"content": b"username=a&username=b&password=c", "headers": {"Content-Type": "form"}},
            415,
            "unsupported_media_type",
            "invalid_request",
        ),
        ({"json": {"username": "a", "password": "b"}}, 415, "unsupported_media_type", "invalid_request"),
        ({"data": {"username": "x" * LIMIT}}, 413, "content_too_large", "invalid_request"),
        ({"data": {"username": "no email", "password": "b"}}, 400, "invalid_grant", "invalid_grant"),
        (
            {"data": {"username": "nobody@example.com", "password": "b"}},
            400,
            "invalid_grant",
            "invalid_grant",
        ),
        (
            {"data": {"username": "a", "password": "b", "grant_type": "implicit"}},
            400,
            "unsupported_grant_type",
            "unsupported_grant_type",
        ),
    ],
)
def test_the_token_endpoint_speaks_oauth(
    stranger: httpx2.Client, options: dict[str, Any], status: int, code: str, error: str
) -> None:
    body = refused(stranger.post("/auth/token", **options), status, code)
    assert (body["error"], body["error_description"]) == (error, body["detail"])


# The order of errors


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/tasks", ""),
        ("POST", "/auth/token", ""),
        ("POST", "/nowhere", ""),
        ("POST", "/tasks/", ""),
        ("TRACE", "/tasks", ""),
        ("GET", "/tasks/abc?limit=0", ""),
        ("PUT", "/tasks/1", "Authorization: Bearer rubbish\r\n"),
        ("OPTIONS", "/tasks", "Access-Control-Request-Method: POST\r\n"),
    ],
)
def test_a_content_length_over_the_limit_is_413_unread_before_anything_else(
    service: Service, method: str, path: str, headers: str
) -> None:
    response = exchange(service, method, path, f"{headers}Content-Length: {LIMIT + 1}\r\n")
    refused(response, 413, "content_too_large")


@pytest.mark.parametrize("path", [*ROUTES, *PAGES])
def test_a_trailing_slash_is_404_before_a_token_is_asked_for(stranger: httpx2.Client, path: str) -> None:
    for method in METHODS if path in ROUTES else {"GET"}:
        refused(stranger.request(method, f"{path}/"), 404, "not_found")


@pytest.mark.parametrize("path", ["/nowhere", "/Tasks", "//tasks", "/tasks/1/2", "/api/tasks", "/auth"])
def test_an_unknown_route_is_404_before_a_token_is_asked_for(stranger: httpx2.Client, path: str) -> None:
    for method in METHODS:
        refused(stranger.request(method, f"{stranger.base_url}{path}"), 404, "not_found")


@pytest.mark.parametrize(("path", "known"), (ROUTES | PAGES).items())
def test_a_wrong_method_is_405_with_every_right_one_before_a_token_is_asked_for(
    stranger: httpx2.Client, path: str, known: set[str]
) -> None:
    for method in METHODS - known:
        response = stranger.request(method, path)
        refused(response, 405, "method_not_allowed")
        allowed = known | {"HEAD"} if "GET" in known else known
        assert sorted(response.headers["Allow"].split(", ")) == sorted(allowed)


WRONG: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/tasks", {"content": b"{", "headers": JSON}),
    ("POST", "/tasks", {"content": b'{"title": "\xff"}', "headers": JSON}),
    ("POST", "/tasks", {"content": b"<title/>", "headers": {"Content-Type": "text/xml"}}),
    ("POST", "/tasks", {"content": b"{}"}),
    ("POST", "/tasks", {}),
    ("POST", "/tasks", {"json": {"title": 7}}),
    ("PATCH", "/auth/me", {"json": {"name": "\x00"}}),
    ("GET", "/tasks?limit=0", {}),
    ("GET", "/tasks?cursor=rubbish", {}),
    ("GET", "/tasks/abc", {}),
    ("DELETE", "/tasks/0", {}),
    ("PATCH", f"/tasks/{10**30}/complete", {}),
    ("PUT", "/tasks/abc", {"content": b"{", "headers": JSON}),
    ("PATCH", "/tasks/1", {"json": {}}),
]


@pytest.mark.parametrize(("method", "path", "options"), WRONG)
def test_without_a_valid_token_all_else_that_is_wrong_does_not_matter(
    stranger: httpx2.Client, signed_out: httpx2.Client, method: str, path: str, options: dict[str, Any]
) -> None:
    refused(stranger.request(method, path, **options), 401, "not_authenticated")
    headers = {**options.get("headers", {}), "Authorization": "Bearer rubbish"}
    assert_invalid_token(stranger.request(method, path, **{**options, "headers": headers}), "invalid_token")
    assert_invalid_token(signed_out.request(method, path, **options), "token_revoked")


@pytest.mark.parametrize(("method", "path", "options"), WRONG)
def test_with_a_valid_token_it_does(grace: Account, method: str, path: str, options: dict[str, Any]) -> None:
    assert grace.client.request(method, path, **options).status_code in {400, 404, 415}


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_a_session_that_ended_is_401_on_every_route(
    signed_out: httpx2.Client, method: str, path: str
) -> None:
    assert_invalid_token(signed_out.request(method, path), "token_revoked")


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/auth/register", "application/json"),
        ("POST", "/auth/token", "application/x-www-form-urlencoded"),
        ("POST", "/tasks", "application/json"),
        ("PUT", "/tasks/1", "application/json"),
        ("PATCH", "/auth/me", "application/json"),
    ],
)
def test_a_chunked_body_is_413_as_soon_as_it_is_over_the_limit(
    service: Service, grace: Account, method: str, path: str, kind: str
) -> None:
    headers = f"Transfer-Encoding: chunked\r\nContent-Type: {kind}\r\n"
    token = f"Authorization: {grace.client.headers['Authorization']}\r\n"
    response = exchange(service, method, path, headers + token, chunks(LIMIT + 1))
    refused(response, 413, "content_too_large")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/tasks"), ("PATCH", "/tasks/1/complete"), ("DELETE", "/tasks/1")]
)
def test_a_chunked_body_that_nobody_reads_is_413_too(
    service: Service, grace: Account, method: str, path: str
) -> None:
    token = f"Authorization: {grace.client.headers['Authorization']}\r\n"
    response = exchange(service, method, path, f"{token}Transfer-Encoding: chunked\r\n", chunks(LIMIT + 1))
    refused(response, 413, "content_too_large")


def test_a_chunked_body_over_the_limit_is_401_without_a_valid_token(
    service: Service, signed_out: httpx2.Client
) -> None:
    headers = "Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n"
    response = exchange(service, "POST", "/tasks", headers, chunks(LIMIT + 1))
    refused(response, 401, "not_authenticated")
    dead = f"Authorization: {signed_out.headers['Authorization']}\r\n"
    response = exchange(service, "POST", "/tasks", headers + dead, chunks(LIMIT + 1))
    assert_invalid_token(response, "token_revoked")


def test_a_body_is_not_waited_for_without_a_valid_token(service: Service) -> None:
    response = exchange(service, "POST", "/tasks", "Content-Type: application/json\r\nContent-Length: 9\r\n")
    refused(response, 401, "not_authenticated")


def test_a_body_of_exactly_the_limit_is_read(ada: Account) -> None:
    body = b'{"title": "Buy milk"}'.ljust(LIMIT)
    assert ada.client.post("/tasks", content=body, headers=JSON).status_code == 201
    assert ada.client.post("/tasks", content=iter([body]), headers=JSON).status_code == 201


# The headers of every answer


@pytest.mark.parametrize("path", READABLE)
def test_head_is_answered_as_get_is_without_a_body(service: Service, grace: Account, path: str) -> None:
    path = path.replace("/1", f"/{grace.client.get('/tasks').json()[0]['id']}")
    changing = {"date", "x-request-id", "last-modified"} | (
        {"content-length"} if path == "/metrics" else set()
    )
    for token in (f"Authorization: {grace.client.headers['Authorization']}\r\n", ""):
        get, head = (exchange(service, method, path, token) for method in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert get.content
        assert {name: value for name, value in head.headers.items() if name not in changing} == {
            name: value for name, value in get.headers.items() if name not in changing
        }


def test_head_of_a_route_without_get_is_405(service: Service) -> None:
    response = exchange(service, "HEAD", "/auth/login")
    assert (response.status_code, response.headers["Allow"], response.content) == (405, "POST", b"")


@pytest.mark.parametrize("path", READABLE)
def test_every_answer_carries_its_id_and_nosniff(grace: Account, path: str) -> None:
    path = path.replace("/1", f"/{grace.client.get('/tasks').json()[0]['id']}")
    first, second = grace.client.get(path), grace.client.get(path)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.headers.get_list("X-Content-Type-Options") == ["nosniff"]
    ids = {*first.headers.get_list("X-Request-ID"), *second.headers.get_list("X-Request-ID")}
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in ids)


def test_whatever_is_personal_is_not_stored(service: Service, ada: Account) -> None:
    task = f"/tasks/{ada.create()['id']}"
    sign_in = {"email": ada.email, "password": PASSWORD}
    form = {"username": ada.email, "password": PASSWORD}
    for response in (
        service.client().post("/auth/register", json={"email": "kept@example.com", "password": PASSWORD}),
        ada.client.post("/auth/login", json=sign_in),
        ada.client.post("/auth/token", data=form),
        ada.client.get("/auth/me"),
        ada.client.patch("/auth/me", json={"name": "Ada"}),
        ada.client.post("/tasks", json={"title": "Buy milk"}),
        ada.client.get("/tasks"),
        ada.client.get(task),
        ada.client.put(task, json={"completed": True}),
        ada.client.patch(task, json={"completed": False}),
        ada.client.patch(f"{task}/complete"),
        ada.client.delete(task),
        ada.client.post("/auth/logout"),
    ):
        assert response.is_success, response.text
        assert response.headers.get_list("Cache-Control") == ["no-store"]


@pytest.mark.parametrize("sent", ["7", "a-B_c.9", "0199f3c2-a7b4-7cc0-9d1b-3f5e8a6d4c21", "x" * 128])
def test_a_well_formed_request_id_is_kept(stranger: httpx2.Client, sent: str) -> None:
    for path in ("/health", "/nowhere"):
        assert stranger.get(path, headers={"X-Request-ID": sent}).headers["X-Request-ID"] == sent
    refused(stranger.get("/tasks", headers={"X-Request-ID": sent}), 401, "not_authenticated")


@pytest.mark.parametrize(
    "sent", [b"", b"x" * 129, b"a b", b"a\tb", b'"a"', b"a/b", b"a;b", b"{}", b"\xc3\xa9"]
)
def test_any_other_request_id_is_replaced(stranger: httpx2.Client, sent: bytes) -> None:
    response = stranger.get("/tasks", headers={b"X-Request-ID": sent})
    assert re.fullmatch("[0-9a-f]{32}", refused(response, 401, "not_authenticated")["request_id"])


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost"])
def test_an_spa_may_read_the_answers_and_their_headers(service: Service, origin: str) -> None:
    for path in ("/health", "/tasks", "/nowhere"):
        response = service.client(headers={"Origin": origin}).get(path)
        assert response.headers["Access-Control-Allow-Origin"] == origin
        exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
        assert exposed == ["Location", "Link", "ETag", "Retry-After", "X-Request-ID"]


@pytest.mark.parametrize(
    "origin", ["http://localhost:3001", "https://localhost:3000", "http://localhost:3000.example", "null"]
)
def test_another_sites_script_may_not(service: Service, origin: str) -> None:
    client = service.client(headers={"Origin": origin})
    for response in (
        client.get("/health"),
        client.get("/nowhere"),
        client.options("/tasks", headers={"Access-Control-Request-Method": "GET"}),
    ):
        assert "Access-Control-Allow-Origin" not in response.headers
        assert "Origin" in response.headers["Vary"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_a_preflight_for_what_the_api_takes_is_allowed(stranger: httpx2.Client, method: str) -> None:
    wanted = {"authorization", "content-type", "x-request-id", "if-match", "if-none-match", "idempotency-key"}
    response = stranger.options(
        "/tasks/1",
        headers={
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": ",".join(sorted(wanted)),
        },
    )
    assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert method in response.headers["Access-Control-Allow-Methods"].split(", ")
    assert wanted <= set(response.headers["Access-Control-Allow-Headers"].lower().split(", "))


@pytest.mark.parametrize(
    "asked",
    [
        {"Access-Control-Request-Method": "TRACE"},
        {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-zebra"},
        {"Access-Control-Request-Method": "GET", "Access-Control-Request-Private-Network": "true"},
    ],
)
def test_any_other_preflight_is_refused_like_any_other_request(
    stranger: httpx2.Client, asked: dict[str, str]
) -> None:
    response = stranger.options("/tasks", headers=asked)
    refused(response, 400, "cors_refused")
    assert "zebra" not in response.text


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ("Content-Length: 65537\r\n", 413, "content_too_large"),
        ("Host: other\r\n", 400, "malformed_request"),
        ("Transfer-Encoding: gzip, chunked\r\n", 501, "transfer_coding_unsupported"),
    ],
)
def test_a_preflight_with_a_head_that_is_wrong_is_refused_like_any_other_request(
    service: Service, headers: str, status: int, code: str
) -> None:
    asked = "Access-Control-Request-Method: GET\r\n"
    refused(exchange(service, "OPTIONS", "/tasks", asked + headers), status, code)


def test_a_refused_preflight_says_whether_its_method_or_a_header_is_not_allowed(
    stranger: httpx2.Client,
) -> None:
    method = stranger.options("/tasks", headers={"Access-Control-Request-Method": "TRACE"})
    assert refused(method, 400, "cors_refused")["detail"].startswith(
        "A page may not send this: method. Pages"
    )
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-zebra"}
    asked["Access-Control-Request-Headers"] = "authorization, x-zebra"
    header = stranger.options("/tasks", headers=asked)
    assert refused(header, 400, "cors_refused")["detail"].startswith(
        "A page may not send this: headers. Pages"
    )


def test_pages_may_send_the_context_of_their_traces(stranger: httpx2.Client) -> None:
    asked = "baggage,traceparent,tracestate"
    headers = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": asked}
    assert stranger.options("/tasks", headers=headers).status_code == 200


def test_an_origin_that_is_refused_is_one_warning_that_names_the_setting(
    new_service: Callable[..., Service],
) -> None:
    service = new_service()
    preflight = {"Origin": "http://preflight.example", "Access-Control-Request-Method": "GET"}
    service.client().options("/tasks", headers=preflight)
    for number in (0, 0, *range(30)):
        service.client().get("/health", headers={"Origin": f"http://page-{number}.example"})
    service.client().get("/health", headers={"Origin": service.url})
    warned = [line["origin"] for line in service.lines(level="WARNING") if "CORS_ORIGINS" in line["event"]]
    assert warned == ["http://preflight.example", *(f"http://page-{number}.example" for number in range(19))]


@pytest.mark.parametrize(
    ("path", "accepted"),
    [("/auth/login", "application/json"), ("/auth/token", "application/x-www-form-urlencoded")],
)
def test_a_body_of_another_type_is_told_the_type_that_would_do(
    stranger: httpx2.Client, path: str, accepted: str
) -> None:
    response = stranger.post(path, content=b"hello", headers={"Content-Type": "text/plain"})
    assert accepted in refused(response, 415, "unsupported_media_type")["detail"]
    assert response.headers["Accept"] == accepted


def test_a_preflight_from_elsewhere_is_refused(service: Service) -> None:
    response = service.client().options(
        "/tasks", headers={"Origin": "http://zebra.example", "Access-Control-Request-Method": "GET"}
    )
    assert (response.status_code, response.json()["code"]) == (400, "cors_refused")
    assert "zebra" not in response.text


@pytest.mark.parametrize("path", ["/zebra", "/tasks/zebra", "/tasks?status=zebra", "/tasks?cursor=zebra"])
def test_nothing_of_the_address_is_echoed(grace: Account, path: str) -> None:
    response = grace.client.get(path, headers={"X-Request-ID": "zebra zebra"})
    assert response.status_code in {400, 404}
    assert "zebra" not in response.text + str(response.headers)


# Without a database


@pytest.fixture(scope="module")
def cut_off(
    new_database: Callable[[], Postgres], server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Account]:
    """An account that had signed in before the database stopped."""
    database = new_database()
    log = tmp_path_factory.mktemp("cut_off") / "log"
    with running(log, DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET) as service:
        account = service.register()
        account.client.headers["Origin"] = ORIGIN
        name = database.sql("SELECT current_database()")[0]["current_database"]
        Postgres(server.url).sql(f"DROP DATABASE {name} WITH (FORCE)")
        yield account


@needs_own_server
@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("GET", "/health/ready", {}),
        ("GET", "/auth/me", {}),
        ("GET", "/tasks", {}),
        ("POST", "/tasks", {"json": {"title": "Buy milk"}}),
        ("POST", "/tasks", {"json": {"title": ""}}),
        ("DELETE", "/tasks/abc", {}),
        ("POST", "/auth/login", {"json": {"email": "a@example.com", "password": PASSWORD}}),
        ("POST", "/auth/register", {"json": {"email": "a@example.com", "password": PASSWORD}}),
        ("POST", "/auth/token", {"data": {"username": "a@example.com", "password": PASSWORD}}),
    ],
)
def test_a_database_that_is_gone_is_503_and_when_to_try_again(
    cut_off: Account, method: str, path: str, options: dict[str, Any]
) -> None:
    response = cut_off.client.request(method, path, **options)
    body = refused(response, 503, "database_unavailable")
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert body.get("error", "temporarily_unavailable") == "temporarily_unavailable"


@needs_own_server
def test_what_needs_no_database_is_answered_without_one(cut_off: Account) -> None:
    client = cut_off.client
    assert client.get("/health").status_code == 200
    assert_invalid_token(client.get("/tasks", headers={"Authorization": "Bearer rubbish"}), "invalid_token")
    expired = {"Authorization": f"Bearer {forged(cut_off, exp=int(time()))}"}
    assert_invalid_token(client.post("/tasks", content=b"{", headers=expired | JSON), "token_expired")
    refused(client.get("/tasks", headers={"Authorization": ""}), 401, "not_authenticated")
    refused(client.get("/nowhere"), 404, "not_found")
    refused(client.get("/auth/login"), 405, "method_not_allowed")
    refused(client.post("/tasks", json="x" * LIMIT), 413, "content_too_large")
    refused(client.post("/auth/login", json={}), 400, "validation_error")


@needs_own_server
def test_a_database_that_takes_no_connections_is_503_until_it_does(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres], server: EmbeddedServer
) -> None:
    database, postgres = new_database(), Postgres(server.url)
    account = new_service(DATABASE_URL=database.url).register()
    name = database.sql("SELECT current_database()")[0]["current_database"]
    postgres.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    refused(account.client.get("/tasks"), 503, "database_unavailable")
    postgres.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert account.client.get("/tasks").status_code == 200


# A defect of the service


@pytest.fixture(scope="module")
def broken(
    new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Account]]:
    """A service whose table of users has been renamed."""
    database = new_database()
    log = tmp_path_factory.mktemp("broken") / "log"
    with running(log, DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET) as service:
        account = service.register()
        account.client.headers["Origin"] = ORIGIN
        database.sql("ALTER TABLE users RENAME TO elsewhere")
        yield service, account


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("GET", "/tasks/1", {}),
        ("GET", "/auth/me", {}),
        ("POST", "/tasks", {"json": {"title": "zebra"}}),
        ("POST", "/tasks", {"json": {"title": 7}}),
        ("POST", "/auth/login", {"json": {"email": "zebra@example.com", "password": "zebra zebra"}}),
        ("POST", "/auth/token", {"data": {"username": "zebra@example.com", "password": "zebra zebra"}}),
    ],
)
def test_a_crash_is_a_clean_500_and_the_log_says_where_without_any_value(
    broken: tuple[Service, Account], method: str, path: str, options: dict[str, Any]
) -> None:
    service, account = broken
    body = refused(account.client.request(method, path, **options), 500, "internal_error")
    assert body["detail"] == "Something went wrong on our side"
    assert body.get("error", "server_error") == "server_error"
    line, access = service.lines(request_id=body["request_id"])
    assert (line["event"], line["level"]) == ("unexpected", "ERROR")
    assert line["exception"].startswith("asyncpg.exceptions.UndefinedTableError 42P01\n")
    assert re.search(r"/backend/database/database\.py:\d+ _send\n", line["exception"])
    assert (access["event"], access["level"], access["status"]) == ("http.request", "ERROR", 500)
    log = service.log.read_text()
    assert "zebra" not in log
    assert account.client.headers["Authorization"].removeprefix("Bearer ") not in log
    assert account.email not in log


@pytest.mark.parametrize("path", ["/health", "/nothing", "/tasks", "/openapi.json"])
def test_an_answer_that_is_taken_for_a_page_can_load_and_run_nothing(service: Service, path: str) -> None:
    headers = service.client().get(path).headers
    assert headers.get_list("Content-Security-Policy") == ["default-src 'none'; frame-ancestors 'none'"]
    assert headers.get_list("Referrer-Policy") == ["no-referrer"]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_has_a_policy_of_its_own_and_is_framed_nowhere(service: Service, path: str) -> None:
    (policy,) = service.client().get(path).headers.get_list("Content-Security-Policy")
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
