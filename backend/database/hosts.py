"""Connects to a host of DATABASE_URL. A silent host delays the attempt on the next one only a little.

asyncpg alone would wait for a silent host until no time is left for the others.
"""

from asyncio.staggered import staggered_race  # as `loop.create_connection` does it for addresses (RFC 8305)
from functools import partial
from typing import Any

import asyncpg

from backend.database.connection import OPTIONS, REFUSALS, Connection, in_words


class NoHostError(ConnectionError):
    """No host gave a connection. The message is one line, with the reason of each host."""


class Hosts:
    """Connects to a host of `connect_arguments` within `seconds`, to the last good one first."""

    def __init__(self, arguments: dict[str, Any], *, seconds: float) -> None:
        self.arguments = dict(arguments)
        hosts, ports = arguments["host"], arguments["port"]
        # For prefer-standby asyncpg has to see all of them.
        is_one = arguments["target_session_attrs"] == "prefer-standby"
        self._addresses = [(hosts, ports)] if is_one else [*zip(hosts, ports, strict=True)]
        # `connect_timeout` is of each host, as in libpq.
        self._seconds = min(seconds / len(self._addresses), arguments["timeout"] or seconds)
        self._head_start = self._seconds / 4

    async def connect(self) -> Connection:
        """Return a connection; raises what the only host raises, or `NoHostError`."""
        addresses = self._addresses
        if len(addresses) == 1:
            return await self._open(addresses[0])
        opened: list[Connection] = []
        attempts = [partial(self._open_into, opened, address) for address in addresses]
        connection: Connection
        try:
            connection, winner, errors = await staggered_race(attempts, self._head_start)
        except BaseException:  # the race forgets a connection if it is cancelled at that moment
            for forgotten in opened:
                forgotten.terminate()
            raise
        if winner is None:
            failures = [f"{h}:{p}: {in_words(e)}" for (h, p), e in zip(addresses, errors, strict=True) if e]
            raise NoHostError("; ".join(failures))
        self._addresses = sorted(addresses, key=lambda address: address != addresses[winner])
        self._head_start = self._seconds / 4
        return connection

    async def _open_into(self, opened: list[Connection], address: tuple[Any, Any]) -> Connection:
        connection = await self._open(address)
        opened.append(connection)
        return connection

    async def _open(self, address: tuple[Any, Any]) -> Connection:
        host, port = address
        arguments = self.arguments | {"host": host, "port": port, "timeout": self._seconds}
        try:
            return await asyncpg.connect(**arguments, connection_class=Connection)
        except REFUSALS:
            given = arguments["server_settings"].items()
            settings = {name: value.removeprefix(OPTIONS) for name, value in given if value != OPTIONS}
            arguments["server_settings"] = settings
            connection = await asyncpg.connect(**arguments, connection_class=Connection)
            self.arguments["server_settings"] = settings
            return connection

    def doubt(self, connection: Connection) -> None:
        """Try the host of this connection after the others, because it fell silent or takes no writes.

        The others get all of their time first, because a primary may take longer to connect than a standby.
        """
        self._addresses = sorted(self._addresses, key=lambda address: address == connection.address)
        self._head_start = self._seconds
