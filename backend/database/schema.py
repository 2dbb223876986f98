"""Creates and upgrades the schema with Alembic, in one transaction and in one process at a time."""

from collections.abc import Callable

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from backend.database.connection import in_words
from backend.database.revision import (
    MIGRATIONS,
    OTHER_DATABASE,
    SchemaError,
    connect,
    fit_revision,
    newest_revision,
)
from backend.database.url import connect_arguments

LOCK = 7_236_591_480_127
"""Key of the advisory lock that lets one process migrate at a time; any number, the same everywhere."""

LOCK_SECONDS = 30.0
"""The most time that a migration waits for each lock."""

_HOLDERS = """
SELECT DISTINCT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE granted AND datname = current_database() AND pid <> pg_backend_pid()
  AND relation IN (SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace)
ORDER BY pid LIMIT 5
"""


async def migrate(url: str, revision: str = "head", *, lock_seconds: float = LOCK_SECONDS) -> None:
    """Bring the schema to `revision`; raises `SchemaError`, also for a lock that it waited too long for."""
    await _with_database(url, lambda config: _move(config, revision, lock_seconds))


async def check(url: str) -> None:
    """Raise `SchemaError` unless the migrations make exactly the tables of the models (`alembic check`)."""
    await _with_database(url, command.check)


async def write_migration(url: str, words: str) -> None:
    """Write a migration that brings the tables to the models; raises `SchemaError`.

    It migrates the database first, because Alembic compares the models with the tables that exist.
    """
    await migrate(url)
    number = f"{int(newest_revision()) + 1:04}"
    await _with_database(
        url, lambda config: command.revision(config, words, autogenerate=True, rev_id=number)
    )


def _move(config: Config, revision: str, lock_seconds: float) -> None:
    connection: Connection = config.attributes["connection"]
    # Before lock_timeout is set, because another process may take long.
    connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    connection.execute(text(f"SET LOCAL lock_timeout = {int(lock_seconds * 1000)}"))
    is_older = revision == "base" or revision.startswith("-")
    (command.downgrade if is_older else command.upgrade)(config, revision)


async def _with_database(url: str, work: Callable[[Config], object]) -> None:
    connection = await connect(url)
    try:
        await fit_revision(connection)
        await _run(connection, work)
    except CommandError as error:
        raise SchemaError(" ".join(str(error).split())) from error
    except (DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise await _failure(url, _cause(error)) from error
    finally:
        connection.terminate()


async def _run(connection: asyncpg.Connection, work: Callable[[Config], object]) -> None:
    async def opened_before() -> asyncpg.Connection:
        return connection

    engine = create_async_engine("postgresql+asyncpg://", poolclass=NullPool, async_creator=opened_before)
    try:
        async with engine.begin() as opened:
            await opened.run_sync(lambda sync_connection: work(_config(sync_connection)))
    finally:
        await engine.dispose()


def _cause(error: BaseException) -> BaseException:
    """Return the error of asyncpg, which SQLAlchemy wraps twice."""
    inner = getattr(error, "orig", None)
    return getattr(inner, "__cause__", None) or inner or error


async def _failure(url: str, error: BaseException) -> SchemaError:
    """Return the error for a migration that PostgreSQL rolled back, with a way out."""
    way_out = "nothing was changed"
    if str(error).startswith("must be owner"):
        way_out = "nothing was changed; run `python -m backend migrate` as the role that owns the tables"
    elif isinstance(error, asyncpg.DuplicateTableError | asyncpg.DuplicateObjectError):
        way_out = f"another application uses this database; {OTHER_DATABASE}"
    elif isinstance(error, asyncpg.InsufficientPrivilegeError | asyncpg.InvalidSchemaNameError):
        role = connect_arguments(url)["user"].replace('"', '""')
        way_out = f'nothing was changed; as the owner: GRANT USAGE, CREATE ON SCHEMA public TO "{role}"'
    elif isinstance(error, asyncpg.LockNotAvailableError):
        way_out = f"nothing was changed; the lock is held by {await _holders(url)}; end it and start again"
    return SchemaError(f"DATABASE_URL: the migration failed: {in_words(error)}; {way_out}")


async def _holders(url: str) -> str:
    connection = await connect(url)
    try:
        rows = await connection.fetch(_HOLDERS, timeout=LOCK_SECONDS)
    finally:
        connection.terminate()
    return ", ".join(f"pid {pid} ({name!r})" for pid, name in rows) or "a session that has just ended"


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
