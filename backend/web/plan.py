"""Computes the arguments of a plain handler (see `routing.py`) from FastAPI's `Dependant`.

FastAPI builds a `Dependant` at import. Its own solver works for every signature, but costs a request
60 % more instructions.
"""

from dataclasses import fields
from typing import Any, Protocol, runtime_checkable
from urllib.parse import parse_qsl

from fastapi import params
from fastapi._compat import (
    ModelField,
    Undefined,
    field_annotation_is_sequence,
    lenient_issubclass,
)
from fastapi.dependencies.models import Dependant, _is_coroutine_callable
from fastapi.dependencies.utils import get_typed_return_annotation, request_body_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from backend.web.body import BoundedRequest, read_form, read_json
from backend.web.error_documentation import calls_of
from backend.web.middleware import OF_UNKNOWN_LENGTH


@runtime_checkable
class Guard(Protocol):
    """A dependency that identifies the caller by the token, and confirms the session before an error."""

    async def __call__(self, request: Request) -> object:
        """Return the caller; raises an `AppError` (401) if the token is missing or not valid."""

    async def confirm(self, request: Request) -> None:
        """Raise an `AppError` (401) if the caller's session has ended."""


def guard_of(dependant: Dependant) -> Guard | None:
    """Return the first `Guard` among the dependencies of a route, at any depth."""
    return next((call for call in calls_of(dependant) if isinstance(call, Guard)), None)


class Plan:
    """Reads a request in FastAPI's order, after the guard: dependencies, path, query, body."""

    def __init__(self, dependant: Dependant) -> None:
        self._request_name = dependant.request_param_name
        self._path = [(field.name, field.alias, field.validate) for field in dependant.path_params]
        self._query = [(field.name, field.validate) for field in dependant.query_params]
        self._body = dependant.body_params
        in_order = sorted(dependant.dependencies, key=lambda one: not isinstance(one.call, Guard))
        self._dependencies: list[tuple[str | None, Any, str | None]] = [
            (one.name, one.call, one.request_param_name) for one in in_order
        ]

    async def arguments(self, request: BoundedRequest) -> dict[str, Any]:
        """Return the handler's arguments; raises `RequestValidationError`, and what dependencies raise."""
        values: dict[str, Any] = {}
        problems: list[Any] = []
        for name, call, request_name in self._dependencies:
            value = await (call(**{request_name: request}) if request_name else call())
            if name is not None:
                values[name] = value
        if self._request_name is not None:
            values[self._request_name] = request
        for name, alias, validate in self._path:
            values[name], wrong = validate(request.path_params[alias], loc=("path", alias))
            problems += wrong
        for name, validate in self._query:
            # As Starlette's `QueryParams`, which takes ten times as long.
            asked = dict(parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True))
            values[name], wrong = validate(asked, loc=("query",))
            problems += wrong
        for field in self._body:
            value, wrong = await _read_body(request, field)
            values |= value
            problems += wrong
        if not self._body and OF_UNKNOWN_LENGTH in request.scope:
            await request.body()  # raises if the body is too large
        if problems:
            raise RequestValidationError(problems)
        return values


async def _read_body(request: BoundedRequest, field: ModelField) -> tuple[dict[str, Any], list[Any]]:
    if isinstance(field.field_info, params.Form):
        return await request_body_to_args([field], await read_form(request), embed_body_fields=False)
    if body := await read_json(request):
        try:
            return {field.name: await _validate(request, body, field._type_adapter)}, []  # noqa: SLF001  # FastAPI's
        except ValidationError as error:
            problems: list[Any] = error.errors(include_url=False)
            return {}, [problem | {"loc": ("body", *problem["loc"])} for problem in problems]
    return await request_body_to_args([field], Undefined, embed_body_fields=False)


async def _validate(request: BoundedRequest, body: bytes, adapter: Any) -> Any:
    """Validate as JSON, because there a strict field accepts a date as a string.

    Pydantic's parser refuses a lone surrogate or deep nesting even in an ignored field. The values of
    Python's parser are validated then.
    """
    try:
        return adapter.validate_json(body)
    except ValidationError as error:
        if error.errors(include_input=False)[0]["type"] != "json_invalid":
            raise
    return adapter.validate_python(await request.json())


_PLAIN = {"dependencies", "name", "call", "request_param_name", "use_cache", "path", "scope"}
_PARAMETERS = {"path_params", "query_params", "body_params"}


def oddities(route: APIRoute) -> list[str]:
    """Name the features of a route that a `Plan` lacks; a feature of a later FastAPI is one too."""
    handler, returned = route.dependant, get_typed_return_annotation(route.endpoint)
    odd = _odd(handler, _PLAIN | _PARAMETERS)
    odd += [name for one in handler.dependencies for name in _odd(one, _PLAIN - {"dependencies"})]
    odd += [
        field.name
        for field in handler.path_params
        if field.validation_alias or field.alias not in route.param_convertors
    ]
    odd += [field.name for field in handler.query_params + handler.body_params if not _is_plain(field)]
    odd += [name for name in ("_embed_body_fields", "max_body_size") if getattr(route, name)]
    calls = [one.call for one in handler.dependencies]
    odd += ["dependencies"] if any(calls.count(call) > 1 for call in calls) else []
    return odd if lenient_issubclass(returned, Response) else [*odd, "return"]


def _odd(dependant: Dependant, plain: set[str]) -> list[str]:
    read = [field.name for field in fields(Dependant) if getattr(dependant, field.name)]
    odd = [name for name in read if name not in plain]
    return odd if _is_coroutine_callable(dependant.call) else [*odd, "call"]


def _is_plain(field: ModelField) -> bool:
    """Return whether a parameter is JSON, or a model of fields that are sent once and have no alias."""
    info = field.field_info
    if type(info) is params.Body:
        return info.media_type == "application/json"
    return (
        type(info) in {params.Query, params.Form}
        and lenient_issubclass(info.annotation, BaseModel)
        and not info.metadata
        and not any(
            one.validation_alias or field_annotation_is_sequence(one.annotation)
            for one in info.annotation.model_fields.values()
        )
    )
