"""Marked secrets (canaries) go through every route and every failure, and reach no log, answer or metric."""

import base64
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from tests.conftest import Postgres
from tests.programs import needs_own_server
from tests.service import Service, running

MARK = "kanarie"
PASSWORD = f"{MARK} password, the right one"
WRONG = f"{MARK} password, a wrong one"
EMAIL = f"{MARK}.bird@example.com"
OTHER_EMAIL = f"{MARK}.cage@example.com"
JWT_SECRET = f"{MARK} secret that signs the tokens, long enough"
PREVIOUS_SECRET = f"{MARK} secret that signed them before this one"
DATABASE_PASSWORD = f"{MARK}-of-the-database"
BROKEN_TOKEN = f"e30.{MARK}.signature"
BASIC = base64.b64encode(f"ada:{PASSWORD}".encode()).decode()

FIELDS: dict[str, Any] = {
    "email": EMAIL,
    "username": EMAIL,
    "password": WRONG,
    "current_password": WRONG,
    "new_password": WRONG,
    "refresh_token": BROKEN_TOKEN,
}
"""The secret fields of requests. The routes of tasks have no secret field."""

pytestmark = needs_own_server


@dataclass
class Watched:
    """A service of its own, everything that it answered, and the tokens that it issued."""

    service: Service
    client: httpx2.Client
    database: Postgres
    answers: list[httpx2.Response] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def send(self, method: str, path: str, **options: Any) -> httpx2.Response:
        response = self.client.request(method, path, **options)
        self.answers.append(response)
        return response

    def sign_in(self, path: str, **data: Any) -> str:
        response = self.send("POST", path, json=data)
        assert response.is_success, response.text
        tokens = response.json()
        self.tokens += tokens["access_token"], tokens["refresh_token"]
        return str(tokens["access_token"])

    @property
    def secrets(self) -> list[str]:
        """All texts that must appear nowhere. Of a token, these are the parts too long to match by chance."""
        return [MARK, BASIC, *itertools.chain(*([token, token[-32:]] for token in self.tokens))]


def bodies() -> Iterator[dict[str, Any]]:
    """Bodies of every kind that hold marks, right and wrong."""
    kinds = ("application/json", "application/x-www-form-urlencoded", "text/plain")
    yield {"json": FIELDS}
    yield {"data": FIELDS}
    yield {"json": [FIELDS]}
    yield {"json": {name: [value] for name, value in FIELDS.items()}}
    yield {"json": {name: value * 500 for name, value in FIELDS.items()}}
    yield {"json": {value: name for name, value in FIELDS.items()}}
    yield {"json": {"email": f"{EMAIL}@", "password": f"{MARK}\0", "name": f"{MARK}\0", "title": f"{MARK}\0"}}
    for kind in kinds:
        yield {"content": f'{{"password": "{WRONG}", {MARK}'.encode(), "headers": {"Content-Type": kind}}


def credentials(good: str) -> Iterator[dict[str, str]]:
    yield {}
    for value in (f"Bearer {good}", f"Bearer {good}x", f"Bearer {BROKEN_TOKEN}", f"Basic {BASIC}", MARK):
        yield {"Authorization": value}


def drive_every_route(watched: Watched) -> None:
    document = watched.send("GET", "/openapi.json").json()
    operations = [(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs]
    assert len(operations) > 10
    for method, path in [*operations, ("GET", f"/{EMAIL}/{MARK}"), ("DELETE", "/auth/login")]:
        at = path.replace("{task_id}", MARK).replace("{session_id}", MARK)
        for number, body in enumerate(bodies()):
            good = watched.sign_in("/auth/login", email=EMAIL, password=PASSWORD)
            for sent in credentials(good) if number == 0 else [{"Authorization": f"Bearer {good}"}]:
                headers = {**sent, **body.get("headers", {}), "Cookie": f"token={good}", "X-Api-Key": MARK}
                query = {"access_token": good, "cursor": MARK, "password": WRONG}
                watched.send(method, at, **{**body, "headers": headers, "params": query})


def spend_refresh_tokens(watched: Watched) -> None:
    """Use a refresh token twice, the second time after the grace, which ends the session."""
    spent = watched.tokens[-1]
    watched.sign_in("/auth/refresh", refresh_token=spent)
    watched.database.sql("UPDATE refresh_tokens SET spent_at = spent_at - interval '1 hour'")
    assert watched.send("POST", "/auth/refresh", json={"refresh_token": spent}).status_code == 401


def fail_every_way(watched: Watched, server: Postgres) -> None:
    """Send requests that are refused, that crash on an error with the row in it, and that lack a database."""
    data = {"email": OTHER_EMAIL, "password": PASSWORD}
    assert watched.send("POST", "/auth/register", json={**data, "email": EMAIL.upper()}).status_code == 400
    assert watched.send("POST", "/auth/register", json={**data, "password": OTHER_EMAIL}).status_code == 400
    assert (
        watched.send("POST", "/auth/login", json={**data, "email": EMAIL, "password": WRONG}).status_code
        == 401
    )
    # PostgreSQL's own message shows the row that it refuses: email, hash and all.
    watched.database.sql("ALTER TABLE users ADD CONSTRAINT refuses CHECK (email NOT LIKE '%.cage@%')")
    assert watched.send("POST", "/auth/register", json=data).status_code == 500
    watched.database.sql("ALTER TABLE users DROP CONSTRAINT refuses")
    name = watched.database.sql("SELECT current_database() AS name")[0]["name"]
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    server.sql(f"ALTER DATABASE {name} RENAME TO {name}_away")
    for path in ("/auth/register", "/auth/login"):
        assert watched.send("POST", path, json=data).status_code == 503
    server.sql(f"ALTER DATABASE {name}_away RENAME TO {name}")


@pytest.fixture(scope="module")
def watched(
    server: Any, new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """Runs all requests once. The tests search the log, the responses and the metrics afterwards."""
    database = new_database()
    url = database.url.replace("postgres@", f"postgres:{DATABASE_PASSWORD}@")
    assert MARK in url
    log = tmp_path_factory.mktemp("watched") / "log"
    settings = {"JWT_SECRET": JWT_SECRET, "JWT_PREVIOUS_SECRETS": PREVIOUS_SECRET}
    with running(log, DATABASE_URL=url, **settings) as service:
        watched = Watched(service, service.client(), database)
        watched.sign_in("/auth/register", email=EMAIL, password=PASSWORD, name="A bird")
        drive_every_route(watched)
        spend_refresh_tokens(watched)
        fail_every_way(watched, Postgres(server.url))
        yield watched


def assert_in_none(watched: Watched, text: str) -> None:
    for secret in watched.secrets:
        at = text.find(secret)
        assert at < 0, text[max(0, at - 200) : at + 200]


def test_every_kind_of_answer_was_seen(watched: Watched) -> None:
    """The other tests of this module depend on it, because they could not fail without these responses."""
    seen = {answer.status_code for answer in watched.answers}
    assert seen >= {200, 201, 204, 400, 401, 404, 405, 413, 415, 500, 503}


def test_no_secret_is_in_the_log(watched: Watched) -> None:
    """The log has no whole email either."""
    text = watched.service.log.read_bytes().decode()
    assert len(text.splitlines()) > len(watched.answers)
    assert_in_none(watched, text)


def test_no_secret_is_in_an_error_or_in_a_header(watched: Watched) -> None:
    for answer in watched.answers:
        if answer.is_error:
            assert_in_none(watched, answer.text)
        assert_in_none(watched, json.dumps(list(answer.headers.items())))


def test_no_secret_is_in_a_success_but_ones_own_email_and_new_tokens(watched: Watched) -> None:
    for answer in watched.answers:
        if answer.is_success:
            assert MARK not in answer.text.replace(EMAIL, "").replace(OTHER_EMAIL, "")


def test_no_secret_is_in_the_metrics(watched: Watched) -> None:
    text = watched.send("GET", "/metrics").text
    assert 'route="/auth/login"' in text
    assert_in_none(watched, text)


def test_the_database_has_hashes_alone_and_the_columns_of_the_email(watched: Watched) -> None:
    sql = watched.database.sql
    tables = [
        row["name"] for row in sql("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")
    ]
    assert set(tables) >= {"users", "sessions", "refresh_tokens", "tasks"}
    select = "SELECT (to_jsonb(t) - 'email' - 'email_key')::text AS line FROM {} t"
    text = "".join(row["line"] for table in tables for row in sql(select.format(table)))
    assert_in_none(watched, text)
    for token in watched.tokens:
        assert token.encode().hex() not in text
    (user,) = sql("SELECT email, email_key, password_hash FROM users")
    assert (user["email"], user["email_key"]) == (EMAIL, EMAIL)
    assert user["password_hash"].startswith("$bcrypt-sha256$v=2,t=2b,r=4$")
