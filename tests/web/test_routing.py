"""`Route` treats every kind of handler as FastAPI's own class does, and adds the guard alone."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    Form,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    Security,
    UploadFile,
)
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import SecurityScopes
from pydantic import BaseModel, ConfigDict
from starlette.routing import Mount

from backend.app import create_app
from backend.database import Statement
from backend.settings import load_settings
from backend.web.database import get_database
from backend.web.errors import AppError
from backend.web.routing import Route, literal_first

JSON = {"Content-Type": "application/json"}


class In(BaseModel):
    """A body, or a form."""

    a: int
    b: str = "x"


class Out(BaseModel):
    """A response model with fewer fields than the returned object."""

    id: int


class Asked(BaseModel):
    """A query of several fields."""

    model_config = ConfigDict(frozen=True)

    page: int = 1
    word: Annotated[str, Query(min_length=2)] = "any"


class Closed(BaseModel):
    """A query without unknown parameters."""

    model_config = ConfigDict(extra="forbid")

    page: int


class Renamed(BaseModel):
    """A query with another name and with a parameter that is sent several times."""

    page: Annotated[int, Query(alias="p")] = 1
    words: list[str] = []


@dataclass
class Site:
    """An application, and the log of its handlers and dependencies in their order."""

    app: FastAPI
    log: list[Any] = field(default_factory=list)
    overrides: dict[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)

    async def send(self, method: str, path: str, **options: Any) -> tuple[Any, ...]:
        """Return the whole response, and the log of the request."""
        self.log.clear()
        transport = httpx2.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://api") as client:
            answer = await client.request(method, path, **options)
        return answer.status_code, answer.content, sorted(answer.headers.multi_items()), list(self.log)


def site(route: type[APIRoute]) -> Site:  # noqa: C901, PLR0915  # one route of each kind, side by side
    """Return an application whose routes are of this class."""
    app = FastAPI(openapi_url=None)
    app.router.route_class = route
    made = Site(app)
    log = made.log

    async def one(request: Request) -> int:
        log.append(f"one {request.method}")
        return 1

    async def two(first: Annotated[int, Depends(one)]) -> int:
        log.append("two")
        return first + 1

    def threaded(q: int = 3) -> int:
        log.append("threaded")
        return q

    async def opened() -> AsyncIterator[int]:
        log.append("enter")
        yield 5
        log.append("exit")

    async def count() -> int:
        log.append("count")
        return len(log)

    async def teapot() -> None:
        raise HTTPException(418, "tea", headers={"X-Tea": "green"})

    async def scopes(wanted: SecurityScopes) -> list[str]:
        return wanted.scopes

    async def instead() -> int:
        log.append("instead")
        return 99

    made.overrides = {one: instead, opened: instead}

    @app.get("/plain/{number}")
    async def plain(number: int, asked: Annotated[Asked, Query()]) -> JSONResponse:
        log.append("handler")
        return JSONResponse([number, asked.page], 201)

    @app.get("/plain-deps")
    async def plain_deps(x: Annotated[int, Depends(one)], y: Annotated[int, Depends(count)]) -> JSONResponse:
        return JSONResponse([x, y])

    @app.get("/plain-routedep", dependencies=[Depends(one), Depends(teapot)])
    async def plain_routedep() -> JSONResponse:
        return JSONResponse(1)

    @app.get("/query")
    async def query(
        a: int,
        b: int = 7,
        c: Annotated[list[str], Query()] = [],  # noqa: B006  # FastAPI copies it
        d: Annotated[str, Query(alias="dd")] = "x",
    ) -> JSONResponse:
        c.append("mine")
        return JSONResponse([a, b, c, d])

    @app.get("/default")
    async def default(c: Annotated[list[str], Query(default_factory=list)]) -> JSONResponse:
        c.append("mine")
        return JSONResponse(c)

    @app.get("/plain-model")
    async def plain_model(asked: Annotated[Asked, Query()]) -> JSONResponse:
        return JSONResponse([asked.page, asked.word])

    @app.get("/plain-strict-model")
    async def strict_model(asked: Annotated[Closed, Query()]) -> JSONResponse:
        return JSONResponse(asked.page)

    @app.get("/renamed-model")
    async def renamed_model(asked: Annotated[Renamed, Query()]) -> JSONResponse:
        return JSONResponse([asked.page, asked.words])

    @app.get("/optional-model")
    async def optional_model(asked: Annotated[Asked | None, Query()] = None) -> JSONResponse:
        return JSONResponse(asked and asked.page)

    @app.get("/headers")
    async def headers(
        x_one: Annotated[str, Header()], two: Annotated[str | None, Cookie()] = None
    ) -> JSONResponse:
        return JSONResponse([x_one, two])

    @app.post("/plain-body")
    async def plain_body(data: In, asked: Annotated[Asked, Query()]) -> JSONResponse:
        return JSONResponse([data.a, data.b, asked.page])

    @app.post("/plain-optional")
    async def plain_optional(data: In | None = None) -> JSONResponse:
        return JSONResponse(data and data.a)

    @app.post("/plain-form")
    async def plain_form(data: Annotated[In, Form()]) -> JSONResponse:
        return JSONResponse([data.a, data.b])

    @app.post("/plain-request/{name}")
    async def plain_request(request: Request, name: str) -> JSONResponse:
        return JSONResponse([request.url.path, name, (await request.body()).decode()])

    @app.get("/plain-raises")
    async def plain_raises(request: Request) -> JSONResponse:
        raise HTTPException(409, request.url.path)

    @app.get("/plain-crash")
    async def plain_crash() -> JSONResponse:
        return JSONResponse(1 // 0)

    @app.get("/filter", response_model=Out)
    async def filtered() -> dict[str, object]:
        return {"id": 1, "password_hash": "secret"}

    @app.get("/filter-list", response_model=list[Out])
    async def filtered_list() -> list[object]:
        return [Out(id=1), {"id": 2, "password_hash": "secret"}]

    @app.get("/annotated")
    async def annotated() -> Out:
        return {"id": 4, "password_hash": "secret"}  # type: ignore[return-value]  # what a filter is for

    @app.get("/excluded", response_model=Out, response_model_exclude={"id"})
    async def excluded() -> dict[str, int]:
        return {"id": 1}

    @app.get("/subs")
    async def subs(x: Annotated[int, Depends(two)], y: Annotated[int, Depends(one)]) -> JSONResponse:
        return JSONResponse([x, y])

    @app.get("/uncached")
    async def uncached(
        a: Annotated[int, Depends(count, use_cache=False)], b: Annotated[int, Depends(count, use_cache=False)]
    ) -> JSONResponse:
        return JSONResponse([a, b])

    @app.get("/cached")
    async def cached(a: Annotated[int, Depends(count)], b: Annotated[int, Depends(count)]) -> JSONResponse:
        return JSONResponse([a, b])

    @app.get("/threaded")
    async def in_thread(x: Annotated[int, Depends(threaded)]) -> JSONResponse:
        return JSONResponse(x)

    @app.get("/sync")
    def sync() -> JSONResponse:
        log.append("sync")
        return JSONResponse(3)

    @app.get("/yield")
    async def yielding(x: Annotated[int, Depends(opened)]) -> JSONResponse:
        log.append("handler")
        return JSONResponse(x)

    @app.get("/yield-function")
    async def closing(x: Annotated[int, Depends(opened, scope="function")]) -> JSONResponse:
        log.append("handler")
        return JSONResponse(x)

    @app.get("/scopes")
    async def scoped(x: Annotated[list[str], Security(scopes, scopes=["a", "b"])]) -> JSONResponse:
        return JSONResponse(x)

    @app.post("/embed")
    async def embed(data: In, other: In) -> JSONResponse:
        return JSONResponse([data.a, other.a])

    @app.post("/embed-one")
    async def embed_one(data: Annotated[In, Body(embed=True)]) -> JSONResponse:
        return JSONResponse(data.a)

    @app.post("/form-fields")
    async def form_fields(a: Annotated[int, Form()], b: Annotated[list[str], Form()]) -> JSONResponse:
        return JSONResponse([a, b])

    @app.post("/upload")
    async def upload(file: UploadFile) -> JSONResponse:
        return JSONResponse((await file.read()).decode())

    @app.post("/text")
    async def text(data: Annotated[str, Body(media_type="text/plain")]) -> JSONResponse:
        return JSONResponse(data)

    @app.post("/background")
    async def background(tasks: BackgroundTasks) -> JSONResponse:
        tasks.add_task(log.append, "later")
        return JSONResponse(1)

    @app.get("/response")
    async def response(response: Response) -> int:
        response.headers["X-Y"], response.status_code = "z", 202
        return 1

    @app.get("/text", response_class=PlainTextResponse)
    async def plain_text() -> str:
        return "hi"

    @app.get("/nothing", status_code=204)
    async def nothing() -> None:
        return None

    @app.get("/plain-stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(iter(["a", "b"]))

    @app.get("/lines")
    async def lines() -> AsyncIterator[Out]:
        yield Out(id=1)
        yield Out(id=2)

    @app.get("/plain-path/{rest:path}")
    async def path(rest: str) -> JSONResponse:
        return JSONResponse(rest)

    @app.post("/limited", max_body_size=4)
    async def limited(data: In) -> JSONResponse:
        return JSONResponse(data.a)

    router = APIRouter(route_class=route, dependencies=[Depends(one)])

    @router.post("/included/{number}")
    async def included(number: int, data: In) -> JSONResponse:
        return JSONResponse([number, data.a])

    app.include_router(router, prefix="/router", dependencies=[Depends(two)])

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # The message for a body that is no object depends on the validation, as JSON or as Python.
        problems = [[e["loc"], e["type"].replace("_attributes", ""), e["msg"]] for e in error.errors()]
        return JSONResponse([p[:2] if p[1] == "model_type" else p for p in problems], 422)

    return made


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/plain/3", {}),
    ("GET", "/plain/3?page=9&page=8", {}),
    ("GET", "/plain/x?page=z", {}),
    ("POST", "/plain/3", {}),
    ("GET", "/plain-deps", {}),
    ("GET", "/plain-routedep", {}),
    ("GET", "/query", {}),
    ("GET", "/query?a=1", {}),
    ("GET", "/query?a=1&b=2&c=1&c=2&dd=yy", {}),
    ("GET", "/query?a=z&b=z", {}),
    ("GET", "/default", {}),
    ("GET", "/default", {}),
    ("GET", "/plain-model", {}),
    ("GET", "/plain-model?page=2&word=ab&other=1", {}),
    ("GET", "/plain-model?page=x&word=a", {}),
    ("GET", "/plain-model?page=&word=%20+", {}),
    ("GET", "/plain-strict-model", {}),
    ("GET", "/plain-strict-model?page=1", {}),
    ("GET", "/plain-strict-model?page=x&other=1&other=2", {}),
    ("GET", "/renamed-model?p=2&page=3&words=a&words=b", {}),
    ("GET", "/optional-model", {}),
    ("GET", "/optional-model?page=2", {}),
    ("GET", "/headers", {}),
    ("GET", "/headers", {"headers": {"X-One": "1", "Cookie": "two=2"}}),
    ("POST", "/plain-body", {"json": {"a": 1}}),
    ("POST", "/plain-body?page=x", {"json": {"a": "z", "b": 1}}),
    ("POST", "/plain-body", {"json": None}),
    ("POST", "/plain-body", {"content": b"null", "headers": JSON}),
    ("POST", "/plain-body", {"headers": JSON}),
    ("POST", "/plain-optional", {}),
    ("POST", "/plain-optional", {"json": {"a": 2}}),
    ("POST", "/plain-optional", {"content": b"null", "headers": JSON}),
    ("POST", "/plain-form", {"data": {"a": "1", "b": "y", "c": "z"}}),
    ("POST", "/plain-form", {"data": {"a": "", "b": ""}}),
    ("POST", "/plain-form", {"data": {"a": "x"}}),
    ("POST", "/plain-request/abc", {"content": b"anything"}),
    ("GET", "/plain-raises", {}),
    ("GET", "/plain-crash", {}),
    ("GET", "/filter", {}),
    ("GET", "/filter-list", {}),
    ("GET", "/annotated", {}),
    ("GET", "/excluded", {}),
    ("GET", "/subs", {}),
    ("GET", "/uncached", {}),
    ("GET", "/cached", {}),
    ("GET", "/threaded?q=9", {}),
    ("GET", "/threaded?q=x", {}),
    ("GET", "/sync", {}),
    ("GET", "/yield", {}),
    ("GET", "/yield-function", {}),
    ("GET", "/scopes", {}),
    ("POST", "/embed", {"json": {"data": {"a": 1}, "other": {"a": 2}}}),
    ("POST", "/embed", {"json": {"data": {"a": 1}}}),
    ("POST", "/embed-one", {"json": {"data": {"a": 1}}}),
    ("POST", "/embed-one", {"json": {"a": 1}}),
    ("POST", "/form-fields", {"data": {"a": "1", "b": ["x", "y"]}}),
    ("POST", "/form-fields", {"data": {"b": "x"}}),
    ("POST", "/upload", {"files": {"file": b"bytes"}}),
    ("POST", "/text", {"content": b"words", "headers": {"Content-Type": "text/plain"}}),
    ("POST", "/limited", {"content": b"{}", "headers": JSON}),
    ("POST", "/background", {}),
    ("GET", "/response", {}),
    ("GET", "/text", {}),
    ("GET", "/nothing", {}),
    ("GET", "/plain-stream", {}),
    ("GET", "/lines", {}),
    ("GET", "/plain-path/a/b", {}),
    ("POST", "/router/included/3", {"json": {"a": 1}}),
    ("POST", "/router/included/x", {"json": {"a": "x"}}),
]


@pytest.fixture(scope="module")
def sites() -> tuple[Site, Site]:
    """The same routes of both classes."""
    return site(APIRoute), site(Route)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("is_overridden", [False, True])
@pytest.mark.parametrize(("method", "path", "options"), CASES)
def test_a_route_does_all_that_fastapis_does(
    sites: tuple[Site, Site], method: str, path: str, options: dict[str, Any], is_overridden: bool
) -> None:
    answers = []
    for one in sites:
        one.app.dependency_overrides = one.overrides if is_overridden else {}
        answers.append(asyncio.run(one.send(method, path, **options)))
    stock, ours = answers
    assert ours == stock


def test_a_plan_runs_the_plain_routes_and_fastapi_the_others(sites: tuple[Site, Site]) -> None:
    for route in sites[1].app.routes:
        if isinstance(route, Route):
            assert ("plain" in route.path) == (not route.oddities), (route.path, route.oddities)


def test_every_route_of_the_api_is_planned() -> None:
    app = create_app(load_settings(database_url="postgresql://localhost", jwt_secret="x" * 40))
    ours = [route for route in app.routes if isinstance(route, Route)]
    assert {route.path: route.oddities for route in ours if route.oddities} == {}
    assert {"/tasks", "/api/{user_id}/tasks/{task_id}", "/auth/token", "/health"} <= {r.path for r in ours}


class RefusedError(AppError):
    """The request has no token."""

    status, code = 401, "refused"


class Doorkeeper:
    """A guard that accepts a token and reports on request if the session is alive."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.is_alive = log, True

    async def __call__(self, request: Request) -> str:
        """Return the caller."""
        self.log.append("guard")
        if "token" not in request.headers:
            raise RefusedError
        return "ada"

    async def confirm(self, _: Request) -> None:
        """Refuse a session that is gone."""
        self.log.append("confirm")
        if not self.is_alive:
            raise RefusedError


def guarded(doorkeeper: Doorkeeper, returned: Any) -> FastAPI:
    """Return an application with one guarded route, planned if it returns a response."""
    app = FastAPI(openapi_url=None)
    app.router.route_class = Route
    log = doorkeeper.log

    async def other() -> int:
        log.append("other")
        return 1

    async def handler(
        x: Annotated[int, Depends(other)], caller: Annotated[str, Depends(doorkeeper)], data: In, n: int
    ) -> Any:
        log.append("handler")
        return JSONResponse([x, caller, data.a, n])

    handler.__annotations__["return"] = returned
    app.post("/guarded/{n}", response_model=None)(handler)

    @app.exception_handler(AppError)
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)
        return JSONResponse(error.code, error.status)

    return app


async def body_that_is_asked_for(log: list[str]) -> AsyncIterator[bytes]:
    """Yield a body, and log when it is read."""
    log.append("body")
    yield b"{"


@pytest.mark.parametrize("returned", [JSONResponse, dict[str, int]], ids=["planned", "by FastAPI"])
@pytest.mark.parametrize("path", ["/guarded/1", "/guarded/x"])
def test_the_guard_decides_before_anything_is_read(returned: Any, path: str) -> None:
    log: list[str] = []
    made = Site(guarded(Doorkeeper(log), returned))
    answer = asyncio.run(made.send("POST", path, content=body_that_is_asked_for(log)))
    assert answer[:2] == (401, b'"refused"')
    assert log == ["guard"]


@pytest.mark.parametrize("returned", [JSONResponse, dict[str, int]], ids=["planned", "by FastAPI"])
@pytest.mark.parametrize(
    ("path", "content"), [("/guarded/x", b'{"a": 1}'), ("/guarded/1", b"{"), ("/guarded/1", b'{"a": "x"}')]
)
def test_a_session_that_is_gone_is_refused_before_anything_else_is(
    returned: Any, path: str, content: bytes
) -> None:
    doorkeeper = Doorkeeper([])
    made = Site(guarded(doorkeeper, returned))
    for is_alive in (True, False):
        doorkeeper.is_alive = is_alive
        status, *_ = asyncio.run(made.send("POST", path, content=content, headers={**JSON, "token": "t"}))
        assert status == (422 if b"}" in content else 400) if is_alive else status == 401
    assert "handler" not in doorkeeper.log


def test_what_is_right_costs_no_confirmation() -> None:
    doorkeeper = Doorkeeper([])
    options = {"json": {"a": 1}, "headers": {"token": "t"}}
    answer = asyncio.run(Site(guarded(doorkeeper, JSONResponse)).send("POST", "/guarded/2", **options))
    assert answer[:2] == (200, b'[1,"ada",1,2]')
    assert doorkeeper.log == ["guard", "other", "handler"]


class Strict(BaseModel):
    """A body with types that JSON has only as text."""

    model_config = ConfigDict(strict=True)

    at: datetime
    done: bool = False


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"at": "2026-11-20T09:30:00Z"}', 200),
        (b'{"at": 7}', 422),
        (b'{"at": "2026-11-20T09:30:00Z", "done": "yes"}', 422),
        (b'{"at": 7, "at": "2026-11-20T09:30:00Z"}', 200),
        (b'{"at": "2026-11-20T09:30:00Z", "at": 7}', 422),
        (b'{"at": "2026-11-20T09:30:00Z", "other": NaN}', 400),
        (b'{"at": "2026-11-20T09:30:00Z", "other": 1e999}', 400),
        (b'\xef\xbb\xbf{"at": "2026-11-20T09:30:00Z"}', 400),
    ],
)
def test_a_strict_field_takes_what_json_has_for_it_and_nothing_else(content: bytes, status: int) -> None:
    app = FastAPI(openapi_url=None)
    app.router.route_class = Route

    @app.post("/strict")
    async def strict(data: Strict) -> JSONResponse:
        return JSONResponse(data.at.isoformat())

    @app.exception_handler(AppError)
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, AppError)
        return JSONResponse(error.code, error.status)

    answer = asyncio.run(Site(app).send("POST", "/strict", content=content, headers=JSON))
    assert answer[0] == status


def test_a_literal_path_wins_over_a_pattern_that_came_before_it() -> None:
    app = create_app(load_settings(database_url="postgresql://localhost", jwt_secret="x" * 40))

    @app.get("/tasks/statistics")
    async def statistics() -> JSONResponse:
        return JSONResponse("statistics")

    assert asyncio.run(Site(app).send("GET", "/tasks/statistics"))[:2] == (200, b'"statistics"')


def test_a_stream_that_fails_at_once_is_500_and_a_later_one_is_cut_short() -> None:
    app = create_app(load_settings(database_url="postgresql://localhost", jwt_secret="x" * 40))

    async def pieces(number: int) -> AsyncIterator[bytes]:
        for _ in range(number):
            yield b"piece"
        raise RuntimeError

    @app.get("/stream/{number}")
    async def stream(number: int) -> StreamingResponse:
        return StreamingResponse(pieces(number))

    status, content, *_ = asyncio.run(Site(app).send("GET", "/stream/0"))
    assert (status, json.loads(content)["code"]) == (500, "internal_error")
    assert asyncio.run(Site(app).send("GET", "/stream/1"))[:2] == (200, b"piece")


def test_routes_that_swallow_nothing_keep_their_order() -> None:
    router = APIRouter()
    for path in ("/a/{x}", "/b", "/a/{x}/c", "/a/b", "/{y}/b", "/a/{x:path}"):
        router.get(path)(lambda: None)
    router.mount("/a", FastAPI())
    *routes, last = literal_first(router.routes)
    assert isinstance(last, Mount)
    ordered = [route.path for route in routes if isinstance(route, APIRoute)]
    assert ordered == ["/a/b", "/a/{x}", "/b", "/a/{x}/c", "/{y}/b", "/a/{x:path}"]


def test_an_override_counts_for_the_routes_of_the_api() -> None:
    app = create_app(load_settings(database_url="postgresql://localhost", jwt_secret="x" * 40))

    class Answering:
        async def one(self, _: Statement) -> tuple[int]:
            return (1,)

    app.dependency_overrides = {get_database: Answering}
    assert asyncio.run(Site(app).send("GET", "/health/ready"))[0] == 200
