"""Types of settings, each with a validator whose message does not contain the value."""

import ipaddress
import re
from collections.abc import Callable
from email.utils import getaddresses
from os.path import expanduser
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

import limits
from pydantic import AfterValidator, AnyHttpUrl, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

Value = TypeVar("Value", str, SecretStr)

MIN_SECRET_BYTES = 32
"""RFC 7518 section 3.2: an HS256 key is at least as long as its hash."""

_BEARER_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_ORIGIN = re.compile(r"https?://[^\s/\\?#@*]+", re.IGNORECASE)
_BASE_URL = re.compile(rf"{_ORIGIN.pattern}(/[^\s\\?#]*)?", re.IGNORECASE)


def _must(what: str, is_right: Callable[[str], object]) -> AfterValidator:
    """Return a validator that refuses a value with "must" and `what`.

    A value is wrong if `is_right` is false for it or raises `ValueError`, whose message may quote the value.
    """

    def check(value: Value) -> Value:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        try:
            fits = is_right(text)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"must {what}")
        return value

    return AfterValidator(check)


def _is_rate(text: str) -> bool:
    (rate,) = limits.parse_many(text)
    return rate.amount >= 1 and rate.multiples >= 1 and "0 " not in text


def _is_storage(text: str) -> bool:
    """Return whether `text` is `memory://`, or a URL that Redis' client accepts. It opens no connection."""
    if not text.startswith(("redis://", "rediss://")):
        return text == "memory://"
    # Imported here, because it takes 6 MB of memory, and few deployments use it.
    from redis import RedisError  # noqa: PLC0415
    from redis.asyncio import BlockingConnectionPool  # noqa: PLC0415

    try:
        BlockingConnectionPool.from_url(text).make_connection()  # type: ignore[no-untyped-call]  # redis-py's
    except (RedisError, TypeError, AttributeError):
        return False
    return urlsplit(text).port != 0


def _is_proxies(text: str) -> bool:
    parts = map(str.strip, text.split(","))
    return text == "*" or all(ipaddress.ip_network(part) for part in parts if part)


def _is_mail_url(text: str) -> bool:
    parts = urlsplit(text)
    if parts.scheme == "file":
        return parts.path.startswith("/") and not parts.netloc
    options = {"smtp": {"", "starttls=off"}, "smtps": {""}}
    return parts.query in options.get(parts.scheme, ()) and bool(parts.hostname) and parts.port != 0


def _hides_password(text: str) -> bool:
    parts = urlsplit(text)
    return (
        not (parts.query and parts.password)
        or parts.hostname == "localhost"
        or (ipaddress.ip_address(parts.hostname or "").is_loopback)
    )


def _is_mailbox(text: str) -> bool:
    ((name, address),) = getaddresses([text])
    return "@" in address and text.isprintable() and name.isascii()


def _comma_separated(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _as_browsers_write(text: str, pattern: re.Pattern[str], what: str) -> str:
    """Return an http URL with its host in ASCII, without a default port and without / at the end.

    Raises ValueError for a text that `pattern` does not match. pydantic's URLs are those of the URL standard,
    which browsers follow.
    """
    try:
        is_right = pattern.fullmatch(text) is not None and urlsplit(text).port != 0
        return str(AnyHttpUrl(text if is_right else "")).rstrip("/")
    except ValueError:
        raise ValueError(f"must {what}") from None


def _base_url(text: str) -> str:
    what = "be a base URL like https://app.example.com or http://localhost:4318"
    return _as_browsers_write(text, _BASE_URL, what)


def _origin(text: str) -> str:
    what = "be * or origins like https://app.example.com, by commas, with no / at the end and no patterns"
    return text if text == "*" else _as_browsers_write(text, _ORIGIN, what)


RateLimit = Annotated[str, _must("be a rate like 10/minute or 200/hour", _is_rate)]
Secret = Annotated[
    SecretStr,
    _must(
        f"be at least {MIN_SECRET_BYTES} bytes long (`python -m backend secret` makes one)",
        lambda text: len(text.encode()) >= MIN_SECRET_BYTES,
    ),
]
Secrets = Annotated[tuple[Secret, ...], NoDecode, BeforeValidator(_comma_separated)]
BearerToken = Annotated[
    SecretStr,
    _must("be letters, digits and any of -._~+/ as in RFC 6750 section 2.1", _BEARER_TOKEN.fullmatch),
]
Directory = Annotated[Path, BeforeValidator(expanduser)]
StorageURI = Annotated[
    SecretStr,
    _must("be memory:// or like redis://host:6379 (rediss:// for TLS), with redis-py's options", _is_storage),
]
BaseURL = Annotated[str, AfterValidator(_base_url)]
RootPath = Annotated[str, _must("be like /tasks-api, with no / at the end", _ROOT_PATH.fullmatch)]
Proxies = Annotated[
    str,
    _must("be addresses or networks by commas, like 10.0.0.1,10.1.0.0/16 (no names), or *", _is_proxies),
]
MailURL = Annotated[
    SecretStr,
    _must(
        "be like smtp://user:password@host:587, smtps://user:password@host or file:///folder, "
        "with no option but ?starttls=off of smtp://",
        _is_mail_url,
    ),
    _must("not send its password in clear: ?starttls=off is for a relay on loopback", _hides_password),
]
Mailbox = Annotated[str, _must("be one address, like Tasks <tasks@example.com>", _is_mailbox)]
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_comma_separated)
]
