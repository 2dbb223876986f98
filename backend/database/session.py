"""One connection to PostgreSQL, whose prepared statements no other connection can run by mistake."""

import secrets
import socket
from typing import Any, Final, cast

import asyncpg

UNPREPARED: Final = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
"""Errors of a pooler that shares sessions: the prepared statement is on another one. Nothing was done."""


class Connection(asyncpg.Connection):
    """An asyncpg connection that names its prepared statements at random.

    asyncpg counts them from 1 in each process. A transaction pooler gives the same session to several
    processes, and PostgreSQL would run whichever statement was first to have the name.
    """

    __slots__ = ()

    def _get_unique_id(self, prefix: str) -> str:
        return f"__asyncpg_{prefix}_{secrets.token_hex(16)}__"

    def stop_preparing(self: Any) -> None:  # asyncpg's types don't show its cache, which has no public size
        """Send every statement whole from now on, as with `statement_cache_size=0`."""
        self._stmt_cache_enabled = False
        self._mark_stmts_as_closed()  # forgets them; each `Close` message would cost a round trip
        self._stmt_cache.set_max_size(0)


def notice_silence(connection: asyncpg.Connection, seconds: float) -> None:
    """Let the kernel give up on a peer that acknowledges nothing for so long (RFC 5482), where it can."""
    transport = cast(Any, connection)._transport  # noqa: SLF001  # asyncpg shows its socket nowhere else
    peer = transport.get_extra_info("socket")
    if peer is not None and peer.family in {socket.AF_INET, socket.AF_INET6}:
        option = getattr(socket, "TCP_USER_TIMEOUT", None)
        if option is not None:
            peer.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))
