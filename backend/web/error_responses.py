"""Turns an error into the response with the JSON body that all errors have."""

from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from backend.telemetry import events
from backend.telemetry.events import Event
from backend.web import errors
from backend.web.errors import AppError, Contract
from backend.web.framework_errors import of_framework
from backend.web.json_response import Answer


async def handle_error(request: Request, error: Exception) -> Response:
    """Return the response of an exception, as Starlette's exception handlers do."""
    return refuse(request.scope, of_framework(error))


def refuse(scope: Scope, error: AppError) -> Response:
    """Return the response of `error`; records `auth.denied` if it refuses a caller."""
    # The scope has no route yet if the head is refused, or if the method does not match.
    route = scope.get("route") or next((route for match, route in _matches(scope)), None)
    response = render(error, getattr(route, "contract", errors.SELF_CONTAINED))
    if isinstance(error, errors.MethodNotAllowedError):
        known = {
            method for match, route in _matches(scope) if match is Match.PARTIAL for method in _methods(route)
        }
        response.headers["Allow"] = ", ".join(sorted(known))
    if error.is_denial:
        events.record(Event.DENIED, reason=error.reason)
    return response


def _matches(scope: Scope) -> Iterator[tuple[Match, BaseRoute]]:
    for route in scope["app"].routes:
        match, _ = route.matches(scope)
        if match is not Match.NONE:
            yield match, route


def _methods(route: BaseRoute) -> set[str]:
    methods = set(route.methods or ()) if isinstance(route, Route) else set()
    return methods | {"HEAD"} if "GET" in methods else methods


def render(error: AppError, contract: Contract) -> Response:
    """Return the response of `error` on a route of `contract`."""
    answer = Answer(error.body(contract, events.request_id()), error.status_under(contract))
    answer.headers.update(error.headers)
    return answer
