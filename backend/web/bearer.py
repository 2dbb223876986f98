"""The bearer token of a request (RFC 6750 section 2.1), and the errors of a missing or invalid one."""

from typing import ClassVar

from starlette.requests import Request

from backend.web.errors import AppError

_BEARER = b"bearer "


class UnauthorizedError(AppError):
    """401 with the challenge of RFC 6750 section 3, which has `error` only if a token was sent."""

    is_denial = True
    status = 401
    code = "not_authenticated"
    detail = "Sign in first: this address needs an access token"
    token_was_sent: ClassVar[bool] = False

    def __init__(self, *, reason: str = "") -> None:
        challenge = "Bearer"
        if self.token_was_sent:
            challenge += f' error="invalid_token", error_description="{self.detail}"'
        super().__init__(reason=reason, headers={"WWW-Authenticate": challenge})


class NotBearerError(UnauthorizedError):
    """The `Authorization` header does not have the form of RFC 6750 section 2.1."""

    detail = "Send the access token as Authorization: Bearer <access token>"


class InvalidTokenError(UnauthorizedError):
    """The access token is malformed, untrusted, or has another purpose."""

    code = "invalid_token"
    detail = "The access token is not valid"
    token_was_sent = True


def bearer_token(request: Request) -> str:
    """Return the bearer token of the request (RFC 6750 section 2.1); raises `UnauthorizedError`."""
    sent = [value for name, value in request.scope["headers"] if name == b"authorization"]
    if not sent:
        raise UnauthorizedError(reason="missing")
    if len(sent) > 1:
        raise InvalidTokenError(reason="two_headers")
    if sent[0][:7].lower() != _BEARER or not (token := sent[0][7:].strip(b" ")):
        raise NotBearerError(reason="malformed")
    return str(token, "latin-1")
