"""Cookie sessions: scripts cannot read the refresh token's cookie, and `Origin` is checked."""

import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from backend.database.embedded import EmbeddedServer
from tests.conftest import Postgres
from tests.programs import needs_own_server
from tests.service import PASSWORD, Account, Service
from tests.tokens import SHARED_SECRET, resigned, shared_token

PAGE = "http://localhost:3000"
"""An origin of `CORS_ORIGINS`."""
BODIES: list[dict[str, Any]] = [{}, {"json": {}}]
"""No body, and an empty object."""
FOREIGN: list[dict[str, str]] = [{}, {"Origin": "null"}, {"Origin": "https://evil.example"}, {"Origin": "*"}]


def sign_in(service: Service, account: Account, **headers: str) -> tuple[httpx2.Client, httpx2.Response]:
    """Sign in from a page with a cookie session; the client keeps the cookie."""
    client = service.client(headers={"Origin": PAGE, **headers})
    fields = {"email": account.email, "password": PASSWORD, "session": "cookie"}
    return client, client.post("/auth/login", json=fields)


def sessions_of(database: Postgres, account: Account) -> int:
    """Return how many sessions the account has."""
    return len(database.sql("SELECT FROM sessions WHERE user_id = $1", account.id))


def test_a_cookie_session_keeps_the_refresh_token_in_the_cookie_alone(service: Service, ada: Account) -> None:
    fields = {"email": "page@example.com", "password": PASSWORD, "session": "cookie"}
    registered = service.client().post("/auth/register", json=fields, headers={"Origin": PAGE})
    _, signed_in = sign_in(service, ada)
    for response, status in ((registered, 201), (signed_in, 200)):
        assert response.status_code == status
        assert "refresh_token" not in response.json()
        value, *attributes = response.headers["Set-Cookie"].split("; ")
        assert value.startswith("refresh=")
        assert attributes == ["Path=/", "HttpOnly", "SameSite=Strict", f"Max-Age={14 * 86400}"]


def test_away_from_loopback_the_cookie_is_of_this_host_and_secure(service: Service, ada: Account) -> None:
    _, response = sign_in(service, ada, Host="api.example.com")
    value, *attributes = response.headers["Set-Cookie"].split("; ")
    assert value.startswith("__Host-refresh=")
    assert attributes[:4] == ["Path=/", "Secure", "HttpOnly", "SameSite=Strict"]


def test_without_asking_nothing_of_a_session_changes(service: Service, ada: Account) -> None:
    for fields in ({}, {"session": "token"}):
        response = service.client().post(
            "/auth/login", json={"email": ada.email, "password": PASSWORD, **fields}
        )
        assert response.json()["refresh_token"]
        assert "Set-Cookie" not in response.headers


@pytest.mark.parametrize("value", ["Cookie", "", 7, None, True])
def test_session_is_one_of_two_words(service: Service, ada: Account, value: Any) -> None:
    fields = {"email": ada.email, "password": PASSWORD, "session": value}
    response = service.client(headers={"Origin": PAGE}).post("/auth/login", json=fields)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (400, "session")


def test_the_cookie_is_rotated_and_the_spent_one_ends_the_session_later(
    service: Service, ada: Account, database: Postgres
) -> None:
    client, _ = sign_in(service, ada)
    first = client.cookies["refresh"]
    for body in BODIES:
        response = client.post("/auth/refresh", **body)
        assert (response.status_code, "refresh_token" in response.json()) == (200, False)
        assert service.client(response.json()["access_token"]).get("/auth/me").status_code == 200
    assert client.cookies["refresh"] != first
    database.sql("UPDATE refresh_tokens SET spent_at = now() - interval '1 minute' WHERE spent_at < now()")
    thief = service.client(headers={"Origin": PAGE, "Cookie": f"refresh={first}"})
    assert thief.post("/auth/refresh").status_code == 401
    assert client.post("/auth/refresh").status_code == 401
    assert service.lines(event="auth.refresh_reused", user_id=ada.id)


def test_three_tabs_within_the_grace_get_a_working_cookie_each(service: Service, ada: Account) -> None:
    client, _ = sign_in(service, ada)
    headers = {"Origin": PAGE, "Cookie": f"refresh={client.cookies['refresh']}"}
    statuses = [service.client(headers=headers).post("/auth/refresh").status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 401]


def test_a_token_in_the_body_counts_before_the_cookie(service: Service, ada: Account) -> None:
    client, _ = sign_in(service, ada)
    kept = client.cookies["refresh"]
    response = client.post("/auth/refresh", json={"refresh_token": ada.tokens["refresh_token"]})
    assert response.json()["refresh_token"]
    assert "Set-Cookie" not in response.headers
    assert client.post("/auth/refresh", json={"refresh_token": "none"}).status_code == 401
    assert client.cookies["refresh"] == kept


def test_a_page_without_a_cookie_is_signed_out_and_a_program_without_a_token_is_wrong(
    service: Service,
) -> None:
    page, program = service.client(headers={"Origin": PAGE}), service.client()
    for body in BODIES:
        assert page.post("/auth/refresh", **body).json()["code"] == "invalid_refresh_token"
        assert program.post("/auth/refresh", **body).json()["code"] == "validation_error"


@pytest.mark.parametrize("headers", FOREIGN)
def test_another_origin_is_refused_before_anything_else_is_looked_at(
    service: Service, ada: Account, database: Postgres, headers: dict[str, str]
) -> None:
    client, _ = sign_in(service, ada)
    cookie = {"Cookie": f"refresh={client.cookies['refresh']}"}
    stranger = service.client(headers=headers)
    before = sessions_of(database, ada)
    answers = [
        stranger.post("/auth/login", json={"email": 7, "session": "cookie"}),
        stranger.post("/auth/register", json={"session": "cookie"}),
        stranger.post("/auth/refresh", headers=cookie),
        stranger.post("/auth/refresh", headers=cookie, json={}),
        stranger.post("/auth/logout", headers=cookie),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (403, "csrf_rejected")
        assert "Set-Cookie" not in answer.headers
    assert sessions_of(database, ada) == before
    assert client.post("/auth/refresh").status_code == 200


def test_the_own_origin_is_let_in(service: Service, ada: Account) -> None:
    assert sign_in(service, ada, Origin=service.url)[1].status_code == 200
    assert sign_in(service, ada, Origin=service.url.replace("http:", "https:"))[1].status_code == 403
    for host, status in (
        ("api.example.com:80", 200),
        ("api.example.com:8080", 403),
        ("api.example.com:443", 403),
    ):
        answer = sign_in(service, ada, Host=host, Origin="http://api.example.com")[1]
        assert answer.status_code == status, host


def test_logout_by_the_cookie_ends_its_session_and_clears_it(
    service: Service, ada: Account, database: Postgres
) -> None:
    for with_expired in (False, True):
        client, signed_in = sign_in(service, ada)
        before = sessions_of(database, ada)
        token = signed_in.json()["access_token"]
        headers = {"Authorization": f"Bearer {resigned(token, exp=1)}"} if with_expired else {}
        response = client.post("/auth/logout", headers=headers)
        assert (response.status_code, "refresh" in client.cookies) == (204, False)
        assert "Max-Age=0" in response.headers["Set-Cookie"]
        assert service.client(token).get("/auth/me").status_code == 401
        assert sessions_of(database, ada) == before - 1


def test_logout_clears_the_cookie_also_where_the_session_is_gone(service: Service, ada: Account) -> None:
    client, signed_in = sign_in(service, ada)
    cookie = {"Cookie": f"refresh={client.cookies['refresh']}"}
    headers = {"Authorization": f"Bearer {signed_in.json()['access_token']}"}
    assert client.post("/auth/logout", headers=headers).status_code == 204
    for sent in (cookie, cookie | headers):
        response = client.post("/auth/logout", headers=sent)
        assert response.status_code == 401
        assert "Max-Age=0" in response.headers["Set-Cookie"]


def test_logout_clears_the_cookie_whatever_the_authorization_is(new_service: Callable[..., Service]) -> None:
    service = new_service(BETTER_AUTH_SECRET=SHARED_SECRET)
    client, _ = sign_in(service, service.register())
    cookie = {"Cookie": f"refresh={client.cookies['refresh']}"}
    external = f"Bearer {shared_token('external')}"
    for sent, status in (("Bearer rubbish", 401), ("Basic abc", 401), ("", 401), (external, 403)):
        response = client.post("/auth/logout", headers={"Authorization": sent, **cookie})
        assert (response.status_code, "Max-Age=0" in response.headers["Set-Cookie"]) == (status, True), sent
    assert "Set-Cookie" not in service.client().post("/auth/logout").headers


@needs_own_server
def test_logout_clears_the_cookie_also_while_the_database_is_down(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres], server: EmbeddedServer
) -> None:
    database, postgres = new_database(), Postgres(server.url)
    service = new_service(DATABASE_URL=database.url, DATABASE_TIMEOUT_SECONDS="1")
    client, signed_in = sign_in(service, service.register())
    cookie = {"Cookie": f"refresh={client.cookies['refresh']}"}
    name = database.sql("SELECT current_database()")[0]["current_database"]
    postgres.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    for headers in (cookie, {"Authorization": f"Bearer {signed_in.json()['access_token']}"}):
        response = client.post("/auth/logout", headers=headers)
        assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")
        assert response.headers["Retry-After"]
        assert "Max-Age=0" in response.headers["Set-Cookie"]


def test_no_other_route_reads_the_cookie(service: Service, ada: Account) -> None:
    client, _ = sign_in(service, ada)
    for method, path in (("GET", "/auth/me"), ("GET", "/tasks"), ("DELETE", "/auth/sessions")):
        assert client.request(method, path).json()["code"] == "not_authenticated"


def test_the_cookie_is_read_as_sent_in_time_that_grows_with_its_length_alone(
    service: Service, ada: Account
) -> None:
    client, _ = sign_in(service, ada)
    token = client.cookies["refresh"]
    page = service.client(headers={"Origin": PAGE})

    def refresh(value: str) -> float:
        started = time.perf_counter()
        assert page.post("/auth/refresh", headers={"Cookie": f"refresh={value}"}).status_code == 401
        return time.perf_counter() - started

    refresh(f'"{token}"')
    plain = min(refresh("x" * 60_000) for _ in range(3))
    assert refresh('"' + '\\"' * 30_000 + '"') < 100 * plain
    assert page.post("/auth/refresh", headers={"Cookie": f"refresh=x; refresh={token}"}).status_code == 200


def test_a_change_of_password_keeps_the_new_token_in_the_cookie(service: Service) -> None:
    account = service.register()
    client, signed_in = sign_in(service, account)
    headers = {"Authorization": f"Bearer {signed_in.json()['access_token']}"}
    change = {"current_password": PASSWORD, "new_password": "another long sentence"}
    response = client.post("/auth/password", json=change, headers=headers)
    assert (response.status_code, "refresh_token" in response.json()) == (200, False)
    assert client.post("/auth/refresh").status_code == 200


def test_credentials_are_for_the_origins_of_the_settings_alone(service: Service) -> None:
    allowed = service.client(headers={"Origin": PAGE}).get("/health").headers
    assert allowed["Access-Control-Allow-Credentials"] == "true"
    assert allowed["Access-Control-Allow-Origin"] == PAGE
    other = service.client(headers={"Origin": "https://evil.example"}).get("/health").headers
    assert "Access-Control-Allow-Origin" not in other


def test_no_origin_has_credentials_if_every_origin_is_allowed(new_service: Callable[..., Service]) -> None:
    client = new_service(CORS_ORIGINS="*").client(headers={"Origin": PAGE})
    preflight = client.options("/tasks", headers={"Access-Control-Request-Method": "GET"})
    for response in (client.get("/health"), preflight):
        assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (200, "*")
        assert "Access-Control-Allow-Credentials" not in response.headers
