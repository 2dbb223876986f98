"""Reads the revision of the schema without Alembic, which a process that serves need not load."""

import asyncio
import re
import time
from pathlib import Path
from typing import Final

import asyncpg
from loguru import logger

from backend.database.connection import in_words, warn_of_settings
from backend.database.database import UNREACHABLE
from backend.database.hosts import Hosts
from backend.database.url import connect_arguments, ignored_options

OTHER_DATABASE: Final = "nothing was changed; give this service a database of its own"
"""The way out where another application uses the database."""

MIGRATIONS: Final = Path(__file__).parent / "migrations"

_LONGEST_PAUSE_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
"""The most time for each statement, and for connecting to each host."""


class SchemaError(Exception):
    """The database cannot be reached or migrated; the message is one line."""


class UnfitError(SchemaError):
    """The code can't use the database, and waiting does not help."""


def newest_revision() -> str:
    """Return the number of the newest migration."""
    return max(_known_revisions())


def _known_revisions() -> set[str]:
    return {path.name.partition("_")[0] for path in MIGRATIONS.glob("versions/*.py")}


async def is_current(url: str, *, wait_seconds: float = 0) -> bool:
    """Tell whether the schema is at the newest migration.

    Tries for `wait_seconds` to reach the database, and logs each failure; then raises `SchemaError`.
    """
    newest = newest_revision()
    deadline, pause = time.monotonic() + wait_seconds, 0.1
    if ignored := ignored_options(url):
        logger.info("DATABASE_URL: these options of other tools have no effect here: {}", ", ".join(ignored))
    while True:
        try:
            return await _revision(url) == newest
        except SchemaError as error:
            left = deadline - time.monotonic()
            if left <= 0 or isinstance(error, UnfitError):
                raise
            logger.warning("{}; trying again", error)
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


async def _revision(url: str) -> object:
    connection = await connect(url)
    try:
        await warn_of_settings(connection, seconds=_ANSWER_SECONDS)
        return await fit_revision(connection)
    except UNREACHABLE as error:
        raise _unreachable(error) from error
    finally:
        connection.terminate()  # `close` would wait for a silent server


async def fit_revision(connection: asyncpg.Connection) -> str | None:
    """Return the revision that the schema is at, None for none; raises `UnfitError`. Changes nothing."""
    encoding = await connection.fetchval("SHOW server_encoding", timeout=_ANSWER_SECONDS)
    if encoding != "UTF8":
        raise UnfitError(f"DATABASE_URL: the database is in {encoding}; make one with ENCODING 'UTF8'")
    try:
        found = await connection.fetch("SELECT version_num FROM alembic_version", timeout=_ANSWER_SECONDS)
    except asyncpg.UndefinedTableError:
        return None
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedColumnError) as error:
        raise UnfitError(f"DATABASE_URL: alembic_version: {in_words(error)}; {OTHER_DATABASE}") from error
    known = _known_revisions()
    for (revision,) in found:
        if revision not in known:
            raise UnfitError(_unknown_revision(str(revision)))
    return found[0][0] if found else None


def _unknown_revision(revision: str) -> str:
    if re.fullmatch(r"\d{4}", revision) and revision > newest_revision():
        return (
            f"DATABASE_URL: the schema is at {revision}, newer than this code, which knows "
            f"{newest_revision()}; start the newer code"
        )
    return f"DATABASE_URL: alembic_version is of another application ({revision[:32]!r}); {OTHER_DATABASE}"


async def connect(url: str) -> asyncpg.Connection:
    """Return a connection; raises `SchemaError`."""
    # Without a cache no statement gets a name, which behind a transaction pooler may exist already.
    arguments = connect_arguments(url) | {"statement_cache_size": 0}
    seconds = (arguments["timeout"] or _ANSWER_SECONDS) * len(arguments["host"])
    try:
        return await Hosts(arguments, seconds=seconds).connect()
    except (*UNREACHABLE, asyncpg.PostgresError) as error:
        raise _unreachable(error) from error


def _unreachable(error: BaseException) -> SchemaError:
    return SchemaError(f"DATABASE_URL: the database cannot be reached: {in_words(error)}")
