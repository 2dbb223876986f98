"""Requests of the routes that send mail or take a token from one."""

from pydantic import BaseModel, ConfigDict, Field

from backend.auth.schemas import Email, NewPassword, Password
from backend.web.text import UnicodeText


class _Input(BaseModel):
    model_config = ConfigDict(strict=True)


class MailRequest(_Input):
    """The address that a link is mailed to, if an account has it."""

    email: Email


class MailToken(_Input):
    """The token of a mailed link: what stands behind `#token=`."""

    token: UnicodeText = Field(examples=["MdsacLZ6wR0nY5nT9ADHyOHpZbaqmfcPWIFZjCrxAKI"])


class PasswordReset(MailToken):
    """The token of a mailed link, and the new password."""

    new_password: NewPassword


class EmailChange(_Input):
    """The new email, and the password of the account."""

    new_email: Email
    password: Password
