"""Errors of the routes in `mail/router.py`."""

from backend.web.errors import AppError, ServiceUnavailableError


class MailUnavailableError(ServiceUnavailableError):
    """The service has no MAIL_URL; the answer is the same for every email."""

    code = "mail_unavailable"
    detail = "This service sends no mail"
    is_shed = False


class MailTokenError(AppError):
    """The token of a link is unknown, expired, used or void."""

    status = 400
    code = "token_invalid"
    detail = "This link is not valid any more, ask for a new one"
