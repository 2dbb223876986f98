"""How a request becomes a handler's arguments, and its result an answer.

FastAPI parses the body first; here nothing of a request is looked at before its token (contract section 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, TypeVar

import msgspec
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from backend import errors
from backend.arguments import arguments_of, read_body
from backend.errors import AppError, Contract, ErrorBody, ServiceUnavailableError
from backend.middleware import OF_UNKNOWN_LENGTH
from backend.timestamps import with_fractions

_encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")
_Callable = TypeVar("_Callable", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Answer:
    """A handler's result with headers of its own; bytes are sent as they are, all else as JSON."""

    content: object
    headers: Sequence[tuple[bytes, bytes]] = ()


class Route(APIRoute):
    """A route whose handler gets its arguments by `Annotated` markers: Depends, Path, Query, Body or Form.

    A dependency takes the request alone. The one that has `confirm` is the guard: it goes first, and what
    it lets through is confirmed before anything else is refused, so that a dead session is always a 401.
    """

    contract: ClassVar[Contract] = errors.SELF_CONTAINED

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.arguments = arguments_of(endpoint)
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
            body = _encode(with_fractions(answer.content))
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
                await read_body(request)
        except AppError as error:
            # Whoever could not be asked who this is would only be waited for once more.
            if error.status != HTTPStatus.UNAUTHORIZED and not isinstance(error, ServiceUnavailableError):
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
