"""Documents the errors of a route in the OpenAPI document: each status, with an example of each code."""

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from backend.web import errors
from backend.web.errors import AppError, Contract, FieldError

SCHEMAS = "#/components/schemas/"
_REQUEST_ID = "0199f3c2a7b47cc09d1b3f5e8a6d4c21"
_Callable = TypeVar("_Callable", bound=Callable[..., Any])


def raises(*kinds: type[AppError]) -> Callable[[_Callable], _Callable]:
    """Declare the errors that a handler or a dependency raises, so that its routes document them."""

    def mark(function: _Callable) -> _Callable:
        function.raises = kinds  # type: ignore[attr-defined]  # a plain attribute, read below
        return function

    return mark


def error_answers(route: APIRoute, contract: Contract) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: the errors of its parameters, dependencies and handler."""
    calls = [route.endpoint, *calls_of(route.dependant)]
    kinds = [kind for call in calls for kind in getattr(call, "raises", ())]
    kinds += [*_refusals(route.dependant), errors.ContentTooLargeError, errors.InternalError]
    if "{user_id}" in route.path:
        kinds.append(errors.WrongUserError)
    answers: dict[int | str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kinds):
        _add(answers, kind(), contract)
    return answers


def calls_of(dependant: Dependant) -> Iterator[Any]:
    """Yield the dependencies of a handler, at any depth."""
    for one in dependant.dependencies:
        yield one.call
        yield from calls_of(one)


def _refusals(dependant: Dependant) -> Iterator[type[AppError]]:
    if dependant.query_params or dependant.header_params or dependant.body_params:
        yield errors.InvalidRequestError
    for field in dependant.body_params:
        if isinstance(field.field_info, params.Form):
            yield errors.NotFormError
        else:
            yield errors.UnsupportedMediaTypeError
            yield errors.MalformedJSONError


def _add(answers: dict[int | str, dict[str, Any]], error: AppError, contract: Contract) -> None:
    status = error.status_under(contract)
    blank = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"examples": {}, "schema": {"$ref": f"{SCHEMAS}ErrorBody"}}},
        "headers": {},
    }
    answer = answers.setdefault(status, blank)
    answer["headers"] |= {name: {"schema": {"type": "string"}} for name in error.headers}
    if isinstance(error, errors.InvalidRequestError):
        error.errors = [FieldError(field="field", message="Field required", type="missing")]
    example = {"summary": error.detail, "value": error.body(contract, _REQUEST_ID)}
    answer["content"]["application/json"]["examples"][error.code] = example
