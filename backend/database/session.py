"""One connection to PostgreSQL, whose prepared statements no other connection can run by mistake."""

import secrets
import socket
import ssl
from typing import Any, Final, cast

import asyncpg
from loguru import logger

OPTIONS: Final = (
    r"-c default_transaction_isolation=read\ committed -c TimeZone=UTC"
    " -c statement_timeout=0 -c lock_timeout=0 -c IntervalStyle=iso_8601"
)
"""What a session of ours has, whatever the settings of the database and of the role say.

The code relies on the first four: it limits the time of each statement itself. PostgreSQL reports the last
one back, and a pooler doesn't, because its sessions are older than our connection.
"""

_WRONG: Final = """
SELECT name, setting FROM pg_settings
WHERE (name, setting) = ('default_transaction_read_only', 'on')
   OR (name = 'default_transaction_isolation' AND setting <> 'read committed')
"""

REFUSALS: Final = (asyncpg.ProtocolViolationError, asyncpg.FeatureNotSupportedError)
"""Errors of poolers that don't take `options`, such as PgBouncer: "unsupported startup parameter"."""

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

    @property
    def is_shared(self) -> bool:
        """Whether the session was there before the connection, so that others may use it as well."""
        return getattr(self.get_settings(), "IntervalStyle", "iso_8601") != "iso_8601"

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


async def warn_of_settings(connection: asyncpg.Connection, *, seconds: float) -> None:
    """Log a line for each setting that a session should not have, and that we can't or mustn't change."""
    for name, value in await connection.fetch(_WRONG, timeout=seconds):
        logger.warning(
            "DATABASE_URL: {} is {} for this database or role; change it with ALTER DATABASE or ALTER ROLE",
            *(name, value),
        )


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
