"""Fills the databases of all subjects with the same data, and builds the requests of the load."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from secrets import token_urlsafe
from uuid import UUID

from backend.auth.tokens.access import AccessTokens
from backend.database import Row
from backend.settings import Settings
from scripts.benchmark.load import NUMBER
from scripts.benchmark.postgres import Database

OPERATIONS = ("list 20", "list 1,000", "get", "create", "update", "toggle")
WRITES = {"create", "update", "toggle"}
TASKS_EACH = 20
FIRST_THOUSAND = range(1, 1001)

JWT_SECRET = token_urlsafe(48)
ISSUER = "tasks-api"
PASSWORD = "correct horse battery staple"  # noqa: S105  # of no real user

_USERS = """
    INSERT INTO users (id, issuer, email, email_key, password_hash)
    SELECT md5(n::text)::uuid::text, 'local', email, email, $2
    FROM generate_series(0, $1::int) n, concat('user', n, '@example.com') email
"""
_HAS_EMAILS = "SELECT 1 WHERE to_regclass('emails') IS NOT NULL"
"""A row if emails have a table of their own, which revisions before migration 0009 lack."""
_EMAILS = "INSERT INTO emails (email_key, user_id) SELECT email_key, id FROM users"
_SESSIONS = """
    INSERT INTO sessions (id, user_id, expires_at)
    SELECT gen_random_uuid(), id, now() + interval '1 day' FROM users
"""
# The tasks of a user with an even number are inserted together, so that they lie side by side. The users
# with odd numbers get one task each in turn, so that the tasks of none lie side by side.
_TASKS = """
    INSERT INTO tasks (user_id, title, title_key, description, created_at, updated_at)
    SELECT md5(n::text)::uuid::text, title, lower(title), 'What is to be done, in a few words', at, at
    FROM generate_series($1::int, $2::int) t, generate_series($3::int, $4::int) n,
        concat('Task ', t, ' of ', n) title, to_timestamp(1.7e9 + t + 0.123456) at
    ORDER BY n % 2, CASE n % 2 WHEN 0 THEN n ELSE t END, t, n
"""
_SAMPLE = """
    SELECT tasks.id, user_id, sessions.id AS session_id FROM tasks JOIN sessions USING (user_id)
    WHERE user_id IN (
        SELECT md5(n::text)::uuid::text
        FROM generate_series($1::int, $2::int, $3::int) n
    )
"""
_HEAVY_USER = """
    SELECT user_id, id AS session_id FROM sessions WHERE user_id = md5('0')::uuid::text
"""


def fill(database: Database, *, users: int, heavy_tasks: int, password_hash: str = "") -> None:
    """Give `users` users 20 tasks each, one more user `heavy_tasks`, and all of them a session."""
    database.sql(_USERS, users, password_hash)
    if database.sql(_HAS_EMAILS):
        database.sql(_EMAILS)
    database.sql(_SESSIONS)
    database.sql(_TASKS, 1, TASKS_EACH, 1, users)
    database.sql(_TASKS, 1, heavy_tasks, 0, 0)
    database.sql("VACUUM ANALYZE")
    database.sql("CHECKPOINT")


@dataclass(frozen=True)
class Traffic:
    """The requests on one database, by operation."""

    database: Database
    requests: Mapping[str, Sequence[bytes]]
    heavy_token: str
    last_id: int

    def clean_up(self, operation: str) -> None:
        """Remove the rows that an operation has added, and its dead rows."""
        if operation in WRITES:
            self.database.sql("DELETE FROM tasks WHERE id > $1", self.last_id)
            self.database.sql("VACUUM (INDEX_CLEANUP ON) tasks")


def traffic(database: Database, users: range = FIRST_THOUSAND) -> Traffic:
    """Return the requests of the users with these numbers, with tokens that need no sign-in."""
    tokens = AccessTokens(
        Settings(
            _env_file=None,
            database_url=database.url,
            jwt_secret=JWT_SECRET,
            jwt_issuer=ISSUER,
            jwt_audience=ISSUER,
            access_token_minutes=24 * 60,
        )
    )
    tasks = database.sql(_SAMPLE, users.start, users.stop - 1, users.step)
    heavy_token = _token(tokens, database.sql(_HEAVY_USER)[0])
    by_user = {task["user_id"]: _token(tokens, task) for task in tasks}
    own = [(f"/tasks/{task['id']}", by_user[task["user_id"]]) for task in tasks]
    requests = {
        "list 20": [request("GET", "/tasks", token) for token in by_user.values()],
        "list 1,000": [request("GET", "/tasks", heavy_token)],
        "get": [request("GET", path, token) for path, token in own],
        "create": [
            request("POST", "/tasks", token, {"title": f"Buy milk {NUMBER}", "description": "Two litres"})
            for token in by_user.values()
        ],
        "update": [request("PUT", path, token, {"title": f"Buy bread {NUMBER}"}) for path, token in own],
        "toggle": [request("PATCH", f"{path}/complete", token) for path, token in own],
    }
    last_id: int = database.sql("SELECT max(id) AS last FROM tasks")[0]["last"]
    return Traffic(database, requests, heavy_token, last_id)


def _token(tokens: AccessTokens, row: Row) -> str:
    return tokens.issue(row["user_id"], UUID(str(row["session_id"])))


def sign_in(number: int) -> bytes:
    """Return a sign-in of the user with this number, from an address of their own behind a proxy."""
    data = {"email": f"user{number}@example.com", "password": PASSWORD}
    address = f"10.0.{number // 250}.{number % 250}"
    return request("POST", "/auth/login", data=data, headers=[f"X-Forwarded-For: {address}"])


def request(
    method: str, path: str, token: str | None = None, data: object = None, headers: Sequence[str] = ()
) -> bytes:
    """Return an HTTP request as a page of an SPA sends it."""
    body = b"" if data is None else json.dumps(data).encode()
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", "Origin: http://localhost:3000", *headers]
    if token is not None:
        head.append(f"Authorization: Bearer {token}")
    if data is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body
