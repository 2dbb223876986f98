"""Every setting of the service, read from the environment and `.env`, checked before anything starts.

No message that leaves this package contains a value: a wrong secret is named, never shown.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from backend.settings import types
from backend.settings.types import MIN_SECRET_BYTES

__all__ = ["MIN_SECRET_BYTES", "SECRETS", "Settings", "SettingsError", "load_settings"]

SECRETS = (
    "database_url",
    "jwt_secret",
    "jwt_previous_secrets",
    "better_auth_secret",
    "metrics_token",
    "rate_limit_storage_uri",
    "mail_url",
)
"""Each may stand in a file instead, which the variable of the same name and `_FILE` names."""


class SettingsError(Exception):
    """A setting is missing or wrong; the message is one line that names it."""


class Settings(BaseSettings):
    """Every setting; an empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("database_url", "neon_db_url")
    )
    data_dir: types.Directory = Path(".data")
    database_prepared_statements: Literal["auto", "on", "off"] = "auto"
    database_pool_size: int = Field(default=10, ge=1, le=1000)
    database_timeout_seconds: float = Field(default=5, gt=0, le=300)
    database_idle_seconds: float = Field(default=240, ge=1, le=86400)
    database_start_timeout_seconds: float = Field(default=60, ge=0, le=3600)

    jwt_secret: types.Secret | None = None
    jwt_previous_secrets: types.Secrets = ()
    jwt_issuer: str = Field(default="tasks-api", min_length=1)
    jwt_audience: str = Field(default="tasks-api", min_length=1)
    access_token_minutes: int = Field(default=15, ge=1, le=1440)
    session_days: int = Field(default=30, ge=1, le=3650)
    session_idle_days: int = Field(default=14, ge=1, le=3650)

    better_auth_url: types.BaseURL | None = None
    better_auth_secret: types.Secret | None = None
    better_auth_issuer: str | None = None
    better_auth_audience: str | None = None

    password_min_length: int = Field(default=8, ge=1, le=128)
    bcrypt_rounds: int = Field(default=12, ge=4, le=31)

    rate_limit_enabled: bool = True
    rate_limit_storage_uri: types.StorageURI = SecretStr("memory://")
    rate_limit_signin_account: types.RateLimit = "10/minute"
    rate_limit_signin_address: types.RateLimit = "50/minute"
    rate_limit_register: types.RateLimit = "200/hour"
    rate_limit_mail: types.RateLimit = "20/hour"

    mail_url: types.MailURL | None = None
    mail_from: types.Mailbox = "Tasks API <tasks@localhost>"
    app_url: types.BaseURL | None = None
    email_verification: Literal["optional", "required"] = "optional"

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    max_connections: int = Field(default=4096, ge=1, le=1_000_000)
    shutdown_grace_seconds: int = Field(default=20, ge=1, le=3600)
    shutdown_drain_seconds: float = Field(default=5, ge=0, le=3600)
    forwarded_allow_ips: types.Proxies | None = None
    """The proxies whose X-Forwarded-For counts; `*` for any."""
    root_path: types.RootPath | None = None
    """The prefix of every path, which a proxy strips before it passes a request on."""
    cors_origins: types.Origins = (
        "http://localhost:3000",
        "http://localhost",
    )
    conceal_foreign_tasks: bool = False
    metrics_token: types.BearerToken | None = None
    log_format: Literal["json", "pretty"] | None = None
    otel_exporter_otlp_endpoint: types.BaseURL | None = None
    """OpenTelemetry's own setting; with it, each request is a span."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # names of its own, which Docker's are not
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add the files that `…_FILE` names, as Docker's images have it."""
        assert isinstance(env_settings, EnvSettingsSource)
        assert isinstance(dotenv_settings, EnvSettingsSource)
        files = InitSettingsSource(
            settings_cls, _from_files({**dotenv_settings.env_vars, **env_settings.env_vars})
        )
        return init_settings, files, env_settings, dotenv_settings

    @model_validator(mode="after")
    def _own_database_needs_own_secret(self) -> Self:
        if self.database_url is not None and self.jwt_secret is None:
            message = "JWT_SECRET: is required with DATABASE_URL (`python -m backend secret` makes one)"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _verification_needs_mail(self) -> Self:
        if self.email_verification == "required" and self.database_url and self.mail_url is None:
            raise ValueError("EMAIL_VERIFICATION: required needs MAIL_URL")
        return self

    @property
    def pages_url(self) -> str:
        """The base of the links in mails: `APP_URL`, or this service's own pages."""
        if self.app_url is not None:
            return self.app_url
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # read, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @model_validator(mode="after")
    def _each_issuer_has_its_secret(self) -> Self:
        own = {secret for secret in (self.jwt_secret, *self.jwt_previous_secrets) if secret is not None}
        if self.better_auth_secret in own:
            raise ValueError("BETTER_AUTH_SECRET: must differ from JWT_SECRET")
        return self


def _from_files(written: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the secrets that stand in files; raises `SettingsError`."""
    found: dict[str, Any] = {}
    for name in SECRETS:
        path = written.get(f"{name}_file")
        if not path:
            continue
        if written.get(name):
            raise SettingsError(f"{name.upper()}: is set twice, {name.upper()}_FILE being set as well")
        try:
            found[name] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise SettingsError(f"{name.upper()}_FILE: cannot be read: {reason}") from None
    return found


def load_settings(**given: Any) -> Settings:
    """Read the settings that are not `given`; raises `SettingsError` for the first one that is wrong."""
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f".env: cannot be read as UTF-8 text ({type(error).__name__})") from None


def _one_line(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{str(problem['loc'][0]).upper()}: {reason}" if problem["loc"] else reason
