"""FastAPI's route, with the service's order of errors and less work for a plain handler.

A plain handler is asynchronous, returns a `Response`, and has only parameters that a `Plan` can read.
FastAPI's own code runs every other handler, so nothing in a signature or a decorator is ignored.
For plain handlers it would cost each request 60 % more instructions.
"""

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Self

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute, _effective_route_context_var
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, get_name
from starlette.routing import Route as StarletteRoute
from starlette.types import Receive, Scope, Send

from backend.database import DatabaseError
from backend.web import errors
from backend.web.body import BoundedRequest, read_json
from backend.web.error_documentation import error_answers
from backend.web.errors import AppError, Contract, InvalidRequestError, ServiceUnavailableError
from backend.web.middleware import OF_UNKNOWN_LENGTH
from backend.web.plan import Guard, Plan, guard_of, oddities

_USER_ID = {
    "name": "user_id",
    "in": "path",
    "required": True,
    "description": "The token's own user: any other is 403",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
_REFUSALS = (AppError, DatabaseError, HTTPException, RequestValidationError)


class Route(APIRoute):
    """A route whose errors have the statuses of `contract`; `oddities` are the reasons why FastAPI runs it.

    The guard runs before anything of the request is read. It confirms the session before any error
    response, so that a session that has ended is always 401.
    """

    contract: ClassVar[Contract] = errors.SELF_CONTAINED

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self._options = dict(options)
        name = options.get("name") or get_name(endpoint)
        if "{user_id}" in path:
            name += "_of_user"
            extra = options.get("openapi_extra") or {}
            options["openapi_extra"] = extra | {"parameters": [_USER_ID, *extra.get("parameters", ())]}
        options["operation_id"] = options.get("operation_id") or name
        super().__init__(path, endpoint, **options)
        self.responses = error_answers(self, self.contract) | self.responses
        self.oddities = oddities(self)
        self.guard = guard_of(self.dependant)
        if not self.oddities:
            # FastAPI's own code needs this middleware, which the application may lack.
            self.unplanned = AsyncExitStackMiddleware(self.app)
            self._plan, self.app = Plan(self.dependant), self._run

    def _of(self, application: FastAPI) -> Self:
        """Return this route as one of `application`, whose `dependency_overrides` apply to it."""
        options = self._options | {"dependency_overrides_provider": application}
        return type(self)(self.path, self.endpoint, **options)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["app"].dependency_overrides:
            await self._of(scope["app"]).unplanned(scope, receive, send)
            return
        request = BoundedRequest(scope, receive, send)
        try:
            arguments = await self._plan.arguments(request)
        except _REFUSALS as error:
            await _confirm(self.guard, request, error)
            raise
        try:
            response = await self.endpoint(**arguments)
        except (InvalidRequestError, HTTPException) as error:
            # The handler has checked a cursor or a password, and sent no statement.
            await _confirm(self.guard, request, error)
            raise
        await response(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # a wider type
        """Return FastAPI's own handler with the guard, for a route with oddities or of an included router."""
        handler = super().get_route_handler()
        route: Any = _effective_route_context_var.get() or self
        guard, body = guard_of(route.dependant), route.body_field
        is_json = body is not None and body.field_info.media_type == "application/json"

        async def answer(given: Request) -> Response:
            request = BoundedRequest(given.scope, given.receive, given._send)  # noqa: SLF001  # no other way to it
            overrides = getattr(route.dependency_overrides_provider, "dependency_overrides", {})
            asked = overrides.get(guard, guard)
            asked = asked if isinstance(asked, Guard) else None
            try:
                if asked is not None:
                    await asked(request)
                if is_json:
                    await read_json(request)
                elif body is None and OF_UNKNOWN_LENGTH in request.scope:
                    await request.body()
                return await handler(request)
            except _REFUSALS as error:
                await _confirm(asked, request, error)
                raise

        return answer


async def _confirm(guard: Guard | None, request: Request, error: Exception) -> None:
    """Raise a 401 instead of `error` if the session has ended."""
    # A database that did not answer is not asked again, because that would only take time.
    is_away = isinstance(error, ServiceUnavailableError | DatabaseError)
    is_refused = getattr(error, "status", None) == HTTPStatus.UNAUTHORIZED
    if guard is not None and not is_away and not is_refused:
        await guard.confirm(request)


def route_class(contract: Contract) -> type[Route]:
    """Return the `Route` whose errors have the statuses of `contract`."""
    return type("Route", (Route,), {"contract": contract})


def literal_first(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    """Return `routes` with literal paths before the patterns that match them: `/tasks/new`, `/tasks/{id}`."""
    ordered: list[BaseRoute] = []
    for route in routes:
        place = next((i for i, other in enumerate(ordered) if _swallows(other, route)), len(ordered))
        ordered.insert(place, route)
    return ordered


def _swallows(route: BaseRoute, other: BaseRoute) -> bool:
    if not (isinstance(route, StarletteRoute) and isinstance(other, StarletteRoute)):
        return False
    # If each matches the other's path, they are the same pattern, and keep their order.
    return bool(route.path_regex.match(other.path)) and not other.path_regex.match(route.path)
