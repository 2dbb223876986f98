"""Translates exceptions of FastAPI, Starlette and the database into `AppError`s."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from backend.database import DatabaseError, UnreachableError
from backend.web import errors
from backend.web.errors import AppError, FieldError


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
