"""Which revision the schema is at, asked without Alembic: a process that serves need not carry its weight."""

import asyncio
import ssl
import time
from pathlib import Path
from typing import Final

import asyncpg
from loguru import logger

from backend.database.connection import UNREACHABLE
from backend.database.url import connect_arguments

MIGRATIONS: Final = Path(__file__).parent / "migrations"

_LONGEST_PAUSE_SECONDS = 5.0
_CONNECT_SECONDS = 5.0


class SchemaError(Exception):
    """The database cannot be reached or migrated; the message is one line."""


async def is_current(url: str, *, wait_seconds: float = 0) -> bool:
    """Tell whether the newest migration is the last that was made; waits and raises as `connect` does."""
    newest = max(path.name.partition("_")[0] for path in MIGRATIONS.glob("versions/*.py"))
    connection = await connect(url, wait_seconds=wait_seconds)
    try:
        revision = await connection.fetchval("SELECT version_num FROM alembic_version")
    except asyncpg.UndefinedTableError:
        return False
    finally:
        await connection.close()
    return bool(revision == newest)


async def connect(url: str, *, wait_seconds: float = 0) -> asyncpg.Connection:
    """Return a connection; waits for the database, a line each time it tries, then raises `SchemaError`."""
    deadline = time.monotonic() + wait_seconds
    arguments, pause = {"timeout": _CONNECT_SECONDS, **connect_arguments(url)}, 0.1
    while True:
        try:
            # Without a cache no statement has a name, which would meet its like behind a transaction pooler.
            return await asyncpg.connect(**arguments, statement_cache_size=0)
        except (*UNREACHABLE, asyncpg.PostgresError) as error:
            reason = f"DATABASE_URL: the database cannot be reached: {_in_words(error)}"
            left = deadline - time.monotonic()
            if left <= 0:
                raise SchemaError(reason) from error
        logger.warning("{}; trying again", reason)
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _in_words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, ssl.SSLCertVerificationError):  # in words of its own, not in OpenSSL's codes
        return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return str(error).partition("\n")[0] or type(error).__name__
