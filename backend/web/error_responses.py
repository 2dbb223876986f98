"""Turns any exception into the response with the JSON body that all errors have."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from backend.database import DatabaseError, UnreachableError
from backend.telemetry import events
from backend.telemetry.events import Event
from backend.web import errors
from backend.web.errors import AppError, FieldError
from backend.web.json_response import Answer


class FrameworkError(AppError):
    """An `HTTPException` of a route or a library, with its own status and detail."""

    def __init__(self, error: HTTPException) -> None:
        super().__init__(headers=error.headers)
        self.status, self.detail = error.status_code, str(error.detail)
        self.code = HTTPStatus(error.status_code).name.lower()


_BY_STATUS: dict[int, type[AppError]] = {
    404: errors.NotFoundError,
    405: errors.MethodNotAllowedError,
    413: errors.ContentTooLargeError,
}
_OBJECT = "Input should be an object"
_MESSAGES = {"model_type": _OBJECT, "model_attributes_type": _OBJECT}
"""Replacements for pydantic's messages that name a class."""


def of_framework(error: Exception) -> AppError:
    """Return the `AppError` for `error`, which is an `InternalError` if the exception is unknown."""
    if isinstance(error, RequestValidationError):
        return _of_problems(error.errors())
    if isinstance(error, HTTPException):
        known = _BY_STATUS.get(error.status_code)
        return known() if known else FrameworkError(error)
    if isinstance(error, DatabaseError):
        is_away = isinstance(error, UnreachableError)
        kind = errors.DatabaseUnavailableError if is_away else errors.OverloadedError
        return kind(reason=error.reason)
    return error if isinstance(error, AppError) else errors.InternalError()


def _of_problems(problems: Iterable[Any]) -> AppError:
    if any(problem["loc"][0] == "path" for problem in problems):
        return errors.NotFoundError()
    return errors.InvalidRequestError(_field_error(**problem) for problem in problems)


def _field_error(*, loc: tuple[str | int, ...], msg: str, type: str, **_: Any) -> FieldError:  # noqa: A002  # pydantic's
    place, *field = map(str, loc)
    if type == "missing" and not field:
        msg = "A request body is required"
    return FieldError(field=".".join(field) or place, message=_MESSAGES.get(type, msg), type=type)


async def handle_error(request: Request, error: Exception) -> Response:
    """Return the response of an exception, as Starlette's exception handlers do."""
    return refuse(request.scope, of_framework(error))


def refuse(scope: Scope, error: AppError) -> Response:
    """Return the response of `error`; records `auth.denied` if it refuses a caller."""
    # The scope has no route yet if the head is refused, or if the method does not match.
    route = scope.get("route") or next(iter(_matching_routes(scope)), None)
    contract = getattr(route, "contract", errors.SELF_CONTAINED)
    response = Answer(error.body(contract, events.request_id()), error.status_under(contract))
    response.headers.update(error.headers)
    if isinstance(error, errors.MethodNotAllowedError):
        response.headers["Allow"] = ", ".join(sorted(_methods(scope)))
    if error.is_denial:
        events.record(Event.DENIED, reason=error.reason)
    return response


def _matching_routes(scope: Scope) -> list[BaseRoute]:
    """Return the routes that match the path, with any method."""
    return [route for route in scope["app"].routes if route.matches(scope)[0] is not Match.NONE]


def _methods(scope: Scope) -> set[str]:
    sets = (getattr(route, "methods", None) or set() for route in _matching_routes(scope))
    methods = set[str]().union(*sets)
    return methods | {"HEAD"} if "GET" in methods else methods
