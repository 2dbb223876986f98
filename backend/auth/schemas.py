"""Request and response bodies of the `/auth` routes."""

import unicodedata
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from backend.web.text import Line, UnicodeText, trim

MAX_EMAIL_CHARACTERS = 254


def _normalised(email: str) -> str:
    try:
        return validate_email(email, check_deliverability=False).normalized
    except EmailNotValidError:
        # The library's message may quote the address.
        kind, message = "email_invalid", "Enter a valid email address"
        raise PydanticCustomError(kind, message) from None


def email_key(email: str) -> str:
    """Return the key of an email, which is the same in any letter case (Unicode section 3.13, D145)."""
    return unicodedata.normalize("NFC", email.casefold())


Email = Annotated[
    str,
    Field(
        max_length=MAX_EMAIL_CHARACTERS, json_schema_extra={"format": "email"}, examples=["ada@example.com"]
    ),
    BeforeValidator(trim),
    AfterValidator(_normalised),
]
"""A normalised email. White space at both ends is removed, because keyboards of phones add it."""
Password = Annotated[
    UnicodeText, Field(json_schema_extra={"format": "password"}, examples=["correct horse battery"])
]

NewPassword = Annotated[
    UnicodeText,
    # The limits are for the OpenAPI document; `passwords.check_rules` checks them, after NFC.
    Field(
        json_schema_extra={"format": "password", "minLength": 8, "maxLength": 128},
        examples=["correct horse battery"],
    ),
]


class Input(BaseModel):
    """A request's JSON body; a value of another type than its field's is refused."""

    model_config = ConfigDict(strict=True)


class _SigningIn(Input):
    session: Literal["token", "cookie"] = Field(
        default="token",
        description="`cookie`, for a page in a browser: the refresh token goes into a cookie instead",
    )

    @property
    def uses_cookie(self) -> bool:
        """True if the refresh token goes into a cookie."""
        return self.session == "cookie"


class Registration(_SigningIn):
    """A new account. The password has 8 to 128 characters, is not a common one and not the email."""

    email: Email
    password: NewPassword
    name: Annotated[Line | None, Field(examples=["Ada"])] = None


class Credentials(_SigningIn):
    """An email and its password."""

    email: Email
    password: Password


class TokenGrant(BaseModel):
    """A grant of OAuth 2.0: an email and password, or a refresh token (RFC 6749 sections 4.3.2 and 6).

    `username` is the email. `client_id`, `client_secret` and `scope` are ignored.
    """

    grant_type: str = Field(
        default="password",
        description="`password` (the default) or `refresh_token`",
        examples=["password"],
    )
    username: str | None = Field(
        default=None, description="Required for `password`", examples=["ada@example.com"]
    )
    password: Password | None = Field(default=None, description="Required for `password`")
    refresh_token: str | None = Field(
        default=None,
        description="Required for `refresh_token`",
        examples=["MdsacLZ6wR0nY5nT9ADHyOHpZbaqmfcPWIFZjCrxAKI"],
    )


class ProfileUpdate(Input):
    """A change of the profile; null clears the name."""

    name: Annotated[Line | None, Field(examples=["Ada"])]


class Refresh(Input):
    """The refresh token of the last answer; the request spends it."""

    refresh_token: UnicodeText = Field(
        default="",
        description="Without it, the token of the cookie counts",
        examples=["MdsacLZ6wR0nY5nT9ADHyOHpZbaqmfcPWIFZjCrxAKI"],
    )


class PasswordChange(Input):
    """The current password and the new one."""

    current_password: Password
    new_password: NewPassword


class PasswordConfirmation(Input):
    """The password again, because the change cannot be undone."""

    password: Password


class SessionRead(BaseModel):
    """A session that has not ended."""

    id: UUID = Field(examples=["01a1f95c-de91-7602-9705-5b761cf48293"])
    created_at: datetime = Field(examples=["2026-11-20T09:30:00Z"])
    last_used_at: datetime = Field(
        description="When it was last refreshed", examples=["2026-11-20T09:45:00Z"]
    )
    expires_at: datetime = Field(examples=["2026-12-04T09:45:00Z"])
    user_agent: str | None = Field(examples=["Mozilla/5.0"])
    ip: str | None = Field(examples=["192.0.2.7"])
    current: bool = Field(description="Whether it is the session of this request", examples=[True])


class UserRead(BaseModel):
    """A user; `email` and `name` are null if they are not known."""

    id: str = Field(examples=["01a1f95c-de9c-72e4-af2f-cb076b07b635"])
    email: str | None = Field(examples=["ada@example.com"])
    email_verified: bool = Field(description="Whether a mailed link was followed", examples=[True])
    pending_email: str | None = Field(
        description="The new email of a change that is not confirmed yet", examples=["ada@example.org"]
    )
    name: str | None = Field(examples=["Ada"])
    created_at: datetime = Field(examples=["2026-11-20T09:30:00Z"])


class Tokens(BaseModel):
    """An access token for `expires_in` seconds, and a refresh token for the next one."""

    access_token: str = Field(
        examples=["eyJhbGciOiJIUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiIwMWExIn0.c2lnbmVk"]
    )
    token_type: Literal["bearer"]
    expires_in: int = Field(description="Seconds", examples=[900])
    refresh_token: str = Field(
        default="",
        description="Absent in a cookie session",
        examples=["MdsacLZ6wR0nY5nT9ADHyOHpZbaqmfcPWIFZjCrxAKI"],
    )
    user: UserRead
