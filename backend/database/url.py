"""Turns DATABASE_URL into arguments of `asyncpg.connect`; asyncpg itself reads what concerns TLS.

Alone it would send options of other tools to the server, obey libpq's environment and quote the password.
"""

import re
from getpass import getuser
from inspect import signature
from ssl import CERT_REQUIRED
from typing import Any
from urllib.parse import unquote, urlencode

from asyncpg import connect_utils

from backend.database.session import OPTIONS

_parse: Any = vars(connect_utils)["_parse_connect_dsn_and_args"]  # asyncpg shows it only when it connects
_URL = re.compile(
    r"postgres(?:ql)?(?:\+\w+)?://(?:(?P<user>[^:/?#@]*)(?::(?P<password>[^/?#]*))?@)?"
    r"(?P<host>[^/?#@]*)(?:/(?P<database>[^?#@]*))?(?:\?(?P<query>[^#@]*))?",
    re.IGNORECASE,
)
_HOST = re.compile(r"(/.*?|\[[^\[\]]+\]|[^:\[\]\s]*)(?::(\d*))?|([^\[\]/\s]*:[^\[\]/\s]*:[^\[\]/\s]*)")
_OWN = "user password passfile database dbname host port connect_timeout application_name options"
_DEFAULTS = dict.fromkeys([*_OWN.split(), "channel_binding", "gssencmode", "pgbouncer"], "")
_DEFAULTS |= {"host": "/run/postgresql,/tmp,localhost", "port": "5432", "connect_timeout": "0"}  # as in libpq
_HONOURED = {"channel_binding": {"disable", "prefer", "require"}, "gssencmode": {"disable", "prefer"}}
_TLS = {"sslmode": "prefer", "sslnegotiation": "postgres", "target_session_attrs": "any"}
_FILES = {"sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl"}
_UNDERSTOOD = {*_DEFAULTS, *_TLS, *_FILES, "sslsni", "sslcompression", "gssdelegation"}
_PROTECTS = re.compile("ssl|tls|gss|krb|auth|cert|crl|peer|channel|hostaddr|service", re.IGNORECASE)


class DatabaseURLError(ValueError):
    """The URL can't be used. The message is one line, names what is wrong, and never holds the password."""


def connect_arguments(url: str) -> dict[str, Any]:
    """Return arguments of `asyncpg.connect`; `timeout` is in seconds. Raises `DatabaseURLError`.

    Without `sslrootcert`, verification trusts the system's roots. asyncpg can't bind channels, therefore
    `channel_binding=require` means `sslmode=require`.
    """
    given = _read(url)
    hosts, ports = _hosts(given)
    user = given["user"] or getuser()
    options = "" if is_transaction_pooler(url) else OPTIONS
    settings = {
        "options": f"{options} {given['options']}".strip(),
        "application_name": given["application_name"],
    }
    optional = {name: given[name] for name in ("password", "passfile")}
    return {
        "host": hosts,
        "port": ports,
        "user": user,
        "database": given["database"] or given["dbname"] or user,
        "server_settings": {name: value for name, value in settings.items() if value},
        **{name: value for name, value in optional.items() if value},
        **(
            {"timeout": float(given["connect_timeout"])} if given["connect_timeout"][0] in "123456789" else {}
        ),
        **_tls(given),
    }


def is_transaction_pooler(url: str) -> bool:
    """Tell whether the URL says that transactions share sessions: `pgbouncer=true`, or Neon's `-pooler`."""
    given = _read(url)
    labels = [label for host in _hosts(given)[0] if host[0] != "/" for label in host.lower().split(".")]
    return given["pgbouncer"] not in {"", "false", "0"} or any(label.endswith("-pooler") for label in labels)


def ignored_options(url: str) -> list[str]:
    """Return the names of options that other tools read and that have no effect here."""
    return sorted(_read(url).keys() - _UNDERSTOOD)


def _require(condition: object, message: str) -> None:
    if not condition:
        raise DatabaseURLError(message)


def _read(url: str) -> dict[str, str]:
    match = _URL.fullmatch(url.strip())
    if match is None:
        expected = "postgresql://user:password@host/database"
        raise DatabaseURLError(f"it is not a URL like {expected} with special characters percent-encoded")
    given: dict[str, str] = {}
    for pair in filter(None, (match["query"] or "").split("&")):
        name, _, value = (_decode(part) for part in pair.partition("="))
        # SQLAlchemy writes several hosts as several options; of any other the last counts, as in libpq.
        given[name] = f"{given[name]},{value}" if name == "host" and name in given else value
    if (mode := given.pop("ssl", "false")) != "false":  # what JDBC and node-postgres call it
        given.setdefault("sslmode", "require" if mode == "true" else mode)
    if given.get("sslrootcert") == "system":
        given.setdefault("sslmode", "verify-full")
    _check(given)
    parts = {name: _decode(match[name]) for name in ("user", "password", "host", "database") if match[name]}
    return _DEFAULTS | given | parts


def _decode(text: str) -> str:
    decoded = unquote(text, errors="surrogateescape")
    _require(not re.search("[\0\udc80-\udcff]", decoded), "a percent-encoded part is not text in UTF-8")
    return decoded


def _check(given: dict[str, str]) -> None:
    others = sorted(given.keys() - _UNDERSTOOD)
    # With an & in a password, a part of it looks like a name.
    _require("password" not in given or not others, "it has unknown options, or a password with an &")
    lost = [name for name in others if _PROTECTS.search(name)]
    lost += [name for name, values in _HONOURED.items() if name in given and given[name] not in values]
    _require(not lost, f"it asks for protection that is unknown here: {', '.join(lost)}")
    _require(
        re.fullmatch(r"-?\d{1,9}", given.get("connect_timeout", "0")), "connect_timeout is not a whole number"
    )


def _hosts(given: dict[str, str]) -> tuple[list[str], list[int]]:
    matches = [match for host in given["host"].split(",") if (match := _HOST.fullmatch(host))]
    defaults = given["port"].split(",")
    defaults *= len(matches) if len(defaults) == 1 else 1
    is_whole = len(matches) == len(defaults) == given["host"].count(",") + 1
    _require(is_whole, "its hosts are not host:port,host:port, or its password is not percent-encoded")
    ports = [match[2] or default for match, default in zip(matches, defaults, strict=True)]
    is_port = all(re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 2**16 for port in ports)
    _require(is_port, "a port is not a number from 1 to 65535")
    return [(match[1] or match[3] or "localhost").strip("[]") for match in matches], [*map(int, ports)]


def _tls(given: dict[str, str]) -> dict[str, Any]:
    options = _TLS | {name: given[name] for name in (*_TLS, *_FILES) if name in given}
    root, binds = given.get("sslrootcert"), given["channel_binding"] == "require"
    if options["sslmode"] in {"allow", "prefer"} and (binds or {"sslcert", "sslkey"} & given.keys()):
        options["sslmode"] = "require"
    mode = options["sslmode"]
    _require(mode != "disable" or not binds, "channel_binding=require needs sslmode=require or stronger")
    _require(mode == "verify-full" or root != "system", "sslrootcert=system needs sslmode=verify-full")
    if by_system := mode.startswith("verify") and root in {None, "system"}:
        options |= {"sslmode": "require", "sslrootcert": ""}
    read = _read_by_asyncpg(options)
    if by_system:
        read.ssl.load_default_certs()
        read.ssl.verify_mode, read.ssl.check_hostname = CERT_REQUIRED, mode == "verify-full"
    return {
        "ssl": mode if mode in {"allow", "prefer"} else read.ssl,  # asyncpg itself has to fall back
        "direct_tls": options["sslnegotiation"] == "direct",
        "target_session_attrs": options["target_session_attrs"],
    }


def _read_by_asyncpg(options: dict[str, str]) -> Any:
    nothing = dict.fromkeys(signature(_parse).parameters) | {
        "host": "-",
        "port": 1,
        "user": "-",
        "password": "-",
    }
    try:
        return _parse(**nothing | {"dsn": f"postgresql://?{urlencode(options)}"})[1]
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or error
        raise DatabaseURLError(f"sslrootcert, sslcert, sslkey or sslcrl can't be used: {reason}") from None
    except ValueError as error:
        name = next((name for name in options if name in str(error)), "a TLS option")
        raise DatabaseURLError(f"{name} has a value that asyncpg doesn't know, or can't combine") from None
