"""Routes for a forgotten password, and for verifying and changing an email."""

from fastapi import APIRouter
from starlette.responses import Response

from backend.auth.dependencies import ContextDep, OwnAccountDep
from backend.auth.errors import WrongPasswordError
from backend.auth.mail import service
from backend.auth.mail.errors import MailTokenError, MailUnavailableError
from backend.auth.mail.schemas import EmailChange, MailRequest, MailToken, PasswordReset
from backend.auth.mail.statements import Kind
from backend.web.database import DatabaseDep
from backend.web.error_documentation import raises
from backend.web.errors import RateLimitedError, ServiceUnavailableError
from backend.web.routing import Route

router = APIRouter(prefix="/auth", tags=["auth"], route_class=Route)
sends_mail = raises(MailUnavailableError, RateLimitedError)
takes_token = raises(MailTokenError)


@router.post("/password/forgot", status_code=202, summary="Ask for a link to reset a password")
@sends_mail
async def request_reset(context: ContextDep, data: MailRequest) -> Response:
    """Mail a link to this address, if an account has it. The answer is the same for every email.

    The link leads to `{APP_URL}/reset-password#token=…` and is valid for 30 minutes, once.
    An address gets one such mail a minute.
    """
    await service.request_link(context, Kind.RESET, data)
    return Response(status_code=202)


@router.post("/password/reset", status_code=204, summary="Reset a password")
@raises(MailTokenError, ServiceUnavailableError)
async def reset_password(context: ContextDep, data: PasswordReset) -> Response:
    """Set a new password by the token of a mailed link. All sessions of the user end; nobody is signed in.

    A password that is refused does not spend the token. The address counts as verified from here on.
    """
    await service.reset_password(context, data)
    return Response(status_code=204)


@router.post("/email/verification", status_code=202, summary="Ask for a link to verify an email")
@sends_mail
async def request_verification(context: ContextDep, data: MailRequest) -> Response:
    """Mail a link to this address, if it waits to be verified. The answer is the same for every email.

    The link leads to `{APP_URL}/verify-email#token=…` and is valid for 24 hours.
    """
    await service.request_link(context, Kind.VERIFY, data)
    return Response(status_code=202)


@router.post("/email/verify", status_code=204, summary="Verify an email")
@takes_token
async def verify_email(database: DatabaseDep, data: MailToken) -> Response:
    """Verify an address by the token of a mailed link.

    The same token gets the same answer again while the address stays verified.
    """
    await service.verify_email(database, data)
    return Response(status_code=204)


@router.post("/email", status_code=202, summary="Ask for a change of your email")
@raises(MailUnavailableError, WrongPasswordError, RateLimitedError, ServiceUnavailableError)
async def request_email_change(context: ContextDep, caller: OwnAccountDep, data: EmailChange) -> Response:
    """Mail a link to the new address and a notice to the old one. The answer is the same for a taken email.

    The link leads to `{APP_URL}/confirm-email#token=…` and is valid for 24 hours, once.
    Until then `pending_email` tells the new address.
    """
    await service.request_email_change(context, caller, data)
    return Response(status_code=202)


@router.post("/email/confirm", status_code=204, summary="Confirm a change of email")
@takes_token
async def confirm_email_change(context: ContextDep, data: MailToken) -> Response:
    """Take the new address as the user's email, verified, by the token of a mailed link.

    The session that asked for the change goes on; all others of the user end. All refresh tokens are void.
    """
    await service.confirm_email_change(context, data)
    return Response(status_code=204)


@router.delete("/email", status_code=204, summary="Drop a change of your email")
async def drop_email_change(database: DatabaseDep, caller: OwnAccountDep) -> Response:
    """Drop a change of your email that waits; its link is void."""
    await service.drop_email_change(database, caller)
    return Response(status_code=204)
