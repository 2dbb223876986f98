"""The class of a connection to PostgreSQL, with settings and statement names safe behind a pooler."""

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
"""Settings of a session, which override those of the database and of the role.

The code relies on the first four, because it limits the time of each statement itself. PostgreSQL reports
the last one back. A pooler does not, because its sessions are older than the connection.
"""

STATEMENTS: Final = 200
"""The most prepared statements of a connection. The application has fewer, so each is prepared once."""

_WRONG: Final = """
SELECT name, setting FROM pg_settings
WHERE (name, setting) = ('default_transaction_read_only', 'on')
   OR (name = 'default_transaction_isolation' AND setting <> 'read committed')
"""

_REFUSALS: Final = (asyncpg.ProtocolViolationError, asyncpg.FeatureNotSupportedError)
"""Errors of poolers that refuse `options`, such as PgBouncer: "unsupported startup parameter"."""

UNPREPARED: Final = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
"""Errors behind a pooler that shares sessions: the statement was prepared on another session."""


class Connection(asyncpg.Connection):
    """An asyncpg connection that names its prepared statements at random.

    asyncpg numbers them from 1 in each process. A transaction pooler gives one session to several processes,
    and PostgreSQL would run the statement of the process that was first to use the name.
    """

    __slots__ = ()

    def _get_unique_id(self, prefix: str) -> str:
        return f"__asyncpg_{prefix}_{secrets.token_hex(16)}__"

    @property
    def address(self: Any) -> object:
        """Host and port, or the path of a socket."""
        return self._addr  # asyncpg has no public name for it

    @property
    def is_shared(self) -> bool:
        """True when a pooler lends this session to other connections too."""
        return getattr(self.get_settings(), "IntervalStyle", "iso_8601") != "iso_8601"

    def stop_preparing(self: Any) -> None:  # asyncpg has no public name for its cache
        """Send every statement whole from now on, as with `statement_cache_size=0`."""
        if self._stmt_cache_enabled:
            self._stmt_cache_enabled = False
            self._mark_stmts_as_closed()  # without a `Close` message, which would cost a round trip
            self._stmt_cache.set_max_size(0)


async def open_connection(arguments: dict[str, Any]) -> Connection:
    """Return a connection, without `OPTIONS` where a pooler refuses them; raises what asyncpg raises."""
    try:
        return await asyncpg.connect(**arguments, connection_class=Connection)
    except _REFUSALS:
        given = arguments["server_settings"].items()
        own = {name: value.removeprefix(OPTIONS) for name, value in given if value != OPTIONS}
        return await asyncpg.connect(**arguments | {"server_settings": own}, connection_class=Connection)


def notice_silence(connection: asyncpg.Connection, seconds: float) -> None:
    """Let the kernel end a connection whose peer acknowledges nothing for so long (RFC 5482)."""
    transport = cast(Any, connection)._transport  # noqa: SLF001  # asyncpg has no public name for it
    peer = transport.get_extra_info("socket")
    if peer is not None and peer.family in {socket.AF_INET, socket.AF_INET6}:
        option = getattr(socket, "TCP_USER_TIMEOUT", None)
        if option is not None:  # pragma: no branch  # Linux has it
            peer.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))


async def warn_of_settings(connection: asyncpg.Connection, *, seconds: float) -> None:
    """Log a line for each setting of the database or role that the service works badly with."""
    for name, value in await connection.fetch(_WRONG, timeout=seconds):
        logger.warning(
            "DATABASE_URL: {} is {} for this database or role; change it with ALTER DATABASE or ALTER ROLE",
            *(name, value),
        )


def in_words(error: BaseException) -> str:
    """Return the reason of a failed connection, as part of one line."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "not what target_session_attrs asks for"
    if isinstance(error, ssl.SSLCertVerificationError):  # its `str` has OpenSSL's codes
        return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).partition("\n")[0] or type(error).__name__
