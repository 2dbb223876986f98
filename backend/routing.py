"""How a request becomes a handler's arguments, and its result an answer.

FastAPI parses the body first; here nothing of a request is looked at before its token (contract section 1).
"""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar, get_type_hints
from urllib.parse import parse_qsl

import msgspec
from fastapi import params
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from backend import errors
from backend.errors import AppError, Contract, ErrorBody, FieldError
from backend.middleware import MAX_BODY_BYTES, OF_UNKNOWN_LENGTH, header

_encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")
_Callable = TypeVar("_Callable", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Answer:
    """A handler's result with headers of its own; bytes are sent as they are, all else as JSON."""

    content: object
    headers: Sequence[tuple[bytes, bytes]] = ()


class Guard(Protocol):
    """Decides who asks: from the token alone at first, from the database too before any refusal."""

    async def __call__(self, request: Request) -> object:
        """Return the caller; raises an `AppError` (401) where the token alone shows that there is none."""

    async def confirm(self, request: Request) -> None:
        """Raise an `AppError` (401) if the caller's session is gone."""


class Route(APIRoute):
    """A route whose handler gets its arguments by `Annotated` markers: Depends, Path, Query, Body or Form.

    A dependency takes the request alone. The one that has `confirm` is the guard: it goes first, and what
    it lets through is confirmed before anything else is refused, so that a dead session is always a 401.
    """

    contract: ClassVar[Contract] = errors.SELF_CONTAINED

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.arguments = [_argument(name, hint) for name, hint in _hints(endpoint).items()]
        self.arguments.sort(key=lambda argument: argument.rank)
        options["operation_id"] = endpoint.__name__ + ("_of_user" if "{user_id}" in path else "")
        options["responses"] = self._error_answers(path, endpoint) | (options.get("responses") or {})
        super().__init__(path, endpoint, **options)
        self.guard = next((argument.guard for argument in self.arguments if argument.guard), None)
        self.status = self.status_code or 200
        self.app = self.answer

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; raises `AppError` for the middleware to answer."""
        request = Request(scope, receive)
        arguments = await self._solve(request)
        try:
            result = await self.endpoint(**arguments)
        except errors.InvalidRequestError:
            # What only a handler can judge: a cursor, or a password.
            await self._confirm(request)
            raise
        answer = result if isinstance(result, Answer) else Answer(result)
        headers, body = list(answer.headers), b""
        if isinstance(answer.content, bytes):
            body = answer.content
        elif answer.content is not None:
            body = _encode(answer.content)
            headers.append(_JSON)
        if answer.content is not None:
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _solve(self, request: Request) -> dict[str, Any]:
        values: dict[str, Any] = {}
        try:
            for argument in self.arguments:
                value = argument.read(request)
                values[argument.name] = await value if argument.is_async else value
            if OF_UNKNOWN_LENGTH in request.scope and self.body_field is None:
                await _read_body(request.receive)
        except AppError as error:
            if error.status != HTTPStatus.UNAUTHORIZED:
                await self._confirm(request)
            raise
        return values

    async def _confirm(self, request: Request) -> None:
        if self.guard is not None:
            await self.guard.confirm(request)

    def _error_answers(self, path: str, endpoint: Callable[..., Any]) -> dict[int | str, dict[str, Any]]:
        """Describe every error of the route for OpenAPI: each status, an example of each code."""
        kinds = [kind for argument in self.arguments for kind in argument.raises]
        if "{user_id}" in path:
            kinds.append(errors.WrongUserError)
        kinds += [*getattr(endpoint, "raises", ()), errors.ContentTooLargeError, errors.InternalError]
        answers: dict[int | str, dict[str, Any]] = {}
        for kind in dict.fromkeys(kinds):
            status = kind.status_under(self.contract)
            answer = answers.setdefault(
                status,
                {
                    "model": ErrorBody,
                    "description": HTTPStatus(status).phrase,
                    "content": {"application/json": {"examples": {}}},
                    "headers": {},
                },
            )
            answer["headers"] |= {name: {"schema": {"type": "string"}} for name in kind().headers}
            answer["content"]["application/json"]["examples"][kind.code] = {
                "summary": kind.detail,
                "value": kind.example(self.contract),
            }
        return answers


def raises(*kinds: type[AppError]) -> Callable[[_Callable], _Callable]:
    """Say which errors a handler or a dependency raises, so that its routes document them."""

    def mark(function: _Callable) -> _Callable:
        function.raises = kinds  # type: ignore[attr-defined]  # a plain attribute, read by `Route`
        return function

    return mark


def route_class(contract: Contract) -> type[Route]:
    """Return the `Route` whose refusals are those of `contract`."""
    return type("Route", (Route,), {"contract": contract})


_FORM_ERRORS = (errors.InvalidRequestError, errors.UnsupportedMediaTypeError)
_JSON_ERRORS = (errors.MalformedJSONError, *_FORM_ERRORS)


@dataclass(frozen=True, slots=True)
class _Argument:
    name: str
    rank: int
    read: Callable[[Request], Any]
    is_async: bool = False
    guard: Guard | None = None
    raises: tuple[type[AppError], ...] = ()


def _hints(endpoint: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(endpoint, include_extras=True)
    return {name: hints[name] for name in inspect.signature(endpoint).parameters}


def _argument(name: str, hint: Any) -> _Argument:
    marker = next(m for m in hint.__metadata__ if isinstance(m, (params.Depends, params.Param, params.Body)))
    match marker:
        case params.Depends(dependency=provide) if provide is not None:
            guard = provide if hasattr(provide, "confirm") else None
            documented = getattr(provide, "raises", ())
            return _Argument(name, 0 if guard else 1, provide, bool(guard), guard, documented)
        case params.Path():
            return _Argument(name, 2, _path_reader(name, TypeAdapter(hint)))
        case params.Query():
            return _Argument(name, 3, _query_reader(TypeAdapter(hint)), raises=(errors.InvalidRequestError,))
        case params.Form():
            read = _body_reader(TypeAdapter(hint), _is_form, _parse_form)
            return _Argument(name, 4, read, is_async=True, raises=_FORM_ERRORS)
        case params.Body():
            read = _body_reader(TypeAdapter(hint), _is_json, _parse_json)
            return _Argument(name, 4, read, is_async=True, raises=_JSON_ERRORS)
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
        body = await _read_body(request.receive)
        if not body:
            raise errors.InvalidRequestError([_MISSING_BODY])
        content_type = header(request.scope, b"content-type") or b""
        if not takes(content_type.decode("latin-1").partition(";")[0].strip().lower()):
            raise errors.UnsupportedMediaTypeError
        return _validate(adapter, parse(body), "body")

    return read


_MISSING_BODY = FieldError(field="body", message="A request body is required", type="missing")


async def _read_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise errors.IncompleteBodyError
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise errors.ContentTooLargeError
        if not message.get("more_body"):
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
