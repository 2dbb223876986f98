"""The errors of the service and their JSON body, which holds nothing internal and nothing of the request."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


@dataclass(frozen=True, slots=True)
class Contract:
    """The statuses in which the two groups of routes differ, and the format of their errors."""

    invalid: Literal[400, 422]
    foreign_task: Literal[403, 404] | None
    """None answers 404 and does not look whether another user has the task."""
    unavailable: Literal[503, 500]
    speaks_oauth: bool = False
    """Error bodies have `error` and `error_description` too (RFC 6749 section 5.2)."""


SELF_CONTAINED = Contract(invalid=400, foreign_task=403, unavailable=503)
USER_SCOPED = Contract(invalid=422, foreign_task=404, unavailable=500)
TOKEN_ENDPOINT = replace(SELF_CONTAINED, speaks_oauth=True)


class FieldError(TypedDict):
    """One reason why a request is invalid; never holds the rejected value."""

    field: str
    message: str
    type: str


_CLOSE = MappingProxyType({"Connection": "close"})
_CODE = (
    "A slug for programs, which stays. Each operation lists its own. Whatever is asked, the answer may be"
    " `not_found`, `method_not_allowed`, `method_unknown`, `transfer_coding_unsupported`, `cors_refused`,"
    " `malformed_request`, `headers_too_large`, `request_timeout`, `incomplete_body` or `overloaded`."
)


class ErrorBody(TypedDict):
    """The JSON of every error, of every route."""

    status_code: int
    detail: str
    code: Annotated[str, Field(description=_CODE)]
    request_id: str
    errors: NotRequired[list[FieldError]]
    error: NotRequired[str]
    error_description: NotRequired[str]


class AppError(Exception):
    """An error with its status, a sentence for a person and a code for a program.

    `reason` goes to the log alone. `decided_by` names the `Contract` field that replaces `status`.
    """

    status: int = 500
    code: str = "internal_error"
    detail: str = "Something went wrong on our side"
    decided_by: ClassVar[Literal["invalid", "unavailable"] | None] = None
    oauth_error: ClassVar[str] = "invalid_request"
    is_denial: ClassVar[bool] = False
    """The error is logged as `auth.denied`."""
    sends: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Headers of every response with this error."""

    def __init__(self, *, reason: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason or self.code)
        self.reason = reason or self.code
        self.headers = {**self.sends, **(headers or {})}
        self.errors: list[FieldError] = []

    def status_under(self, contract: Contract) -> int:
        """Return the HTTP status of this error on a route of `contract`."""
        return getattr(contract, self.decided_by) if self.decided_by else self.status

    def body(self, contract: Contract, request_id: str) -> ErrorBody:
        """Return the JSON body of this error."""
        body: ErrorBody = {
            "status_code": self.status_under(contract),
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        if contract.speaks_oauth:
            body |= {"error": self.oauth_error, "error_description": self.detail}
        if self.errors:
            body["errors"] = self.errors
        return body


class InternalError(AppError):
    """A defect of the service, about which the response says nothing."""

    oauth_error = "server_error"


class MalformedJSONError(AppError):
    """The body is not JSON (RFC 8259), or a number in it is too large for a double."""

    status = 400
    code = "malformed_json"
    detail = "The request body is not valid JSON"


class InvalidRequestError(AppError):
    """The body or the query does not fit the schema."""

    status = 400
    code = "validation_error"
    detail = "The request is not valid"
    decided_by = "invalid"

    def __init__(self, errors: Iterable[FieldError] = ()) -> None:
        super().__init__()
        self.errors = list(errors)


class MissingFieldsError(InvalidRequestError):
    """Required fields are missing; `body` stands for the whole body."""

    def __init__(self, *fields: str) -> None:
        super().__init__(
            FieldError(
                field=field,
                message="A request body is required" if field == "body" else "Field required",
                type="missing",
            )
            for field in fields
        )


class MalformedRequestError(AppError):
    """The received bytes are not an HTTP request (RFC 9112)."""

    status = 400
    code = "malformed_request"
    detail = "This is not an HTTP request"
    sends = _CLOSE


class UnknownMethodError(AppError):
    """The service supports the method on no route (RFC 9110 section 15.6.2)."""

    status = 501
    code = "method_unknown"
    detail = "This service knows the methods GET, HEAD, POST, PUT, PATCH, DELETE and OPTIONS"


class TransferCodingError(AppError):
    """The body has a transfer coding other than `chunked` (RFC 9112 section 6.1)."""

    status = 501
    code = "transfer_coding_unsupported"
    detail = "The only supported transfer coding is chunked"
    sends = _CLOSE


class RequestTimeoutError(AppError):
    """The request did not arrive completely in time (RFC 9110 section 15.5.9)."""

    status = 408
    code = "request_timeout"
    detail = "The request took too long to arrive"
    sends = _CLOSE


class HeadersTooLargeError(AppError):
    """The request line and the headers are larger than the limit (RFC 6585 section 5)."""

    status = 431
    code = "headers_too_large"
    detail = "The request line and headers are larger than 64 KiB"


class IncompleteBodyError(AppError):
    """The client closed the connection before the end of the body (RFC 9112 section 8)."""

    status = 400
    code = "incomplete_body"
    detail = "The request body ended too early"


class WrongUserError(AppError):
    """The `{user_id}` of the path is not the token's user."""

    is_denial = True
    status = 403
    code = "wrong_user"
    detail = "This address belongs to somebody else"


class NotFoundError(AppError):
    """No route matches the path."""

    status = 404
    code = "not_found"
    detail = "There is nothing at this address"


class MethodNotAllowedError(AppError):
    """The route does not support the method; `Allow` lists those it does (RFC 9110 section 15.5.6)."""

    status = 405
    code = "method_not_allowed"
    detail = "This address does not support that method"


class ContentTooLargeError(AppError):
    """The body is larger than the limit (RFC 9110 section 15.5.14)."""

    status = 413
    code = "content_too_large"
    detail = "The request body is larger than 64 KiB"


class UnsupportedMediaTypeError(AppError):
    """The body's `Content-Type` is not JSON's; `Accept` names that (RFC 9110 section 15.5.16)."""

    status = 415
    code = "unsupported_media_type"
    detail = "Send the request body as application/json"
    sends = MappingProxyType({"Accept": "application/json"})


class NotFormError(UnsupportedMediaTypeError):
    """The body's `Content-Type` is not that of a form."""

    detail = "Send the request body as application/x-www-form-urlencoded"
    sends = MappingProxyType({"Accept": "application/x-www-form-urlencoded"})


class _TemporaryError(AppError):
    """The same request may succeed after `Retry-After` seconds (RFC 9110 section 10.2.3)."""

    oauth_error = "temporarily_unavailable"

    def __init__(self, *, reason: str = "", retry_after: int = 1) -> None:
        super().__init__(reason=reason, headers={"Retry-After": str(retry_after)})


class RateLimitedError(_TemporaryError):
    """A rate limit is reached (RFC 6585 section 4)."""

    status = 429
    code = "rate_limited"
    detail = "Too many attempts, please try again later"


class ServiceUnavailableError(_TemporaryError):
    """A queue is full."""

    status = 503
    code = "service_unavailable"
    detail = "The service is not available right now, please try again shortly"


class OverloadedError(ServiceUnavailableError):
    """Too many requests, connections or unread answers exist; nothing was written."""

    code = "overloaded"
    detail = "Too much is going on right now, please try again shortly"


class ShuttingDownError(ServiceUnavailableError):
    """The process is stopping, so a load balancer should send it no more requests."""

    code = "shutting_down"
    detail = "This process is about to end"


class DatabaseUnavailableError(ServiceUnavailableError):
    """All attempts to reach the database failed; nothing was written."""

    code = "database_unavailable"
    detail = "The database cannot be reached right now, please try again shortly"
    decided_by = "unavailable"
