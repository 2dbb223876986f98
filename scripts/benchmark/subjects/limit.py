# ruff: noqa: S608  # only a constant list of columns is put into SQL here
"""The limit: a minimal application on bare ASGI, asyncpg and msgspec, without validation, errors or a log.

It verifies a token once and checks no session. No Python application with the same job costs less.
"""

import gc
import os
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import jwt
import msgspec

from backend.database.url import connect_arguments

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_COLUMNS = "id, user_id, title, description, completed, created_at, updated_at"
LIST = f"SELECT {_COLUMNS} FROM tasks WHERE user_id = $1 ORDER BY created_at, id LIMIT 1000"
GET = f"SELECT {_COLUMNS} FROM tasks WHERE id = $1 AND user_id = $2"
CREATE = f"""
    INSERT INTO tasks (user_id, title, title_key, description) VALUES ($1, $2, $3, $4) RETURNING {_COLUMNS}
"""
UPDATE = f"""
    UPDATE tasks SET title = $3, title_key = $4, updated_at = clock_timestamp()
    WHERE id = $1 AND user_id = $2 RETURNING {_COLUMNS}
"""
TOGGLE = f"""
    UPDATE tasks SET completed = NOT completed, updated_at = clock_timestamp()
    WHERE id = $1 AND user_id = $2 RETURNING {_COLUMNS}
"""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_users: dict[bytes, str] = {}


class _Connection(asyncpg.Connection):
    def get_reset_query(self) -> str:
        return ""


class Limit:
    """The application."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        method = scope["method"]
        user = next(_user(value) for name, value in scope["headers"] if name == b"authorization")
        data = _decode((await receive())["body"]) if method in {"POST", "PUT"} else {}
        async with self._pool.acquire() as connection:
            body = _encode(await _answer(connection, method, scope["path"], user, data))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        status = 201 if method == "POST" else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        arguments = connect_arguments(os.environ["DATABASE_URL"])
        async with asyncpg.create_pool(
            **arguments, min_size=10, max_size=10, connection_class=_Connection
        ) as self._pool:
            gc.collect()
            gc.freeze()
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def _answer(connection: Any, method: str, path: str, user: str, data: Message) -> Any:
    if path == "/tasks" and method == "GET":
        return [dict(row) for row in await connection.fetch(LIST, user)]
    title = data.get("title", "")
    if path == "/tasks":
        return dict(await connection.fetchrow(CREATE, user, title, title.casefold(), data.get("description")))
    task = int(path.split("/")[2])
    match method:
        case "GET":
            return dict(await connection.fetchrow(GET, task, user))
        case "PUT":
            return dict(await connection.fetchrow(UPDATE, task, user, title, title.casefold()))
        case _:
            return dict(await connection.fetchrow(TOGGLE, task, user))


def _user(authorization: bytes) -> str:
    if authorization not in _users:
        token, secret = authorization.removeprefix(b"Bearer "), os.environ["JWT_SECRET"]
        claims = jwt.decode(token, secret, algorithms=["HS256"], audience="tasks-api", issuer="tasks-api")
        _users[authorization] = claims["sub"]
    return _users[authorization]


app = Limit()
