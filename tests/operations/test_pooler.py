"""The API behind a real PgBouncer that shares two connections by the transaction, as Neon's pooler does.

PgBouncer lends its connections in turn, so that code fails that relies on the connection before.
"""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from backend.database import Database
from backend.database.embedded import EmbeddedServer
from backend.database.schema import LOCK
from backend.database.url import connect_arguments
from backend.settings import Settings
from backend.web.health import PING
from tests import test_isolation
from tests.certificates import make_certificates
from tests.conftest import Postgres
from tests.forks import Fork
from tests.programs import find, unprivileged
from tests.service import (
    JWT_SECRET,
    MAIN,
    PASSWORD,
    Service,
    environment,
    free_port,
    launch,
    mailed_token,
    seen,
    wait_until_healthy,
)
from tests.tasks.test_concurrency import at_once
from tests.test_openapi import Operation

USERS = 16
SERVER_CONNECTIONS = 2
POOLER_PASSWORD = "npg_A1b2C3"
SETTINGS = """
[databases]
* = host={socket} port=5432
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = users.txt
client_tls_sslmode = require
client_tls_cert_file = server.pem
client_tls_key_file = server.key
pool_mode = transaction
default_pool_size = {size}
server_round_robin = 1
"""


@dataclass
class Pooler:
    """A running PgBouncer before the server of the tests."""

    port: int

    def plain_url(self, database: Postgres) -> str:
        """Return a URL that does not name a pooler."""
        name = database.url.partition("?")[0].rpartition("/")[2]
        return f"postgresql://postgres:{POOLER_PASSWORD}@127.0.0.1:{self.port}/{name}"

    def url(self, database: Postgres, host: str = "localhost", query: str = "") -> str:
        """Return the URL of a database as Neon's console would write it, and more."""
        name = database.url.partition("?")[0].rpartition("/")[2]
        at = f"{host}:{self.port}/{name}?sslmode=require&channel_binding=require{query}"
        return f"postgresql://postgres:{POOLER_PASSWORD}@{at}"


def run_pgbouncer(
    directory: Path, server: EmbeddedServer, port: int, size: int = SERVER_CONNECTIONS, more: str = ""
) -> "subprocess.Popen[bytes]":
    program = find(
        "pgbouncer", "/usr/sbin/pgbouncer", hint="apt install pgbouncer, or brew install pgbouncer"
    )
    make_certificates(directory)
    (directory / "users.txt").write_text(f'"postgres" "{POOLER_PASSWORD}"\n')
    (socket,) = connect_arguments(server.url)["host"]
    (directory / "settings.ini").write_text(SETTINGS.format(socket=socket, port=port, size=size) + more)
    owner = unprivileged(directory, Path(socket).owner())  # the server's socket is for that account alone
    with (directory / "log").open("wb") as log:
        return subprocess.Popen([program, "settings.ini"], cwd=directory, stderr=log, **owner)


@contextmanager
def pooling(server: EmbeddedServer, size: int = SERVER_CONNECTIONS, more: str = "") -> Iterator[Pooler]:
    """Run PgBouncer for the length of the block, with so many server connections and `more` settings."""
    # Not in pytest's own directory, which it closes to the user that root's server runs as.
    with tempfile.TemporaryDirectory(prefix="pooler-") as directory:
        port = free_port()
        process = run_pgbouncer(Path(directory), server, port, size, more)
        try:
            yield Pooler(port)
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def pooler(server: EmbeddedServer) -> Iterator[Pooler]:
    with pooling(server) as running:
        yield running


@pytest.fixture(scope="module")
def services(
    pooler: Pooler, database: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Service]]:
    """Two services with three processes, started at once on an empty database, each with another setting."""
    logs = tmp_path_factory.mktemp("pooled")
    told = (
        {"DATABASE_URL": pooler.url(database, query="&pgbouncer=true"), "WORKERS": "2"},
        {"DATABASE_URL": pooler.url(database), "DATABASE_PREPARED_STATEMENTS": "off"},
    )
    with started(logs, *told) as begun:
        yield begun
        for service in begun:
            assert_nothing_failed(service)
            assert "prepared statement" not in service.log.read_text()


def assert_nothing_failed(service: Service) -> None:
    """Assert that no request was answered with 5xx, and no line is an error."""
    assert [line for line in service.lines() if (line.get("status") or 0) >= 500] == []
    assert service.lines(level="ERROR") == []


@contextmanager
def started(logs: Path, *settings: dict[str, str]) -> Iterator[list[Service]]:
    """Run services with these settings, started at once."""
    with ExitStack() as stack:
        begun = [
            launch(logs / f"log{number}", JWT_SECRET=JWT_SECRET, **each)
            for number, each in enumerate(settings)
        ]
        for service in begun:
            stack.callback(service.stop)
        for service in begun:
            wait_until_healthy(service)
        yield begun


@pytest.fixture(scope="module")
def database(new_empty_database: Callable[[], Postgres]) -> Postgres:
    """The database that lies behind the pooler, reached past it."""
    return new_empty_database()


@pytest.fixture(scope="module")
def service(services: list[Service]) -> Service:
    """The service for the tests of other modules. Its two processes share one address."""
    return services[0]


class User:
    """A client that uses the services in turn, and checks each status."""

    def __init__(self, services: list[Service]) -> None:
        self._clients = cycle([service.client() for service in services])
        self._headers: dict[str, str] = {}
        self.credentials = {"email": f"{uuid4().hex}@example.com", "password": PASSWORD}
        self.tokens: dict[str, Any] = {}
        self.task_ids: list[int] = []

    def send(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        """Send a request, and return the content of its response."""
        response = next(self._clients).request(method, path, headers=self._headers, **options)
        assert response.status_code == status, f"{method} {path}: {response.text}"
        return response.json() if response.content else None

    def signs_in(self, path: str, status: int = 200, **options: Any) -> None:
        """Keep the tokens of a response."""
        self.tokens = self.send("POST", path, status, **options)
        self._headers = {"Authorization": f"Bearer {self.tokens['access_token']}"}

    @property
    def id(self) -> str:
        """The user's id."""
        return str(self.send("GET", "/auth/me")["id"])


def registers(user: User) -> None:
    user.signs_in("/auth/register", 201, json={**user.credentials, "name": "Ada"})
    user.send("POST", "/auth/register", 400, json=user.credentials)
    user.signs_in("/auth/login", json=user.credentials)
    form = {"username": user.credentials["email"], "password": PASSWORD}
    user.signs_in("/auth/token", data=form)
    user.signs_in("/auth/refresh", json={"refresh_token": user.tokens["refresh_token"]})


def ends_sessions(user: User) -> None:
    others = [found["id"] for found in user.send("GET", "/auth/sessions") if not found["current"]]
    assert len(others) == 2
    user.send("DELETE", f"/auth/sessions/{others[0]}", 204)
    assert len(user.send("GET", "/auth/sessions")) == 2
    user.send("DELETE", "/auth/sessions", 204)
    assert [found["current"] for found in user.send("GET", "/auth/sessions")] == [True]


def changes_account(user: User) -> None:
    assert user.send("PATCH", "/auth/me", json={"name": "Grace"})["name"] == "Grace"
    assert user.send("GET", "/auth/me")["name"] == "Grace"
    new = f"{PASSWORD}, or two"
    user.signs_in("/auth/password", json={"current_password": PASSWORD, "new_password": new})
    user.credentials["password"] = new
    user.send("POST", "/auth/logout", 204)
    user.send("GET", "/auth/me", 401)
    user.signs_in("/auth/login", json=user.credentials)


def follows_links(user: User) -> None:
    """The links in mails of either process."""
    email = user.credentials["email"]
    user.send("POST", "/auth/email/verification", 202, json={"email": email})
    user.send("POST", "/auth/email/verify", 204, json={"token": mailed_token("verify", email)})
    user.send("POST", "/auth/password/forgot", 202, json={"email": email})
    reset = {"token": mailed_token("reset", email), "new_password": f"{PASSWORD}, or three"}
    user.send("POST", "/auth/password/reset", 204, json=reset)
    user.credentials["password"] = reset["new_password"]
    user.signs_in("/auth/login", json=user.credentials)
    first, second = ({"new_email": f"{name}.{email}"} for name in ("first", "second"))
    password = {"password": user.credentials["password"]}
    user.send("POST", "/auth/email", 202, json=first | password)
    user.send("DELETE", "/auth/email", 204)
    user.send("POST", "/auth/email", 202, json=second | password)
    user.send("POST", "/auth/email/confirm", 204, json={"token": mailed_token("change", second["new_email"])})
    user.credentials["email"] = second["new_email"]
    assert user.send("GET", "/auth/me")["email"] == second["new_email"]


def keeps_tasks(user: User) -> None:
    """Use both prefixes. The next process must see a task that one process wrote."""
    for base in ("/tasks", f"/api/{user.id}/tasks"):
        tasks = [user.send("POST", base, 201, json={"title": f"Task {number}"}) for number in range(3)]
        one, two = (f"{base}/{task['id']}" for task in tasks[:2])
        assert user.send("GET", one) == tasks[0]
        assert user.send("PUT", one, json={"title": "Put"})["title"] == "Put"
        assert user.send("PATCH", one, json={"description": "Patched"})["title"] == "Put"
        assert user.send("PATCH", f"{one}/complete")["completed"]
        user.send("DELETE", two, 204)
        user.send("GET", two, 404)
        user.task_ids += [tasks[0]["id"], tasks[2]["id"]]
        completed = user.send("GET", base, params={"status": "completed"})
        assert [task["id"] for task in completed] == user.task_ids[::2]


def has_all_of_them_page_by_page(user: User) -> None:
    client, found = next(user._clients), []
    path: str | None = "/tasks?limit=1&sort=title"
    while path:
        response = client.get(path, headers=user._headers)
        found += [task["id"] for task in response.json()]
        path = response.links.get("next", {}).get("url")
    assert sorted(found) == user.task_ids


def leaves(user: User) -> None:
    user.send("DELETE", "/auth/me", 204, json={"password": user.credentials["password"]})
    user.send("GET", "/tasks", 401)
    user.send("POST", "/auth/login", 401, json=user.credentials)


def sees_nothing_of(other: User, user: User) -> None:
    their_id = other.id
    for task_id in other.task_ids:
        for method, suffix, body in test_isolation.ATTEMPTS:
            user.send(method, f"/tasks/{task_id}{suffix}", 403, json=body)
        user.send("GET", f"/api/{user.id}/tasks/{task_id}", 404)
        user.send("GET", f"/api/{their_id}/tasks/{task_id}", 403)


def test_everybody_does_everything_at_once_through_both_services(services: list[Service]) -> None:
    """Every operation of the OpenAPI document succeeds, and no user sees tasks of another."""
    asked = len(seen)
    users = [User(services) for _ in range(USERS)]
    neighbours = zip(users, [*users[1:], users[0]], strict=True)
    with ThreadPoolExecutor(USERS) as threads:
        steps = (registers, ends_sessions, changes_account, follows_links, keeps_tasks)
        for step in (*steps, has_all_of_them_page_by_page):
            list(threads.map(step, users))
        list(threads.map(sees_nothing_of, *zip(*neighbours, strict=True)))
        list(threads.map(leaves, users))
    for path in ("/health", "/health/ready", "/metrics"):
        assert services[0].client().get(path).status_code == 200
    assert not_among(seen[asked:], services[0].client().get("/openapi.json").json()) == []


def not_among(answers: list[tuple[str, str, int, str | None]], document: dict[str, Any]) -> list[str]:
    """Return the operations that have not succeeded in any of these answers."""
    operations = [
        Operation(method.upper(), path, spec, document)
        for path, item in document["paths"].items()
        for method, spec in item.items()
    ]
    return [
        str(operation)
        for operation in operations
        if not any(
            operation.matches(method, path) and status == operation.success
            for method, path, status, _ in answers
        )
    ]


def test_they_share_the_few_connections_that_the_pooler_has(
    server: EmbeddedServer, services: list[Service], database: Postgres
) -> None:
    name = database.url.partition("?")[0].rpartition("/")[2]
    users = [service.register() for service in services for _ in range(USERS)]
    answers = at_once(*(partial(user.client.get, "/tasks") for user in users))
    assert {answer.status_code for answer in answers} == {200}
    found = Postgres(server.url).sql(
        "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'", name
    )
    assert 0 < len(found) <= SERVER_CONNECTIONS


WAITING = """
SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted
"""


def backend(*arguments: str, url: str) -> Fork:
    """Start a command of the backend."""
    nowhere, settings = Path(os.devnull), environment(DATABASE_URL=url, JWT_SECRET=JWT_SECRET)
    return Fork(MAIN.format(list(arguments)), settings, nowhere, nowhere)


async def migrate_at_once(database: Postgres, url: str) -> list[Fork]:
    """Start two migrations, and let them go when both wait for the lock."""
    holder = await asyncpg.connect(**connect_arguments(database.url))
    await holder.execute(f"SELECT pg_advisory_lock({LOCK})")
    both = [backend("migrate", url=url) for _ in range(2)]
    async with asyncio.timeout(30):
        while await holder.fetchval(WAITING) < len(both):  # noqa: ASYNC110  # no event of ours tells it
            await asyncio.sleep(0.05)
    await holder.close()
    return both


def test_two_make_the_schema_at_once_and_leave_nothing_in_the_way_of_the_next(
    pooler: Pooler, new_empty_database: Callable[[], Postgres]
) -> None:
    """A statement that one prepares would still exist when PgBouncer lends its connection again."""
    empty = new_empty_database()
    url = pooler.url(empty)
    both = asyncio.run(migrate_at_once(empty, url))
    assert [process.wait(30) for process in both] == [0, 0]
    next_ones = [backend("migrate", "--check", url=url) for _ in range(2)]
    assert [process.wait(30) for process in next_ones] == [0, 0]


def test_a_host_that_is_called_a_pooler_is_sent_nothing_prepared(pooler: Pooler, database: Postgres) -> None:
    """The test sets nothing. PgBouncer would answer that a prepared statement does not exist."""
    # The name counts wherever it stands, and the second host is never asked for.
    url = pooler.url(database, host=f"localhost:{pooler.port},ep-cool-darkness-pooler.invalid")
    settings = Settings.model_validate({"database_url": url, "jwt_secret": JWT_SECRET})

    async def ping() -> None:
        async with Database(settings) as behind:
            for _ in range(5):
                await asyncio.gather(*(behind.one(PING) for _ in range(20)))

    asyncio.run(ping())


def changes_tasks_at_random(user: User, number: int) -> None:
    """Send reads and writes in a mixed order; each answer must be what a dictionary of titles says."""
    random = Random(number)  # noqa: S311  # no secret, but the same each time
    titles: dict[int, str] = {}
    for step in range(20):
        task_id = random.choice([*titles, 0])
        title, path = f"Title {number}.{step}", f"/tasks/{task_id}"
        match random.choice(["GET", "PUT", "DELETE"]) if task_id else "POST":
            case "POST":
                titles[user.send("POST", "/tasks", 201, json={"title": title})["id"]] = title
            case "PUT":
                titles[task_id] = user.send("PUT", path, json={"title": title})["title"]
            case "DELETE":
                user.send("DELETE", path, 204)
                del titles[task_id]
            case _:
                assert user.send("GET", path)["title"] == titles[task_id]
    assert {task["id"]: task["title"] for task in user.send("GET", "/tasks")} == titles


@pytest.mark.parametrize("prepared", ["auto", "on"])
@pytest.mark.parametrize("size", [1, 2])
def test_behind_a_pooler_that_nobody_named_no_process_runs_the_statement_of_another(
    server: EmbeddedServer,
    new_empty_database: Callable[[], Postgres],
    tmp_path: Path,
    size: int,
    prepared: str,
) -> None:
    """Two services read and write at once, without a 5xx, and every row is as it was written."""
    with pooling(server, size) as pooler:
        url = pooler.plain_url(new_empty_database())
        settings = {"DATABASE_URL": url, "DATABASE_PREPARED_STATEMENTS": prepared}
        with started(tmp_path, settings, settings) as both, ThreadPoolExecutor(8) as threads:
            users = [User(both) for _ in range(8)]
            for step in (registers, ends_sessions, changes_account):
                list(threads.map(step, users))
            list(threads.map(changes_tasks_at_random, users, range(8)))
            for service in both:
                assert_nothing_failed(service)
                # The first connection detects the pooler. With "on", only a lost statement does.
                warnings = len(warnings_of_pooler(service))
                assert warnings == 1 or (prepared == "on" and warnings == 0)


def warnings_of_pooler(service: Service) -> list[dict[str, Any]]:
    """Return the lines that say that statements are no longer prepared."""
    return [
        line for line in service.lines(level="WARNING") if "DATABASE_PREPARED_STATEMENTS" in line["event"]
    ]
