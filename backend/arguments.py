"""What a handler takes, and how each argument is read from a request: its markers say where it stands.

What does not fit is refused in words of ours, and never quoted.
"""

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, get_type_hints
from urllib.parse import parse_qsl

from fastapi import params
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from backend import errors
from backend.errors import AppError, FieldError
from backend.middleware import CUT_SHORT, MAX_BODY_BYTES, header


class Guard(Protocol):
    """Decides who asks: from the token alone at first, from the database too before any refusal."""

    async def __call__(self, request: Request) -> object:
        """Return the caller; raises an `AppError` (401) where the token alone shows that there is none."""

    async def confirm(self, request: Request) -> None:
        """Raise an `AppError` (401) if the caller's session is gone."""


_FORM_ERRORS = (errors.InvalidRequestError, errors.UnsupportedMediaTypeError)
_JSON_ERRORS = (errors.MalformedJSONError, *_FORM_ERRORS)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a handler: how it is read, in which turn, and which errors that may raise."""

    name: str
    rank: int
    read: Callable[[Request], Any]
    is_async: bool = False
    guard: Guard | None = None
    raises: tuple[type[AppError], ...] = ()


def arguments_of(endpoint: Callable[..., Any]) -> list[Argument]:
    """Return what `endpoint` takes, in the order in which it is read: guard, path, query, body."""
    arguments = [_argument(name, hint) for name, hint in _hints(endpoint).items()]
    return sorted(arguments, key=lambda argument: argument.rank)


def _hints(endpoint: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(endpoint, include_extras=True)
    return {name: hints[name] for name in inspect.signature(endpoint).parameters}


def _argument(name: str, hint: Any) -> Argument:
    marker = next(m for m in hint.__metadata__ if isinstance(m, (params.Depends, params.Param, params.Body)))
    match marker:
        case params.Depends(dependency=provide) if provide is not None:
            guard = provide if hasattr(provide, "confirm") else None
            documented = getattr(provide, "raises", ())
            return Argument(name, 0 if guard else 1, provide, bool(guard), guard, documented)
        case params.Path():
            return Argument(name, 2, _path_reader(name, TypeAdapter(hint)))
        case params.Query():
            return Argument(name, 3, _query_reader(TypeAdapter(hint)), raises=(errors.InvalidRequestError,))
        case params.Form():
            read = _body_reader(TypeAdapter(hint), _is_form, _parse_form)
            return Argument(name, 4, read, is_async=True, raises=_FORM_ERRORS)
        case params.Body():
            read = _body_reader(TypeAdapter(hint), _is_json, _parse_json)
            return Argument(name, 4, read, is_async=True, raises=_JSON_ERRORS)
    message = f"{name}: {marker} is no marker that a Route reads"
    raise TypeError(message)


def _path_reader(name: str, adapter: TypeAdapter[Any]) -> Callable[[Request], Any]:
    def read(request: Request) -> Any:
        try:
            return adapter.validate_python(request.path_params[name])
        except ValidationError:
            raise errors.NotFoundError from None

    return read


def _query_reader(adapter: TypeAdapter[Any]) -> Callable[[Request], Any]:
    nothing_asked = adapter.validate_python({})

    def read(request: Request) -> Any:
        query = request.scope["query_string"]
        if not query:
            return nothing_asked
        return _validate(adapter, dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)), "query")

    return read


def _body_reader(
    adapter: TypeAdapter[Any], takes: Callable[[str], bool], parse: Callable[[bytes], Any]
) -> Callable[[Request], Any]:
    async def read(request: Request) -> Any:
        body = await read_body(request)
        if not body:
            raise errors.InvalidRequestError([_MISSING_BODY])
        content_type = header(request.scope, b"content-type") or b""
        if not takes(content_type.decode("latin-1").partition(";")[0].strip().lower()):
            raise errors.UnsupportedMediaTypeError
        return _validate(adapter, parse(body), "body")

    return read


_MISSING_BODY = FieldError(field="body", message="A request body is required", type="missing")


async def read_body(request: Request) -> bytes:
    """Return the whole body; raises `ContentTooLargeError`, or why it has no end."""
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise errors.IncompleteBodyError
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise errors.ContentTooLargeError
        if not message.get("more_body"):
            if error := request.scope.get("state", {}).get(CUT_SHORT):
                raise error
            return bytes(body)


def _is_json(content_type: str) -> bool:
    return content_type == "application/json" or (
        content_type.startswith("application/") and content_type.endswith("+json")
    )


def _is_form(content_type: str) -> bool:
    return content_type == "application/x-www-form-urlencoded"


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is no JSON number"
    raise ValueError(message)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        _refuse_constant(digits)
    return number


_decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode


def _parse_json(body: bytes) -> Any:
    try:
        # A byte order mark is refused by the decoder, as RFC 8259 section 8.1 allows.
        return _decode(body.decode())
    except (ValueError, RecursionError):
        raise errors.MalformedJSONError from None


def _parse_form(body: bytes) -> dict[str, str]:
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise errors.InvalidRequestError([_BAD_FORM]) from None
    if len({name for name, _ in fields}) != len(fields):
        raise errors.InvalidRequestError([_BAD_FORM])
    return dict(fields)


_BAD_FORM = FieldError(field="body", message="Each form field is UTF-8 and sent once", type="form_invalid")


_MESSAGES = {"model_type": "Input should be an object"}
"""In our words, where pydantic's name a class."""


def _validate(adapter: TypeAdapter[Any], value: Any, whole: str) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        raise errors.InvalidRequestError(
            FieldError(
                field=".".join(map(str, problem["loc"])) or whole,
                message=_MESSAGES.get(problem["type"], problem["msg"]),
                type=problem["type"],
            )
            for problem in problems
        ) from None
