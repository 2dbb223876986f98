"""What the `/auth` routes take and give, as the OpenAPI document shows it."""

from datetime import datetime
from typing import Annotated, Literal

from email_validator import EmailNotValidError, validate_email
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
)
from pydantic_core import PydanticCustomError

from backend.text import Line, UnicodeText

MAX_EMAIL_CHARACTERS = 254


def _normalised(email: str) -> str:
    try:
        return validate_email(email, check_deliverability=False).normalized
    except EmailNotValidError:
        # The library's message may quote the address.
        kind, message = "email_invalid", "Enter a valid email address"
        raise PydanticCustomError(kind, message) from None


Email = Annotated[
    str,
    Field(
        max_length=MAX_EMAIL_CHARACTERS, json_schema_extra={"format": "email"}, examples=["ada@example.com"]
    ),
    AfterValidator(_normalised),
]
Password = Annotated[
    UnicodeText, Field(json_schema_extra={"format": "password"}, examples=["correct horse battery"])
]


class _Input(BaseModel):
    model_config = ConfigDict(strict=True)


class Registration(_Input):
    """A new account. The password has 8 to 128 characters, is not a common one and not the email."""

    email: Email
    password: Password
    name: Annotated[Line | None, Field(examples=["Ada"])] = None


class Credentials(_Input):
    """An email and its password."""

    email: Email
    password: Password


class PasswordGrant(BaseModel):
    """The password grant of OAuth 2.0 (RFC 6749 section 4.3.2); `username` is the email."""

    username: str = Field(examples=["ada@example.com"])
    password: Password
    grant_type: str = Field(default="password", examples=["password"])


class ProfileUpdate(_Input):
    """What a user may change of their profile; null clears the name."""

    name: Annotated[Line | None, Field(examples=["Ada"])]


class UserRead(BaseModel):
    """A user; `email` and `name` are null where they are not known."""

    id: str
    email: str | None
    name: str | None
    created_at: datetime


class Tokens(BaseModel):
    """An access token for `expires_in` seconds, and the refresh token that is good for the next one."""

    access_token: str
    token_type: Literal["bearer"]
    expires_in: int
    refresh_token: str
    user: UserRead
