"""`create_app` returns an ASGI application for any server, which an owner may extend as FastAPI documents."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import httpx2
import pytest
from fastapi import Depends, File, HTTPException, Request, Response, UploadFile
from fastapi.responses import StreamingResponse

from backend.app import create_app
from backend.settings import load_settings
from backend.web.middleware import MAX_BODY_BYTES
from tests.conftest import Postgres
from tests.service import JWT_SECRET, PASSWORD


def test_it_is_served_by_any_asgi_server(database: Postgres) -> None:
    """httpx2 stands for other servers, because its scope lacks the optional `state`."""

    async def scenario() -> list[int]:
        app = create_app(load_settings(database_url=database.url, jwt_secret=JWT_SECRET, bcrypt_rounds=4))
        transport = httpx2.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://api") as client,
        ):
            credentials = {"email": "in.process@example.com", "password": PASSWORD}
            registered = await client.post("/auth/register", json=credentials)
            client.headers["Authorization"] = f"Bearer {registered.json()['access_token']}"
            created = await client.post("/tasks", json={"title": "Buy milk"})
            answers = [registered, created, await client.patch(f"{created.headers['Location']}/complete")]
            return [answer.status_code for answer in answers]

    assert asyncio.run(scenario()) == [201, 201, 200]


class _TeapotError(Exception):
    pass


def test_what_an_owner_adds_to_it_counts_as_in_any_fastapi_application() -> None:
    """Add a route that only FastAPI's own code can run, an upload, and an exception handler."""
    app = create_app(load_settings(database_url="postgresql://localhost/none", jwt_secret=JWT_SECRET))
    closed: list[str] = []

    def resource() -> Iterator[str]:
        yield "resource"
        closed.append("resource")

    @app.post("/odd")
    def odd(given: Annotated[str, Depends(resource)], file: Annotated[UploadFile, File()]) -> dict[str, str]:
        return {"given": given, "file": file.file.read().decode()}

    @app.get("/teapot")
    async def teapot() -> Response:
        raise _TeapotError

    @app.exception_handler(_TeapotError)
    async def answer(_request: Request, _error: Exception) -> Response:
        return Response(status_code=418)

    async def scenario() -> tuple[object, int, object]:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://api") as client:
            given = await client.post("/odd", files={"file": b"content"})
            unknown = await client.get("/nothing")
            return given.json(), (await client.get("/teapot")).status_code, unknown.json()["code"]

    assert asyncio.run(scenario()) == ({"given": "resource", "file": "content"}, 418, "not_found")
    assert closed == ["resource"]


def test_a_route_of_an_owner_refuses_in_the_shape_of_every_error() -> None:
    app = create_app(load_settings(database_url="postgresql://localhost/none", jwt_secret=JWT_SECRET))

    @app.get("/square/{side}")
    async def square(side: int) -> dict[str, int]:
        if side > 9:
            raise HTTPException(402, "Only nine are free")
        return {"area": side * side}

    async def large() -> AsyncIterator[bytes]:
        yield bytes(MAX_BODY_BYTES + 1)

    async def scenario() -> list[tuple[int, object]]:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://api") as client:
            answers = [
                await client.get("/square/10"),
                await client.get("/square/x"),
                await client.request("GET", "/square/3", content=large()),
            ]
            return [(answer.status_code, answer.json()["code"]) for answer in answers]

    refused = [(402, "payment_required"), (404, "not_found"), (413, "content_too_large")]
    assert asyncio.run(scenario()) == refused


def test_an_owner_may_stream_and_a_stream_that_fails_is_cut_off() -> None:
    app = create_app(load_settings(database_url="postgresql://localhost/none", jwt_secret=JWT_SECRET))

    @app.get("/parts")
    async def parts(broken: bool = False) -> Response:  # noqa: FBT002  # a parameter of the query
        async def each() -> AsyncIterator[bytes]:
            yield b"one "
            yield b"two"
            if broken:
                raise _TeapotError

        return StreamingResponse(each())

    async def scenario() -> bytes:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://api") as client:
            with pytest.raises(_TeapotError):
                await client.get("/parts", params={"broken": True})
            return (await client.get("/parts")).content

    assert asyncio.run(scenario()) == b"one two"
