"""The schema, made and upgraded by Alembic: in one transaction, however many processes start at once."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from loguru import logger
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from backend.database.connection import UNREACHABLE
from backend.database.url import connect_arguments

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK = 7_236_591_480_127
"""Any number, the same in every process: the advisory lock that serialises migrations."""

_LONGEST_PAUSE_SECONDS = 5.0
_CONNECT_SECONDS = 5.0


class SchemaError(Exception):
    """The database cannot be reached or migrated; the message is one line."""


async def migrate(url: str, revision: str = "head", *, wait_seconds: float = 0) -> None:
    """Bring the schema to `revision`; waits up to `wait_seconds` for the database, raises `SchemaError`."""
    await _with_database(url, lambda config: _move(config, revision), wait_seconds)


async def check(url: str) -> None:
    """Raise `SchemaError` unless the migrations make exactly the tables of the models (`alembic check`)."""
    await _with_database(url, command.check, 0)


def _move(config: Config, revision: str) -> None:
    config.attributes["connection"].execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
    is_older = revision == "base" or revision.startswith("-")
    (command.downgrade if is_older else command.upgrade)(config, revision)


async def _with_database(url: str, work: Callable[[Config], None], wait_seconds: float) -> None:
    connection = await _connect(url, time.monotonic() + wait_seconds)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        # Behind a transaction pooler no prepared statement may meet its like of another client.
        connect_args={"prepared_statement_name_func": lambda: f"migration-{uuid4()}"},
        async_creator=lambda: _done(connection),
    )
    try:
        async with engine.begin() as opened:
            await opened.run_sync(lambda sync_connection: work(_config(sync_connection)))
    except CommandError as error:
        raise SchemaError(" ".join(str(error).split())) from error
    finally:
        await engine.dispose()


async def _connect(url: str, deadline: float) -> asyncpg.Connection:
    arguments, pause = {"timeout": _CONNECT_SECONDS, **connect_arguments(url)}, 0.1
    while True:
        try:
            return await asyncpg.connect(**arguments, statement_cache_size=0)
        except (*UNREACHABLE, asyncpg.PostgresError) as error:
            reason = f"DATABASE_URL: the database cannot be reached: {_in_words(error)}"
            left = deadline - time.monotonic()
            if left <= 0:
                raise SchemaError(reason) from error
        logger.warning("{}; trying again", reason)
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


async def _done(connection: asyncpg.Connection) -> asyncpg.Connection:
    return connection


def _in_words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError):
        return (error.strerror or str(error) or type(error).__name__).lower()
    return str(error).partition("\n")[0] or type(error).__name__


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
