"""The schema, made and upgraded by Alembic: in one transaction, however many processes start at once."""

from collections.abc import Callable

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from backend.database.revision import (
    MIGRATIONS,
    OTHER_DATABASE,
    SchemaError,
    connect,
    fit_revision,
    newest_revision,
)
from backend.database.session import in_words
from backend.database.url import connect_arguments

LOCK = 7_236_591_480_127
"""Any number, the same in every process: the advisory lock that serialises migrations."""

LOCK_SECONDS = 30.0
"""How long a migration waits for each lock that somebody else holds."""

_HOLDERS = """
SELECT DISTINCT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE granted AND datname = current_database() AND pid <> pg_backend_pid()
  AND relation IN (SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace)
ORDER BY pid LIMIT 5
"""


async def migrate(url: str, revision: str = "head", *, lock_seconds: float = LOCK_SECONDS) -> None:
    """Bring the schema to `revision`; raises `SchemaError`, also where a lock is not to be had in time."""
    await _with_database(url, lambda config: _move(config, revision, lock_seconds))


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


def _move(config: Config, revision: str, lock_seconds: float) -> None:
    connection: Connection = config.attributes["connection"]
    connection.execute(
        text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK}
    )  # however long another takes
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
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        async_creator=lambda: _done(connection),
    )
    try:
        async with engine.begin() as opened:
            await opened.run_sync(lambda sync_connection: work(_config(sync_connection)))
    finally:
        await engine.dispose()


def _cause(error: BaseException) -> BaseException:
    """Return what asyncpg raised, which SQLAlchemy wraps twice."""
    while isinstance(error, DBAPIError) or type(error).__module__.startswith("sqlalchemy"):
        inner = getattr(error, "orig", None) or error.__cause__
        if inner is None:
            break
        error = inner
    return error


async def _failure(url: str, error: BaseException) -> SchemaError:
    """Return the one line for a migration that PostgreSQL has taken back."""
    way_out = "nothing was changed"
    if str(error).startswith("must be owner"):
        way_out = "nothing was changed; run `python -m backend migrate` as the role that owns the tables"
    elif isinstance(error, asyncpg.DuplicateTableError | asyncpg.DuplicateObjectError):
        way_out = f"another application uses this database; {OTHER_DATABASE}"
    elif isinstance(error, asyncpg.InsufficientPrivilegeError | asyncpg.InvalidSchemaNameError):
        role = str(connect_arguments(url).get("user") or "the role").replace('"', '""')
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


async def _done(connection: asyncpg.Connection) -> asyncpg.Connection:
    return connection


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
