"""A start that fails prints one line with the cause and the remedy, and leaves the database unchanged."""

import asyncio
import json
from collections.abc import Callable

import asyncpg
import pytest

from backend.database.embedded import EmbeddedServer
from backend.database.revision import SchemaError
from backend.database.schema import migrate
from tests.conftest import Postgres
from tests.service import JWT_SECRET, command, free_port

CASES = {
    "another's users": (["CREATE TABLE users (theirs int)"], "another application"),
    "another's tasks": (["CREATE TABLE tasks (theirs int)"], "another application"),
    "another's revision": (
        ["CREATE TABLE alembic_version (version_num text)", "INSERT INTO alembic_version VALUES ('ab12cd')"],
        "'ab12cd'",
    ),
    "another's revision, a number": (
        ["CREATE TABLE alembic_version (version_num int)", "INSERT INTO alembic_version VALUES (7)"],
        "'7'",
    ),
    "no revision at all": (
        ["CREATE TABLE alembic_version (version_num text)", "INSERT INTO alembic_version VALUES (NULL)"],
        "another application",
    ),
    "another's alembic_version": (["CREATE TABLE alembic_version (theirs int)"], "alembic_version"),
    "a newer schema": (
        ["CREATE TABLE alembic_version (version_num text)", "INSERT INTO alembic_version VALUES ('9998')"],
        "newer than this code",
    ),
}
TABLES = """
SELECT c.relname::text, a.attname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 ORDER BY 1, 2
"""


def failed(url: str) -> str:
    """Start on that database, and return the line on standard error."""
    done = command("serve", DATABASE_URL=url, JWT_SECRET=JWT_SECRET, PORT=str(free_port()))
    assert done.returncode == 1
    assert {json.loads(line)["level"] for line in done.stdout.splitlines()} <= {"INFO"}
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("case", CASES)
def test_a_database_of_another_application_is_left_as_it_is(
    new_empty_database: Callable[[], Postgres], case: str
) -> None:
    database, (statements, named) = new_empty_database(), CASES[case]
    for statement in statements:
        database.sql(statement)
    before = database.sql(TABLES)
    assert named in failed(database.url)
    assert database.sql(TABLES) == before


def test_a_role_that_may_not_create_is_told_what_to_grant(
    new_empty_database: Callable[[], Postgres],
) -> None:
    database = new_empty_database()
    database.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    database.sql("CREATE ROLE may_not_create LOGIN PASSWORD 'x'")
    try:
        head, _, tail = database.url.partition("://")
        url = f"{head}://may_not_create:x@{tail.partition('@')[2] or tail}"
        assert "GRANT USAGE, CREATE ON SCHEMA public" in failed(url)
        assert database.sql(TABLES) == []
    finally:
        database.sql("DROP ROLE may_not_create")


def test_a_role_that_owns_no_table_is_told_who_may_migrate(new_database: Callable[[], Postgres]) -> None:
    database = new_database()
    database.sql("CREATE ROLE owns_nothing LOGIN PASSWORD 'x'")
    try:
        database.sql("GRANT SELECT ON alembic_version TO owns_nothing")
        head, _, tail = database.url.partition("://")
        url = f"{head}://owns_nothing:x@{tail.partition('@')[2] or tail}"
        with pytest.raises(SchemaError, match="as the role that owns the tables"):
            asyncio.run(migrate(url, "base"))
    finally:
        database.sql("DROP OWNED BY owns_nothing")
        database.sql("DROP ROLE owns_nothing")


def test_a_database_that_is_not_in_utf8_is_refused(server: EmbeddedServer) -> None:
    admin = Postgres(server.url)
    admin.sql("CREATE DATABASE in_latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    database = Postgres(server.url.replace("/postgres?", "/in_latin1?"))
    try:
        assert "LATIN1" in failed(database.url)
        assert database.sql(TABLES) == []
    finally:
        admin.sql("DROP DATABASE in_latin1")


def test_a_migration_that_waits_for_a_lock_says_who_holds_it(new_database: Callable[[], Postgres]) -> None:
    async def hold_and_migrate() -> None:
        holder = await asyncpg.connect(database.url, server_settings={"application_name": "a backup"})
        async with holder.transaction():
            await holder.execute("LOCK TABLE tasks IN ACCESS SHARE MODE")
            with pytest.raises(SchemaError, match=rf"held by pid {holder.get_server_pid()} \('a backup'\)"):
                await migrate(database.url, "base", lock_seconds=0.5)
        await holder.close()

    database = new_database()
    before = database.sql(TABLES)
    asyncio.run(hold_and_migrate())
    assert database.sql(TABLES) == before


def test_a_host_name_that_no_domain_can_have_is_named_in_one_line() -> None:
    with pytest.raises(SchemaError, match=r"^DATABASE_URL: the database cannot be reached: .*label empty"):
        asyncio.run(migrate("postgresql://user:hunter2@a..b/tasks"))


def test_a_search_path_that_leads_nowhere_is_named(new_empty_database: Callable[[], Postgres]) -> None:
    database = new_empty_database()
    database.sql(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = gone', current_database()); END $$"
    )
    assert "no schema has been selected" in failed(database.url)
