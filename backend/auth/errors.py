"""Errors of accounts, sessions and tokens."""

from backend.web.bearer import InvalidTokenError, UnauthorizedError
from backend.web.errors import AppError, DatabaseUnavailableError, FieldError, InvalidRequestError


class ExpiredTokenError(InvalidTokenError):
    """The access token has expired; the client refreshes it."""

    code = "token_expired"
    detail = "The access token has expired"


class RevokedTokenError(InvalidTokenError):
    """The session or the user of the access token is gone; the client signs in again."""

    code = "token_revoked"
    detail = "The session has ended, sign in again"

    def __init__(self, *, reason: str = "revoked") -> None:
        super().__init__(reason=reason)


class KeysUnavailableError(DatabaseUnavailableError):
    """The keys of the token server could not be fetched yet, so its tokens cannot be verified."""

    code = "keys_unavailable"
    detail = "The token cannot be checked right now, please try again shortly"


class InvalidCredentialsError(UnauthorizedError):
    """The email is unknown or the password wrong; the answer is the same for both."""

    code = "invalid_credentials"
    detail = "The email or the password is wrong"


class InvalidGrantError(AppError):
    """Wrong credentials or an invalid refresh token (RFC 6749 section 5.2)."""

    status = 400
    code = "invalid_grant"
    detail = "The email, the password or the refresh token is wrong"
    oauth_error = "invalid_grant"


class UnsupportedGrantTypeError(AppError):
    """The grant is neither `password` nor `refresh_token`."""

    status = 400
    code = "unsupported_grant_type"
    detail = "Only the grants password and refresh_token are supported"
    oauth_error = "unsupported_grant_type"


class InvalidRefreshTokenError(UnauthorizedError):
    """The refresh token is unknown, expired, or was used again after the grace period."""

    code = "invalid_refresh_token"
    detail = "The refresh token is not valid, sign in again"


class _ForbiddenError(AppError):
    """The caller or the client may not do this (RFC 9110 section 15.5.4)."""

    is_denial = True
    status = 403


class WrongPasswordError(_ForbiddenError):
    """The access token is valid, but the password is not the caller's."""

    code = "wrong_password"
    detail = "The password is wrong"


class AccountDisabledError(_ForbiddenError):
    """The password is right, but an operator has disabled the account."""

    code = "account_disabled"
    detail = "This account is disabled"
    oauth_error = "invalid_grant"


class EmailUnverifiedError(_ForbiddenError):
    """The password is right, but the service asks for a verified email first."""

    code = "email_unverified"
    detail = "Verify your email first: follow the link that was mailed to you"
    oauth_error = "invalid_grant"


class ExternalAccountError(_ForbiddenError):
    """The caller is an external user, who has no sessions and no password here."""

    code = "external_account"
    detail = "This account is kept elsewhere, change it there"


class CsrfRejectedError(_ForbiddenError):
    """The `Origin` of a request for or by a cookie session is not an allowed one."""

    code = "csrf_rejected"
    detail = "Cookie sessions are for pages of this service and of CORS_ORIGINS"


class SessionNotFoundError(AppError):
    """The caller has no such session."""

    status = 404
    code = "session_not_found"
    detail = "Session not found"


class EmailTakenError(AppError):
    """A user has this email, in any letter case."""

    status = 400
    code = "email_taken"
    detail = "An account with this email exists already"


class PasswordRefusedError(InvalidRequestError):
    """The new password is too short, too long, too common, or the email."""

    def __init__(self, message: str = "", kind: str = "", field: str = "password") -> None:
        super().__init__([FieldError(field=field, message=message, type=kind)])
