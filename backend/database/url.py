"""Any PostgreSQL URL, as arguments of the driver.

The URL alone decides: what it asks for is done or refused, and of the environment only a password is taken.
"""

import pwd
import re
import ssl
from dataclasses import dataclass
from os import geteuid
from typing import Any
from urllib.parse import unquote

_URL = re.compile(
    r"(?:postgres|postgresql)(?:\+\w+)?://"
    r"(?:(?P<user>[^:/?#@]*)(?::(?P<password>[^/?#]*))?@)?"
    r"(?P<hosts>[^/?#@]*)(?:/(?P<database>[^?#@]*))?(?:\?(?P<query>[^#@]*))?",
    re.IGNORECASE,
)
_HOST = re.compile(
    r"(?P<name>/.*|\[[^\[\]]+\]|[^:\[\]\s]*)(?::(?P<port>\d*))?|(?P<ipv6>[^\[\]/]*:[^\[\]/]*:[^\[\]/]*)"
)
_LOCAL = "/run/postgresql,/tmp,localhost"  # where libpq looks when a URL names no host
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_CHOICES = {
    "sslmode": _SSL_MODES,
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "channel_binding": ("disable", "prefer", "require"),
    "pgbouncer": ("true", "false"),
}
_UNDERSTOOD = {
    *_CHOICES,
    *("host", "port", "user", "password", "passfile", "dbname", "database", "connect_timeout"),
    *("sslrootcert", "sslcert", "sslkey", "sslpassword", "application_name", "options"),
}
# Matters of libpq's own, which asyncpg has no say in and which take away no protection.
_IGNORED = {
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    *("client_encoding", "fallback_application_name", "gssencmode", "gssdelegation", "load_balance_hosts"),
    *("sslcompression", "sslsni", "min_protocol_version", "max_protocol_version"),
}


class DatabaseURLError(ValueError):
    """The URL can't be used. The message is one line, names what is wrong, and never holds the password."""


@dataclass(frozen=True)
class _Parts:
    user: str | None
    password: str | None
    hosts: list[str]
    ports: list[int]
    database: str | None
    parameters: dict[str, str]


def connect_arguments(url: str) -> dict[str, Any]:
    """Keyword arguments for `asyncpg.connect` and `asyncpg.create_pool`; `timeout` is in seconds.

    Defaults and `sslmode` are libpq's, but verify-ca and verify-full trust the system's roots if there is no
    `sslrootcert`. asyncpg can't bind channels: `channel_binding=require` does what `sslmode=require` does.
    PGPASSWORD and the password file count where the URL has no password. Raises DatabaseURLError.
    """
    parts = _parse(url)
    user = parts.user or _system_user()
    optional = {
        "password": parts.password,
        "passfile": parts.parameters.get("passfile"),
        "timeout": _timeout(parts.parameters),
    }
    return {
        "host": parts.hosts,
        "port": parts.ports,
        "user": user,
        "database": parts.database or user,
        "ssl": _ssl(parts.parameters),
        "direct_tls": parts.parameters.get("sslnegotiation") == "direct",
        "target_session_attrs": parts.parameters.get("target_session_attrs", "any"),
        "server_settings": {
            name: parts.parameters[name]
            for name in ("application_name", "options")
            if name in parts.parameters
        },
        **{name: value for name, value in optional.items() if value},
    }


def is_transaction_pooler(url: str) -> bool:
    """Tell whether transactions share sessions there: Neon's `-pooler` hosts, or `pgbouncer=true`.

    Raises DatabaseURLError.
    """
    parts = _parse(url)
    labels = (label.lower() for host in parts.hosts if not host.startswith("/") for label in host.split("."))
    return parts.parameters.get("pgbouncer") == "true" or any(label.endswith("-pooler") for label in labels)


def _parse(url: str) -> _Parts:
    match = _URL.fullmatch(url.strip())
    if match is None:
        raise DatabaseURLError(_why_rubbish(url.strip()))
    parameters = _parameters(match["query"] or "")
    hosts, ports = _hosts(match["hosts"] or parameters.get("host") or _LOCAL, parameters.get("port"))
    return _Parts(
        user=_decode(match["user"]) or parameters.get("user"),
        password=_decode(match["password"]) or parameters.get("password"),
        hosts=[_decode(host) for host in hosts] if match["hosts"] else hosts,
        ports=ports,
        database=_decode(match["database"]) or parameters.get("dbname") or parameters.get("database"),
        parameters=parameters,
    )


def _why_rubbish(url: str) -> str:
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://", url, re.IGNORECASE)
    if scheme is None:
        return "it is not a URL: expected postgresql://user:password@host/database"
    if not re.fullmatch(r"(postgres|postgresql)(\+\w+)?", scheme[1], re.IGNORECASE):
        return f"{scheme[1]}:// is not PostgreSQL: expected postgresql://user:password@host/database"
    return "a # or @ is out of place: percent-encode special characters of the user, password and database"


def _decode(text: str | None) -> str:
    try:
        decoded = unquote(text or "", errors="strict")
    except UnicodeDecodeError:
        decoded = "\0"
    if "\0" in decoded:
        raise DatabaseURLError("a percent-encoded part is not text in UTF-8")
    return decoded


def _parameters(query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = (_decode(part) for part in pair.partition("="))
        # SQLAlchemy writes several hosts as several parameters; of any other the last counts, as in libpq.
        parameters[name] = f"{parameters[name]},{value}" if name == "host" and name in parameters else value
    _translate_ssl(parameters)
    if unknown := sorted(parameters.keys() - _UNDERSTOOD - _IGNORED):
        # After a password with an & in it, a part of it looks like a name.
        names = "" if "password" in parameters else f": {', '.join(unknown)}"
        raise DatabaseURLError(f"it has parameters that are unknown here{names}")
    for name in parameters.keys() & _CHOICES:
        if parameters[name] not in _CHOICES[name]:
            raise DatabaseURLError(f"{name} must be one of {', '.join(_CHOICES[name])}")
    return parameters


def _translate_ssl(parameters: dict[str, str]) -> None:
    """`ssl=true` is libpq's word for JDBC's users, `ssl=require` SQLAlchemy's for asyncpg's."""
    if (value := parameters.pop("ssl", None)) is not None:
        parameters.setdefault("sslmode", "require" if value == "true" else value)


def _hosts(hosts: str, port: str | None) -> tuple[list[str], list[int]]:
    matches = [_HOST.fullmatch(host) for host in hosts.split(",")]
    found = [match for match in matches if match]
    defaults = (port or "5432").split(",")
    if len(defaults) == 1:
        defaults *= len(found)
    if not len(matches) == len(found) == len(defaults):
        raise DatabaseURLError(
            "its hosts are not host:port,host:port (or the password has characters to percent-encode)"
        )
    names = [(match["ipv6"] or match["name"]).strip("[]") or "localhost" for match in found]
    return names, [_port(match["port"] or default) for match, default in zip(found, defaults, strict=True)]


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 2**16:
        raise DatabaseURLError("a port is not a number from 1 to 65535")
    return int(text)


def _timeout(parameters: dict[str, str]) -> float | None:
    text = parameters.get("connect_timeout", "0")
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise DatabaseURLError("connect_timeout is not a whole number of seconds")
    return max(float(text), 0) or None


def _system_user() -> str:
    try:
        return pwd.getpwuid(geteuid()).pw_name
    except KeyError:
        raise DatabaseURLError("it names no user") from None


def _ssl(parameters: dict[str, str]) -> ssl.SSLContext | str | bool:
    mode = _ssl_mode(parameters)
    if mode == "disable":
        return False
    if mode in {"allow", "prefer"}:
        # Only asyncpg itself can fall back from TLS, or to it.
        return mode
    try:
        return _ssl_context(mode, parameters)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or error
        raise DatabaseURLError(f"sslrootcert, sslcert or sslkey can't be used: {reason}") from None


def _ssl_mode(parameters: dict[str, str]) -> str:
    system_roots = parameters.get("sslrootcert") == "system"
    mode = parameters.get("sslmode", "verify-full" if system_roots else "prefer")
    if mode in {"allow", "prefer"} and parameters.get("channel_binding") == "require":
        mode = "require"
    if system_roots and mode != "verify-full":
        raise DatabaseURLError("sslrootcert=system needs sslmode=verify-full")
    if mode in {"disable", "allow", "prefer"} and (wish := _wish_for_tls(parameters)):
        raise DatabaseURLError(f"{wish} needs sslmode=require or stronger")
    return mode


def _wish_for_tls(parameters: dict[str, str]) -> str | None:
    written = {*parameters, *(f"{name}={value}" for name, value in parameters.items())}
    wishes = ("sslcert", "sslkey", "sslnegotiation=direct", "channel_binding=require")
    return next((wish for wish in wishes if wish in written), None)


def _ssl_context(mode: str, parameters: dict[str, str]) -> ssl.SSLContext:
    root = parameters.get("sslrootcert")
    # create_default_context is stricter than libpq, from Python 3.13 on.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["postgresql"])
    context.check_hostname = mode == "verify-full"
    if root and root != "system":
        context.load_verify_locations(root)
    elif mode == "require":
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_default_certs()
    if "sslcert" in parameters:
        context.load_cert_chain(
            parameters["sslcert"], parameters.get("sslkey"), lambda: parameters.get("sslpassword", "")
        )
    return context
