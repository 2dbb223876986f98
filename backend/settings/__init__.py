"""Every setting of the service, read from the environment and `.env`, checked before anything starts.

No error message contains a value, because it may be a secret; the message names the setting.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from backend.settings import types
from backend.settings.types import MIN_SECRET_BYTES

__all__ = ["MIN_SECRET_BYTES", "SECRETS", "Settings", "SettingsError", "load_settings", "misspelt_settings"]

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

_Written = Mapping[str, str | None]
_SLIP = 0.885
"""The least ratio of difflib that is a typing error: `MAIL_FORM` is one, `DATABASE_USER` is not."""
_SLIP_LETTERS = 2
_PLAIN = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}
"""Messages for pydantic's types of errors."""


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
        for contradiction in _contradictions(self):
            raise ValueError(contradiction)
        return self

    @property
    def local_url(self) -> str:
        """The base URL that a browser on this machine can open."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104  # read, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def pages_url(self) -> str:
        """The base of the links in mails: `APP_URL`, or this service's own pages."""
        return self.app_url or self.local_url


def _contradictions(chosen: Settings) -> Iterator[str]:
    """Yield a message for each contradiction between settings. A default contradicts no other setting."""
    own_secrets = {chosen.jwt_secret, *chosen.jwt_previous_secrets}
    if chosen.database_url and not chosen.jwt_secret:
        yield "JWT_SECRET: is required with DATABASE_URL (`python -m backend secret` makes one)"
    if chosen.email_verification == "required" and chosen.database_url and not chosen.mail_url:
        yield "EMAIL_VERIFICATION: required needs MAIL_URL"
    if chosen.better_auth_secret and chosen.better_auth_secret in own_secrets:
        yield "BETTER_AUTH_SECRET: must differ from JWT_SECRET"
    for name in ("better_auth_issuer", "better_auth_audience"):
        if getattr(chosen, name) and not (chosen.better_auth_secret or chosen.better_auth_url):
            yield f"{name.upper()}: needs BETTER_AUTH_SECRET or BETTER_AUTH_URL"
    drain, grace = chosen.shutdown_drain_seconds, chosen.shutdown_grace_seconds
    if "shutdown_drain_seconds" in chosen.model_fields_set and drain > grace:
        yield f"SHUTDOWN_DRAIN_SECONDS: must be at most SHUTDOWN_GRACE_SECONDS, which is {grace}"


def _secrets() -> dict[str, Any]:
    """Return the URL of the database, and the secrets from files; raises `SettingsError`."""
    environment, dotenv = EnvSettingsSource(Settings).env_vars, DotEnvSettingsSource(Settings).env_vars
    found: dict[str, Any] = {**_database_url(dotenv), **_database_url(environment)}
    written = {**dotenv, **environment, **found}
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


def _database_url(written: _Written) -> dict[str, str]:
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


def misspelt_settings() -> dict[str, str]:
    """Return each name in `.env` that is nearly a setting's, with the name of that setting."""
    known = {*Settings.model_fields, "neon_db_url", *(f"{name}_file" for name in SECRETS)}
    return {
        name.upper(): meant.upper()
        for name in DotEnvSettingsSource(Settings).env_vars.keys() - known
        for meant in get_close_matches(name, known, n=1, cutoff=_SLIP)
        if abs(len(name) - len(meant)) <= _SLIP_LETTERS  # OTEL_EXPORTER_OTLP_LOGS_ENDPOINT is no typing error
    }


def _one_line(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    reason = problem["msg"].removeprefix("Value error, ")
    if plain := _PLAIN.get(problem["type"]):
        reason = plain.format(**problem.get("ctx", {}))
    return f"{str(problem['loc'][0]).upper()}: {reason}" if problem["loc"] else reason
