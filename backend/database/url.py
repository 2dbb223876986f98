"""Turns DATABASE_URL into arguments of `asyncpg.connect`. asyncpg reads the URL after some repairs.

asyncpg alone would send options of other tools to the server and obey libpq's environment variables.
"""

import re
from getpass import getuser
from inspect import signature
from ssl import CERT_REQUIRED
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from asyncpg import connect_utils

from backend.database.connection import OPTIONS, STATEMENTS, in_words

_parse: Any = vars(connect_utils)["_parse_connect_dsn_and_args"]  # asyncpg's public functions connect at once
_URL = re.compile(
    r"postgres(?:ql)?(?:\+\w+)?://(?:(?P<user>[^:/?#@]*)(?::(?P<password>[^/?#]*))?@)?"
    r"(?P<host>[^/?#@]*)(?:/(?P<dbname>[^?#@]*))?(?:\?(?P<query>[^#@]*))?",
    re.IGNORECASE,
)
_HOST = re.compile(r"(/.*?|\[[^\[\]]+\]|[^:\[\]\s]*)(?::([0-9]{0,5}))?")
_PORT = re.compile(r":([0-9]{1,5})$")
_POOLER = re.compile(r"(^|,)[^/,]*-pooler([.:,]|$)", re.IGNORECASE)
_PROTECTS = re.compile("ssl|tls|gss|krb|auth|cert|crl|peer|channel|hostaddr|service", re.IGNORECASE)
_DEFAULTS = {"host": "/run/postgresql,/tmp,localhost", "port": "5432", "sslnegotiation": "postgres"}
_DEFAULTS |= {"target_session_attrs": "any", "connect_timeout": "0", "pgbouncer": "false", "options": ""}
_VALUES = {"channel_binding": "disable|prefer|require", "gssencmode": "disable|prefer", "port": "[0-9]{1,5}"}
_VALUES |= {"connect_timeout": "[0-9]{1,9}", "target_session_attrs": "|".join(connect_utils.SessionAttribute)}
_OTHERS = "user password passfile dbname application_name sslmode sslrootcert sslcert sslkey sslpassword"
_OTHERS += " sslcrl sslsni sslcompression gssdelegation"
_UNDERSTOOD = {*_DEFAULTS, *_VALUES, *_OTHERS.split()}


class DatabaseURLError(ValueError):
    """The URL can't be used. The message is one line, names what is wrong, and never holds the password."""


def connect_arguments(url: str) -> dict[str, Any]:
    """Return arguments of `asyncpg.connect`; `timeout` is in seconds or None. Raises `DatabaseURLError`.

    `statement_cache_size` is 0 with `pgbouncer=true` and with `-pooler` in a host's name, as Neon writes it,
    because transactions then share sessions.
    """
    given = _read(url)
    hosts, ports = _hosts(given)
    is_pooler = given["pgbouncer"] not in {"false", "0"} or _POOLER.search(given["host"])
    given["options"] = f"{'' if is_pooler else OPTIONS} {given['options']}".strip()
    return _read_by_asyncpg(given, hosts, ports) | {
        "host": hosts,
        "port": ports,
        "password": given.get("password"),  # without it asyncpg looks for each host's in the password file
        "passfile": given.get("passfile"),
        "timeout": int(given["connect_timeout"]) or None,
        "statement_cache_size": 0 if is_pooler else STATEMENTS,
        "server_settings": {name: given[name] for name in ("application_name", "options") if given.get(name)},
    }


def ignored_options(url: str) -> list[str]:
    """Return the names of options that other tools read and that have no effect here."""
    return sorted(_read(url).keys() - _UNDERSTOOD)


def _require(condition: object, message: str) -> None:
    if not condition:
        raise DatabaseURLError(message)


def _read(url: str) -> dict[str, str]:
    match = _URL.fullmatch(url.strip())
    if match is None or "%00" in url:
        expected = "postgresql://user:password@host/database"
        raise DatabaseURLError(f"it is not a URL like {expected} with special characters percent-encoded")
    parts = {name: text for name, text in match.groupdict().items() if text}
    given: dict[str, str] = {}
    for name, value in parse_qsl(parts.pop("query", "").replace("+", "%2B")):
        # SQLAlchemy writes several hosts as several options.
        given[name] = f"{given[name]},{value}" if name == "host" and name in given else value
    given["sslmode"] = _sslmode(given)
    _check(given)
    if "host" in given and (port := _PORT.search(parts.get("host", ""))):
        given.setdefault("port", port[1])  # an option replaces the host alone
    given = {name: unquote(text) for name, text in parts.items()} | given  # in libpq too an option prevails
    user = given.get("user") or getuser()
    return _DEFAULTS | {"user": user, "dbname": user} | given


def _sslmode(given: dict[str, str]) -> str:
    other = given.pop("ssl", "false")  # SQLAlchemy's, JDBC's and node-postgres's name for it
    default = "verify-full" if given.get("sslrootcert") == "system" else "prefer"
    mode = given.get("sslmode") or {"true": "require", "false": default}.get(other, other)
    binds = given.get("channel_binding") == "require"  # asyncpg can't, and TLS is the better half of it
    _require(mode != "disable" or not binds, "channel_binding=require needs sslmode=require or stronger")
    return "require" if mode in {"allow", "prefer"} and (binds or "sslcert" in given) else mode


def _check(given: dict[str, str]) -> None:
    for name, values in _VALUES.items():
        _require(name not in given or re.fullmatch(values, given[name]), f"{name} is not {values}")
    others = sorted(given.keys() - _UNDERSTOOD)
    # A part of a password that has an & looks like the name of an option.
    _require("password" not in given or not others, "it has unknown options, or a password with an &")
    lost = [name for name in others if _PROTECTS.search(name)]
    _require(not lost, f"it asks for protection that is unknown here: {', '.join(lost)}")


def _hosts(given: dict[str, str]) -> tuple[list[str], list[int]]:
    names = given["host"].split(",")
    matches = [match for name in names if (match := _HOST.fullmatch(name))]
    is_whole = len(matches) == len(names)
    _require(is_whole, "its hosts are not host:port,host:port, or its password is not percent-encoded")
    ports = [int(match[2] or given["port"]) for match in matches]
    _require(all(0 < port < 2**16 for port in ports), "a port is not a number from 1 to 65535")
    return [match[1].strip("[]") or "localhost" for match in matches], ports


def _read_by_asyncpg(given: dict[str, str], hosts: list[str], ports: list[int]) -> dict[str, Any]:
    mode, root = given["sslmode"], given.get("sslrootcert")
    by_system = mode.startswith("verify") and root in {None, "system" if mode == "verify-full" else None}
    options = given | ({"sslmode": "require", "sslrootcert": ""} if by_system else {})
    arguments = {"dsn": f"postgresql://?{urlencode(options)}", "host": hosts, "port": ports}
    try:
        _, parameters = _parse(**dict.fromkeys(signature(_parse).parameters) | arguments)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise DatabaseURLError(f"its options that begin with ssl can't be used: {in_words(error)}") from None
    read: dict[str, Any] = parameters._asdict()
    if by_system:  # asyncpg has no name for the system's roots
        read["ssl"].load_default_certs()
        read["ssl"].verify_mode, read["ssl"].check_hostname = CERT_REQUIRED, mode == "verify-full"
    if mode in {"allow", "prefer"}:
        read["ssl"] = mode  # with a context asyncpg would not fall back
    read["direct_tls"] = read.pop("ssl_negotiation") == "direct"
    del read["sslmode"]
    return read
