"""The hosts of a URL, tried one after the other: each in its own share of the time, the last good one first.

A host that is silent keeps nobody from the next one, and goes last from then on.
"""

import asyncio
import math
import ssl
from typing import Any, Final
from weakref import WeakKeyDictionary

import asyncpg

from backend.database.session import Connection

_ANSWERS: Final = (asyncpg.PostgresError, asyncpg.TargetServerAttributeNotMatched)
"""What a server says that cannot serve us: it took no time, and may be promoted or ready the next moment."""

_FAILURES: Final = (*_ANSWERS, OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_Host = dict[str, Any]


class NoHostError(ConnectionError):
    """None of several hosts is a database for us; the message is one line, with the reason of each."""


class Hosts:
    """Connects to one of the hosts in `arguments` of `connect_arguments`, within `seconds` for all of them.

    Whatever keeps one from serving, a wrong password too, the next one is asked: it may have been promoted.
    """

    def __init__(self, arguments: dict[str, Any], *, seconds: float) -> None:
        self._arguments, self._seconds = dict(arguments), seconds
        self._longest = arguments.get("timeout", math.inf)
        """Of one host, as libpq means connect_timeout."""
        self._order = _hosts(arguments)
        self._host_of: WeakKeyDictionary[Connection, _Host] = WeakKeyDictionary()

    async def connect(self) -> Connection:
        """Return a connection; raises what the only host raises, or `NoHostError`."""
        now = asyncio.get_running_loop().time
        deadline = now() + self._seconds
        failures: dict[str, Exception] = {}
        hosts = tuple(self._order)
        for position, host in enumerate(hosts):
            share = (deadline - now()) / (len(hosts) - position)
            try:
                return await self._connect_to(host, share)
            except _FAILURES as error:
                if len(hosts) == 1:
                    raise
                failures[_name(host)] = error
        raise NoHostError("; ".join(f"{name}: {in_words(error)}" for name, error in failures.items()))

    async def _connect_to(self, host: _Host, seconds: float) -> Connection:
        seconds = min(seconds, self._longest * len(host["host"]))
        try:
            connection: Connection = await asyncpg.connect(
                **self._arguments | host | {"timeout": seconds}, connection_class=Connection
            )
        except _ANSWERS:
            raise
        except BaseException:  # cancelled too, or requests with little time left would try nothing else
            self._put_last(host)
            raise
        self._order.remove(host)
        self._order.insert(0, host)
        self._host_of[connection] = host
        return connection

    def stop_preparing(self) -> bool:
        """Prepare no statement any more, on any connection; return whether they were prepared until now."""
        was_preparing: bool = self._arguments["statement_cache_size"] > 0
        self._arguments["statement_cache_size"] = 0
        for connection in self._host_of:
            connection.stop_preparing()
        return was_preparing

    def doubt(self, connection: Connection) -> None:
        """Try the host of this connection after the others: it fell silent, or can only be read."""
        self._put_last(self._host_of[connection])

    def _put_last(self, host: _Host) -> None:
        self._order.remove(host)
        self._order.append(host)


def _hosts(arguments: dict[str, Any]) -> list[_Host]:
    """Return what tells one host from another; all are one where the choice needs a look at each of them."""
    if arguments["target_session_attrs"] == "prefer-standby":
        return [{name: arguments[name] for name in ("host", "port")}]
    addresses = zip(arguments["host"], arguments["port"], strict=True)
    return [{"host": [host], "port": [port]} for host, port in addresses]


def _name(host: _Host) -> str:
    return f"{host['host'][0]}:{host['port'][0]}"


def in_words(error: BaseException) -> str:
    """Say in part of a line why there is no connection."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "not what target_session_attrs asks for"
    if isinstance(error, ssl.SSLCertVerificationError):  # in words of its own, not in OpenSSL's codes
        return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return str(error).partition("\n")[0] or type(error).__name__
