"""Types of settings: each checks its value, and refuses it in words that do not contain it."""

import ipaddress
import re
from email.utils import parseaddr
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import limits
from pydantic import AfterValidator, AnyHttpUrl, BeforeValidator, SecretStr, ValidationError
from pydantic_settings import NoDecode

MIN_SECRET_BYTES = 32
"""RFC 7518 section 3.2: an HS256 key is at least as long as its hash."""


_BEARER_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_HTTP_URL = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]+)?(/[^?#\s]*)?", re.IGNORECASE)


_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"https?://[^\s/\\?#@]+", re.IGNORECASE)


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


def _root_path(value: str) -> str:
    if not _ROOT_PATH.fullmatch(value):
        raise ValueError("must be like /tasks-api, with no / at the end")
    return value


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
    if parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc:
        return secret
    if parts.scheme not in {"smtp", "smtps"} or not parts.hostname or port == 0:
        message = "must be like smtp://user:password@host:587, smtps://user:password@host or file:///folder"
        raise ValueError(message)
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
BearerToken = Annotated[SecretStr, AfterValidator(_bearer_token)]
Directory = Annotated[Path, AfterValidator(_expanded)]
StorageURI = Annotated[SecretStr, AfterValidator(_storage)]
BaseURL = Annotated[str, AfterValidator(_base_url)]
RootPath = Annotated[str, AfterValidator(_root_path)]
Proxies = Annotated[str, AfterValidator(_proxies)]
MailURL = Annotated[SecretStr, AfterValidator(_mail_url)]
Mailbox = Annotated[str, AfterValidator(_mail_from)]
Secrets = Annotated[tuple[Secret, ...], NoDecode, BeforeValidator(_comma_separated)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated), AfterValidator(_origins)]
