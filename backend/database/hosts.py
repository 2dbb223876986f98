"""Connects to the hosts of DATABASE_URL in turn, because asyncpg would give all the time to a silent one."""

from typing import Any

from backend.database.connection import Connection, in_words, open_connection


class Hosts:
    """Connects to a host of `connect_arguments` within `seconds`, to the last good one first."""

    def __init__(self, arguments: dict[str, Any], *, seconds: float) -> None:
        self._addresses = [*zip(arguments["host"], arguments["port"], strict=True)]
        # `connect_timeout` is of each host, as in libpq.
        timeout = min(seconds / len(self._addresses), arguments["timeout"] or seconds)
        self._arguments = arguments | {"timeout": timeout}

    async def connect(self) -> Connection:
        """Return a connection; raises `ConnectionError`, with the reason of each host in one line."""
        reasons: list[str] = []
        for host, port in tuple(self._addresses):
            try:
                connection = await open_connection(self._arguments | {"host": host, "port": port})
            except Exception as error:  # noqa: BLE001  # the message tells any
                if isinstance(error, TimeoutError):
                    self.put_last((host, port))
                reasons.append(f"{host}:{port}: {in_words(error)}")
            else:
                self._addresses.sort(key=lambda address: address != connection.address)
                return connection
        raise ConnectionError("; ".join(reasons))

    def put_last(self, address: object) -> None:
        """Try this host after the others from now on, because it fell silent or takes no writes."""
        self._addresses.sort(key=lambda other: other == address)
