"""Turns DATABASE_URL into arguments of `asyncpg.connect`. asyncpg itself reads the options for TLS.

asyncpg alone would send options of other tools to the server and obey libpq's environment variables.
"""

import re
from getpass import getuser
from inspect import signature
from ssl import CERT_REQUIRED, SSLContext
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode

from asyncpg import connect_utils

from backend.database.connection import OPTIONS, STATEMENTS, in_words

_parse: Any = vars(connect_utils)["_parse_connect_dsn_and_args"]  # asyncpg's public functions connect at once
_URL = re.compile(
    r"(?i)postgres(?:ql)?(?:\+\w+)?://(?:(?P<user>[^:/?#@]*)(?::(?P<password>[^/?#]*))?@)?"
    r"(?P<host>\[[^\]/?#@,]*\]|[^:/?#@,]*|[^/?#@]*,[^/?#@]*)(?::(?P<port>[0-9]*))?"
    r"(?:/(?P<dbname>[^?#@]*))?(?:\?(?P<query>[^#@]*))?"
)
_HOST = re.compile(r"(/.*?|\[[^\[\]]+\]|[^:\[\]\s]*)(?::([0-9]*))?")
_DEFAULTS = {"host": "/run/postgresql,/tmp,localhost", "port": "5432", "sslnegotiation": "postgres"}
_DEFAULTS |= {"target_session_attrs": "any", "connect_timeout": "0", "ssl_min_protocol_version": "TLSv1.2"}
_PROTECTS = re.compile("ssl|tls|gss|krb|auth|cert|crl|peer|channel|hostaddr|service", re.IGNORECASE)
_OTHERS = "user password passfile dbname application_name options pgbouncer channel_binding"
_OTHERS += " ssl sslmode sslrootcert sslcert sslkey sslpassword sslcrl sslsni sslcompression gssdelegation"
_UNDERSTOOD = {*_DEFAULTS, *_OTHERS.split()}
_UNPROTECTED = {"disable", "allow", "prefer"}


class DatabaseURLError(ValueError):
    """The URL can't be used. The message is one line, names what is wrong, and never holds the password."""


def connect_arguments(url: str) -> dict[str, Any]:
    """Return arguments of `asyncpg.connect`; `timeout` is in seconds or None. Raises `DatabaseURLError`.

    `statement_cache_size` is 0 where transactions share sessions: `pgbouncer=true`, or Neon's `-pooler` host.
    """
    given = _read(url)
    is_pooler = given.get("pgbouncer", "false") not in {"false", "0"} or "-pooler." in given["host"].lower()
    given["options"] = f"{'' if is_pooler else OPTIONS} {given.get('options', '')}".strip()
    return _hosts(given) | {
        "user": given["user"],
        "password": given.get("password"),  # without it asyncpg looks for each host's in the password file
        "passfile": given.get("passfile"),
        "database": given["dbname"],
        "ssl": _tls(given),
        "direct_tls": given["sslnegotiation"] == "direct",
        "target_session_attrs": given["target_session_attrs"],
        "timeout": int(given["connect_timeout"]) or None,
        "statement_cache_size": 0 if is_pooler else STATEMENTS,
        "server_settings": {name: given[name] for name in ("application_name", "options") if given.get(name)},
    }


def ignored_options(url: str) -> list[str]:
    """Return the names of options that other tools read and that have no effect here."""
    return sorted(_read(url).keys() - _UNDERSTOOD)


def _read(url: str) -> dict[str, str]:
    match = _URL.fullmatch(url.strip())
    if match is None or "%00" in url:
        raise DatabaseURLError("it is not like postgresql://user:password@host/database, percent-encoded")
    parts = {name: text for name, text in match.groupdict().items() if text}
    query = parse_qs(parts.pop("query", "").replace("+", "%2B"))
    # SQLAlchemy writes several hosts as several options.
    options = {name: ",".join(texts) if name == "host" else texts[-1] for name, texts in query.items()}
    others = options.keys() - _UNDERSTOOD
    if "password" in options and others:  # they may be parts of a password that has an &
        raise DatabaseURLError("it has unknown options, or a password with an &")
    if lost := [name for name in others if _PROTECTS.search(name) and options[name] not in _UNPROTECTED]:
        raise DatabaseURLError(f"it asks for protection that is unknown here: {', '.join(lost)}")
    if not options.get("connect_timeout", "0").isdecimal():
        raise DatabaseURLError("connect_timeout is not a number of seconds")
    given = {name: unquote(text) for name, text in parts.items()} | options  # in libpq too an option prevails
    user = given.get("user") or getuser()
    return _DEFAULTS | {"user": user, "dbname": user} | given


def _hosts(given: dict[str, str]) -> dict[str, Any]:
    matches = [_HOST.fullmatch(name) for name in given["host"].split(",")]
    ports = [match[2] or given["port"] for match in matches if match]
    if None in matches or not all(port.isdecimal() and 0 < int(port) < 2**16 for port in ports):
        raise DatabaseURLError("its hosts are not host:port,host:port, or the password isn't percent-encoded")
    hosts = [match[1].strip("[]") or "localhost" for match in matches if match]
    return {"host": hosts, "port": [*map(int, ports)]}


def _tls(given: dict[str, str]) -> SSLContext | str:
    """Return a context, or the mode where TLS is optional, because with a context asyncpg requires TLS."""
    root = given.get("sslrootcert")
    mode = "verify-full" if root == "system" else _mode(given)
    by_system = mode.startswith("verify") and root in {None, "system"}  # asyncpg has no name for these roots
    options = {name: text for name, text in given.items() if name.startswith(("ssl", "target"))}
    options |= {"sslmode": "require", "sslrootcert": ""} if by_system else {"sslmode": mode}
    arguments = {"dsn": f"postgresql://user:password@localhost/?{urlencode(options)}", "port": 5432}
    try:
        _, read = _parse(**dict.fromkeys(signature(_parse).parameters) | arguments)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise DatabaseURLError(f"its options can't be used: {in_words(error)}") from None
    if by_system:
        read.ssl.load_default_certs()
        read.ssl.verify_mode, read.ssl.check_hostname = CERT_REQUIRED, True
    return mode if mode in _UNPROTECTED else read.ssl


def _mode(given: dict[str, str]) -> str:
    other = given.get("ssl", "prefer")  # the name of SQLAlchemy, JDBC and node-postgres
    mode = given.get("sslmode") or {"true": "require", "false": "prefer"}.get(other, other)
    # asyncpg can't bind channels, and TLS is the better half of that.
    binds = given.get("channel_binding", "prefer") not in _UNPROTECTED
    return "require" if mode in _UNPROTECTED and (binds or "sslcert" in given) else mode
