"""The schema, made and upgraded by Alembic: in one transaction, however many processes start at once."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
from alembic import command
from alembic.config import Config
from loguru import logger
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from backend.database.connection import UNREACHABLE
from backend.database.url import connect_arguments

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK = 7_236_591_480_127
"""Any number, the same in every process: the advisory lock that serialises migrations."""

_LONGEST_PAUSE_SECONDS = 5.0


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
    deadline, pause = time.monotonic() + wait_seconds, 0.1
    while True:
        try:
            await _run(url, work)
        except UNREACHABLE as error:
            reason = f"DATABASE_URL: the database cannot be reached ({type(error).__name__})"
            if time.monotonic() + pause > deadline:
                raise SchemaError(reason) from error
            logger.warning("{}, trying again", reason)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
        else:
            return


async def _run(url: str, work: Callable[[Config], None]) -> None:
    arguments = connect_arguments(url)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        # Behind a transaction pooler no prepared statement may meet its like of another client.
        connect_args={
            "prepared_statement_name_func": lambda: f"migration-{uuid4()}",
            "statement_cache_size": 0,
        },
        async_creator=lambda: asyncpg.connect(**arguments, statement_cache_size=0),
    )
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync_connection: work(_config(sync_connection)))
    await engine.dispose()


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
