"""Request bodies of the routes in `mail/router.py`."""

from pydantic import Field

from backend.auth.schemas import Email, Input, NewPassword, Password
from backend.web.text import UnicodeText


class MailRequest(Input):
    """The address that a link is mailed to, if an account has it."""

    email: Email


class MailToken(Input):
    """The token of a mailed link, which follows `#token=`."""

    token: UnicodeText = Field(examples=["MdsacLZ6wR0nY5nT9ADHyOHpZbaqmfcPWIFZjCrxAKI"])


class PasswordReset(MailToken):
    """The token of a mailed link, and the new password."""

    new_password: NewPassword


class EmailChange(Input):
    """The new email, and the password of the account."""

    new_email: Email
    password: Password
