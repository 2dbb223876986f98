"""Connects to one of the hosts of a URL, each within its share of the time, the last good one first.

asyncpg alone would spend all of the time on a silent host, and start with it again the next time.
"""

import asyncio
import math
from typing import Any, Final
from weakref import WeakKeyDictionary

import asyncpg

from backend.database.session import OPTIONS, REFUSALS, Connection, in_words

_ANSWERS: Final = (asyncpg.PostgresError, asyncpg.TargetServerAttributeNotMatched)
"""Refusals of a server that is alive, and may be promoted or ready the next moment."""
_FAILURES: Final = (*_ANSWERS, OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)


_Host = list[tuple[str, int]]


class NoHostError(ConnectionError):
    """None of several hosts is a database for us; the message is one line, with the reason of each."""


class Hosts:
    """Connects to a host of `connect_arguments`, within `seconds` for all of them."""

    def __init__(self, arguments: dict[str, Any], *, seconds: float) -> None:
        self._arguments, self._seconds = dict(arguments), seconds
        addresses = [*zip(arguments["host"], arguments["port"], strict=True)]
        # For "prefer-standby" asyncpg has to look at all of them.
        is_one = arguments["target_session_attrs"] == "prefer-standby"
        self._order = [addresses] if is_one else [[address] for address in addresses]
        self._host_of: WeakKeyDictionary[Connection, _Host] = WeakKeyDictionary()
        self.is_pooler = False
        """Whether a pooler was found between here and PostgreSQL."""

    async def connect(self) -> Connection:
        """Return a connection; raises what the only host raises, or `NoHostError`."""
        now = asyncio.get_running_loop().time
        deadline = now() + self._seconds
        failures: list[str] = []
        hosts = tuple(self._order)
        for position, host in enumerate(hosts):
            share = (deadline - now()) / (len(hosts) - position)
            try:
                return await self._connect_to(host, share)
            except _FAILURES as error:
                if len(hosts) == 1:
                    raise
                failures.append(f"{host[0][0]}:{host[0][1]}: {in_words(error)}")
        raise NoHostError("; ".join(failures))

    async def _connect_to(self, host: _Host, seconds: float) -> Connection:
        try:
            # `connect_timeout` is of each host, as in libpq.
            async with asyncio.timeout(min(seconds, self._arguments.get("timeout", math.inf) * len(host))):
                connection = await self._open(host)
        except _ANSWERS:
            raise
        except BaseException:  # cancelled too, or requests with little time left would try nothing else
            self._put_last(host)
            raise
        self._order.remove(host)
        self._order.insert(0, host)
        self._host_of[connection] = host
        return connection

    async def _open(self, host: _Host) -> Connection:
        names, ports = (list(column) for column in zip(*host, strict=True))
        arguments = self._arguments | {"host": names, "port": ports, "timeout": None}
        try:
            connection: Connection = await asyncpg.connect(**arguments, connection_class=Connection)
        except REFUSALS:
            settings = dict(self._arguments["server_settings"])
            settings["options"] = settings.get("options", "").removeprefix(OPTIONS)
            arguments["server_settings"] = {name: value for name, value in settings.items() if value}
            connection = await asyncpg.connect(**arguments, connection_class=Connection)
            self._arguments["server_settings"] = arguments["server_settings"]
        self.is_pooler = self.is_pooler or connection.is_shared
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
