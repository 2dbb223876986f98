"""The schema, made and upgraded by Alembic: in one transaction, however many processes start at once."""

from collections.abc import Callable

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from backend.database.revision import MIGRATIONS, SchemaError, connect, newest_revision

LOCK = 7_236_591_480_127
"""Any number, the same in every process: the advisory lock that serialises migrations."""


async def migrate(url: str, revision: str = "head") -> None:
    """Bring the schema to `revision`; raises `SchemaError`."""
    await _with_database(url, lambda config: _move(config, revision))


async def check(url: str) -> None:
    """Raise `SchemaError` unless the migrations make exactly the tables of the models (`alembic check`)."""
    await _with_database(url, command.check)


async def write_migration(url: str, words: str) -> None:
    """Write a migration that brings the tables to the models; raises `SchemaError`.

    The schema is brought to the newest migration first, which Alembic compares the models with.
    """
    await migrate(url)
    number = f"{int(newest_revision()) + 1:04}"
    await _with_database(
        url, lambda config: command.revision(config, words, autogenerate=True, rev_id=number)
    )


def _move(config: Config, revision: str) -> None:
    config.attributes["connection"].execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
    is_older = revision == "base" or revision.startswith("-")
    (command.downgrade if is_older else command.upgrade)(config, revision)


async def _with_database(url: str, work: Callable[[Config], object]) -> None:
    connection = await connect(url)
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        async_creator=lambda: _done(connection),
    )
    try:
        async with engine.begin() as opened:
            await opened.run_sync(lambda sync_connection: work(_config(sync_connection)))
    except CommandError as error:
        raise SchemaError(" ".join(str(error).split())) from error
    finally:
        await engine.dispose()


async def _done(connection: asyncpg.Connection) -> asyncpg.Connection:
    return connection


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
