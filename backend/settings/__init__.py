"""Every setting of the service, read from the environment and `.env`, checked before anything starts.

No error message contains a value, because it may be a secret; the message names the setting.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

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
"""The settings that may be in files. The variable with the suffix `_FILE` names the file."""


class SettingsError(Exception):
    """A setting is missing or wrong; the message is one line that names it."""


class Settings(BaseSettings):
    """Every setting; an empty variable counts as unset. `load_settings` reads files of secrets too."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: SecretStr | None = None
    """`NEON_DB_URL` is another name for it."""
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

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.database_url and not self.jwt_secret:
            raise ValueError(
                "JWT_SECRET: is required with DATABASE_URL (`python -m backend secret` makes one)"
            )
        if self.email_verification == "required" and self.database_url and not self.mail_url:
            raise ValueError("EMAIL_VERIFICATION: required needs MAIL_URL")
        own_secrets = {self.jwt_secret, *self.jwt_previous_secrets}
        if self.better_auth_secret and self.better_auth_secret in own_secrets:
            raise ValueError("BETTER_AUTH_SECRET: must differ from JWT_SECRET")
        return self

    @property
    def signing_keys(self) -> list[bytes]:
        """`JWT_SECRET`, which signs, and then `JWT_PREVIOUS_SECRETS`, which verify too."""
        secrets = (self.jwt_secret, *self.jwt_previous_secrets)
        return [secret.get_secret_value().encode() for secret in secrets if secret is not None]

    @property
    def local_url(self) -> str:
        """The base URL that a browser on this machine can open."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # read, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def pages_url(self) -> str:
        """The base of the links in mails: `APP_URL`, or this service's own pages."""
        return self.app_url or self.local_url


def _secrets() -> dict[str, str]:
    """Return the URL of the database, and the secrets from files; raises `SettingsError`."""
    environment, dotenv = EnvSettingsSource(Settings).env_vars, DotEnvSettingsSource(Settings).env_vars
    found = {**_database_url(dotenv), **_database_url(environment)}
    written = {**dotenv, **environment, **found}
    for name in SECRETS:
        if path := written.get(f"{name}_file"):
            if written.get(name):
                raise SettingsError(f"{name.upper()}: is set twice, {name.upper()}_FILE being set as well")
            found[name] = _read(name, path)
    return found


def _read(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name.upper()}_FILE: cannot be read: {error.args[-1]}") from None


def _database_url(written: Mapping[str, str | None]) -> dict[str, str]:
    """Return the setting of either name as `database_url`; raises `SettingsError` for two databases."""
    urls = {url for name in ("database_url", "neon_db_url") if (url := written.get(name))}
    if len(urls) > 1:
        raise SettingsError("DATABASE_URL, NEON_DB_URL: name two databases; keep one of them")
    return {"database_url": urls.pop()} if urls else {}


def load_settings(**given: Any) -> Settings:
    """Read the settings that are not `given`; raises `SettingsError` for the first one that is wrong."""
    try:
        return Settings(**{**_secrets(), **given})
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f".env: cannot be read as UTF-8 text ({type(error).__name__})") from None


def _one_line(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{str(problem['loc'][0]).upper()}: {reason}" if problem["loc"] else reason
