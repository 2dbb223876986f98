"""Every setting of the service, read from the environment and `.env`, checked before anything starts.

No message that leaves this module contains a value: a wrong secret is named, never shown.
"""

import ipaddress
import re
from collections.abc import Mapping
from email.utils import parseaddr
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import limits
from pydantic import (
    AfterValidator,
    AliasChoices,
    AnyHttpUrl,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

MIN_SECRET_BYTES = 32
"""RFC 7518 section 3.2: an HS256 key is at least as long as its hash."""


_BEARER_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_HTTP_URL = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]+)?(/[^?#\s]*)?", re.IGNORECASE)


_ORIGIN = re.compile(r"https?://[^\s/\\?#@]+", re.IGNORECASE)


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


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
        message = f"must be at least {MIN_SECRET_BYTES} bytes long (`python -m backend secret` makes one)"
        raise ValueError(message)
    return secret


def _bearer_token(secret: SecretStr) -> SecretStr:
    if not _BEARER_TOKEN.fullmatch(secret.get_secret_value()):
        raise ValueError("must be letters, digits and any of -._~+/ as in RFC 6750 section 2.1")
    return secret


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("names the home directory of a user who has none") from None


def _comma_separated(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _rate_limit(value: str) -> str:
    try:
        (rate,) = limits.parse_many(value)
    except ValueError:
        rate = None
    if rate is None or rate.amount < 1 or rate.multiples < 1 or "0 " in value:
        raise ValueError("must be a rate like 10/minute or 200/hour")
    return value


def _storage(uri: SecretStr) -> SecretStr:
    value = uri.get_secret_value()
    if value != "memory://" and not _is_redis_url(value):
        message = "must be memory:// or like redis://host:6379 (rediss:// for TLS), with redis-py's options"
        raise ValueError(message)
    return uri


def _is_redis_url(value: str) -> bool:
    """Return whether Redis' client takes this URL and its options; nothing is connected."""
    if not value.startswith(("redis://", "rediss://")):
        return False
    # Here, since it costs a process 6 MB, and few use it.
    from redis import RedisError  # noqa: PLC0415
    from redis.asyncio import BlockingConnectionPool  # noqa: PLC0415

    try:
        BlockingConnectionPool.from_url(value).make_connection()  # type: ignore[no-untyped-call]  # redis-py's
        return urlsplit(value).port != 0
    except (RedisError, ValueError, TypeError, AttributeError):
        return False


def _base_url(value: str) -> str:
    try:
        is_usable = bool(_HTTP_URL.fullmatch(value)) and urlsplit(value).port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ValueError("must be an address like https://app.example.com")
    return value.rstrip("/")


def _proxies(value: str) -> str:
    try:
        for part in value.split(","):
            if value != "*" and part.strip():
                ipaddress.ip_network(part.strip())
    except ValueError:
        message = "must be addresses or networks by commas, like 10.0.0.1,10.1.0.0/16 (no names), or *"
        raise ValueError(message) from None
    return value


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value if value == "*" else _origin(value) for value in values)


def _origin(value: str) -> str:
    """Return an origin as browsers send it (Fetch standard, section 3.2): host in ASCII, no default port."""
    if "*" in value:
        raise ValueError(
            "must be * alone or each origin by itself, like https://app.example.com: no patterns"
        )
    try:
        # pydantic's URLs are those of the URL standard, which browsers follow.
        return str(AnyHttpUrl(value if _ORIGIN.fullmatch(value) else "")).rstrip("/")
    except ValidationError:
        message = (
            "must be origins like https://app.example.com or http://localhost:3000 (ports to 65535), "
            "with no / at the end, by commas, or *"
        )
        raise ValueError(message) from None


def _mail_url(secret: SecretStr) -> SecretStr:
    parts = urlsplit(secret.get_secret_value())
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme == "file" and parts.path.startswith("/"):
        return secret
    if parts.scheme not in {"smtp", "smtps"} or not parts.hostname or port == 0:
        raise ValueError("must be like smtp://user:password@host:587 or smtps://user:password@host")
    if parts.query not in {"", "starttls=off"} or (parts.query and parts.scheme == "smtps"):
        raise ValueError("knows no option but ?starttls=off of smtp://")
    if parts.query and parts.password and not _is_loopback(parts.hostname):
        raise ValueError("would send its password in clear: ?starttls=off is for a relay on loopback")
    return secret


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _mail_from(value: str) -> str:
    name, address = parseaddr(value)
    if "@" not in address or not value.isprintable() or not name.isascii():
        raise ValueError("must be like Tasks <tasks@example.com>")
    return value


RateLimit = Annotated[str, AfterValidator(_rate_limit)]
Secret = Annotated[SecretStr, AfterValidator(_long_enough)]
CommaSeparated = (NoDecode, BeforeValidator(_comma_separated))


class Settings(BaseSettings):
    """Every setting; an empty variable counts as unset."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("database_url", "neon_db_url")
    )
    data_dir: Annotated[Path, AfterValidator(_expanded)] = Path(".data")
    database_prepared_statements: Literal["auto", "on", "off"] = "auto"
    database_pool_size: int = Field(default=10, ge=1, le=1000)
    database_timeout_seconds: float = Field(default=5, gt=0, le=300)
    database_idle_seconds: float = Field(default=240, ge=1, le=86400)
    database_start_timeout_seconds: float = Field(default=60, ge=0, le=3600)

    jwt_secret: Secret | None = None
    jwt_previous_secrets: Annotated[tuple[Secret, ...], *CommaSeparated] = ()
    jwt_issuer: str = Field(default="tasks-api", min_length=1)
    jwt_audience: str = Field(default="tasks-api", min_length=1)
    access_token_minutes: int = Field(default=15, ge=1, le=1440)
    session_days: int = Field(default=30, ge=1, le=3650)
    session_idle_days: int = Field(default=14, ge=1, le=3650)

    better_auth_url: Annotated[str, AfterValidator(_base_url)] | None = None
    better_auth_secret: Secret | None = None
    better_auth_issuer: str | None = None
    better_auth_audience: str | None = None

    password_min_length: int = Field(default=8, ge=1, le=128)
    bcrypt_rounds: int = Field(default=12, ge=4, le=31)

    rate_limit_enabled: bool = True
    rate_limit_storage_uri: Annotated[SecretStr, AfterValidator(_storage)] = SecretStr("memory://")
    rate_limit_signin_account: RateLimit = "10/minute"
    rate_limit_signin_address: RateLimit = "50/minute"
    rate_limit_register: RateLimit = "200/hour"
    rate_limit_mail: RateLimit = "20/hour"

    mail_url: Annotated[SecretStr, AfterValidator(_mail_url)] | None = None
    mail_from: Annotated[str, AfterValidator(_mail_from)] = "Tasks API <tasks@localhost>"
    app_url: Annotated[str, AfterValidator(_base_url)] | None = None
    email_verification: Literal["optional", "required"] = "optional"

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    max_connections: int = Field(default=4096, ge=1, le=1_000_000)
    shutdown_grace_seconds: int = Field(default=20, ge=1, le=3600)
    shutdown_drain_seconds: float = Field(default=5, ge=0, le=3600)
    forwarded_allow_ips: Annotated[str, AfterValidator(_proxies)] | None = None
    """The proxies whose X-Forwarded-For counts; `*` for any."""
    root_path: str | None = Field(default=None, pattern=r"^(/[A-Za-z0-9._~-]+)+$")
    """The prefix of every path, which a proxy strips before it passes a request on."""
    cors_origins: Annotated[tuple[str, ...], *CommaSeparated, AfterValidator(_origins)] = (
        "http://localhost:3000",
        "http://localhost",
    )
    conceal_foreign_tasks: bool = False
    metrics_token: Annotated[SecretStr, AfterValidator(_bearer_token)] | None = None
    log_format: Literal["json", "pretty"] | None = None
    otel_exporter_otlp_endpoint: Annotated[str, AfterValidator(_base_url)] | None = None
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
            message = "JWT_SECRET: is required as soon as DATABASE_URL is set"
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
