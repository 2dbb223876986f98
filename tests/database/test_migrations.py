"""The schema: many processes make it once, whole or not at all, with the limits of the API in it."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from sqlmodel import SQLModel

import backend.auth.mail.models
import backend.auth.models
import backend.tasks.models  # noqa: F401  # all three fill SQLModel.metadata
import tests.service
from backend.database import revision, schema
from tests.conftest import Postgres
from tests.service import JWT_SECRET, ROOT, Finished, Service, environment

TABLES = {
    "users",
    "emails",
    "sessions",
    "refresh_tokens",
    "known_addresses",
    "mail_tokens",
    "outbox",
    "tasks",
}

# All columns, constraints and indexes, because they decide the accepted values and the speed.
COLUMNS = """
SELECT table_name::text, column_name::text, data_type::text, is_nullable::text, column_default::text,
    collation_name::text, identity_generation::text
FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
"""
CONSTRAINTS = """
SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'
"""
INDEXES = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"

DRIFTS = {
    "a column more": "op.add_column('tasks', sa.Column('due_at', sa.DateTime()))",
    "a column less": "op.drop_column('users', 'name')",
    "another type": "op.alter_column('sessions', 'ip', type_=sa.String(40))",
    "another default": "op.alter_column('tasks', 'completed', server_default=sa.true())",
    "a null allowed": "op.alter_column('tasks', 'title', nullable=True)",
    "an index less": "op.drop_index('tasks_by_title', table_name='tasks')",
    "a table less": "op.drop_table('refresh_tokens')",
}


def versions() -> list[Path]:
    return sorted((revision.MIGRATIONS / "versions").glob("0*.py"))


def head() -> str:
    return versions()[-1].name.partition("_")[0]


def migrate(database: Postgres, revision: str = "head") -> None:
    asyncio.run(schema.migrate(database.url, revision))


def tables(database: Postgres) -> set[str]:
    rows = database.sql("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
    return {row["tablename"] for row in rows}


def shape(database: Postgres) -> set[tuple[Any, ...]]:
    return {tuple(row.values()) for query in (COLUMNS, CONSTRAINTS, INDEXES) for row in database.sql(query)}


def command(database: Postgres, *arguments: str) -> Finished:
    """Run `python -m backend migrate`."""
    return tests.service.command("migrate", *arguments, DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET)


@pytest.fixture
def new_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Add a migration with this body after the existing ones."""
    migrations = Path(shutil.copytree(revision.MIGRATIONS, tmp_path / "migrations"))
    for module in (revision, schema):
        monkeypatch.setattr(module, "MIGRATIONS", migrations)

    def add(step: str) -> None:
        (migrations / "versions" / "9999_test.py").write_text(
            "import sqlalchemy as sa\n"
            "from alembic import op\n"
            f"revision, down_revision, branch_labels, depends_on = '9999', '{head()}', None, None\n"
            f"def upgrade():\n    {step}\n"
        )

    return add


@pytest.fixture(scope="module")
def migrated(new_empty_database: Callable[[], Postgres]) -> Postgres:
    database = new_empty_database()
    migrate(database)
    return database


def test_a_start_on_an_empty_database_makes_the_schema(service: Service, database: Postgres) -> None:
    assert service.client().get("/health/ready").status_code == 200
    assert tables(database) == TABLES | {"alembic_version"}


def test_many_processes_may_migrate_an_empty_database_at_once(
    new_empty_database: Callable[[], Postgres],
) -> None:
    database = new_empty_database()
    with ThreadPoolExecutor(5) as threads:
        done = list(threads.map(command, [database] * 5))
    assert [finished.returncode for finished in done] == [0] * 5, done
    assert sum(finished.stdout.count("Running upgrade") for finished in done) == len(versions())
    assert len(database.sql("SELECT * FROM alembic_version")) == 1


def test_migrating_again_changes_nothing(new_empty_database: Callable[[], Postgres]) -> None:
    database = new_empty_database()
    migrate(database)
    before = shape(database)
    insert(database, "users", USER)
    migrate(database)
    assert shape(database) == before
    assert len(database.sql("SELECT * FROM users")) == 1


def test_downgrade_takes_all_back_and_upgrade_makes_it_again(
    new_empty_database: Callable[[], Postgres],
) -> None:
    database = new_empty_database()
    migrate(database)
    before = shape(database)
    migrate(database, "base")
    assert tables(database) == {"alembic_version"}
    migrate(database)
    assert shape(database) == before


def test_the_migrations_make_what_the_models_say(
    migrated: Postgres, new_empty_database: Callable[[], Postgres]
) -> None:
    """More than `alembic check` sees: CHECK constraints, collations and identities, too."""
    by_models = new_empty_database()
    create = SQLModel.metadata.create_all
    asyncio.run(schema._with_database(by_models.url, lambda config: create(config.attributes["connection"])))
    assert shape(migrated) == shape(by_models)
    asyncio.run(schema.check(migrated.url))


@pytest.mark.parametrize("drift", DRIFTS)
def test_check_tells_when_the_models_differ(
    new_empty_database: Callable[[], Postgres], new_migration: Callable[[str], None], drift: str
) -> None:
    database = new_empty_database()
    new_migration(DRIFTS[drift])
    migrate(database)
    with pytest.raises(revision.SchemaError) as told:
        asyncio.run(schema.check(database.url))
    assert "\n" not in str(told.value)


def test_check_is_a_command_with_an_exit_code(
    migrated: Postgres, new_empty_database: Callable[[], Postgres]
) -> None:
    clean, behind = command(migrated, "--check"), command(new_empty_database(), "--check")
    assert clean.returncode == 0, clean
    assert behind.returncode == 1
    assert behind.stderr.startswith("tasks-api: ")
    assert behind.stderr.count("\n") == 1


def test_a_revision_that_is_not_there_is_one_line(migrated: Postgres) -> None:
    done = command(migrated, "no-such-revision")
    assert done.returncode == 1
    assert "no-such-revision" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_migration_that_fails_leaves_nothing_of_itself_or_those_before(
    new_empty_database: Callable[[], Postgres], new_migration: Callable[[str], None]
) -> None:
    database = new_empty_database()
    new_migration("op.execute('CREATE TABLE half_done ()'); op.execute('SELECT 1 / 0')")
    with pytest.raises(Exception, match="division by zero"):
        migrate(database)
    assert tables(database) == set()


USER = {"id": "ada", "issuer": "local", "email": "Ada@x.org", "email_key": "ada@x.org", "password_hash": "$"}
EXTERNAL = {"id": "eve", "issuer": "better-auth"}
TASK = {"user_id": "ada", "title": "Buy milk", "title_key": "buy milk"}
EMOJI = "\N{WAVING HAND SIGN}"


def insert(database: Postgres, table: str, row: dict[str, Any]) -> None:
    numbers = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    database.sql(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({numbers})", *row.values())  # noqa: S608


@pytest.fixture
def with_ada(migrated: Postgres) -> Postgres:
    migrated.sql("DELETE FROM users")
    migrated.sql("DELETE FROM emails")
    insert(migrated, "users", USER)
    insert(migrated, "emails", {"email_key": USER["email_key"], "user_id": "ada"})
    return migrated


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("tasks", TASK | {"title": "x"}),
        ("tasks", TASK | {"title": EMOJI * 200}),
        ("tasks", TASK | {"description": EMOJI * 1000}),
        ("tasks", TASK | {"description": ""}),
        ("users", EXTERNAL | {"id": "x"}),
        ("users", EXTERNAL | {"id": "x" * 255}),
        ("users", EXTERNAL | {"name": EMOJI * 200}),
        ("users", EXTERNAL | {"email": "x" * 254}),
        ("users", EXTERNAL | {"email": "Ada@x.org"}),
    ],
)
def test_the_database_takes_what_is_just_within_the_limits(
    with_ada: Postgres, table: str, row: dict[str, Any]
) -> None:
    insert(with_ada, table, row)


@pytest.mark.parametrize(
    ("table", "row", "constraint"),
    [
        ("tasks", TASK | {"title": ""}, "tasks_title_length"),
        ("tasks", TASK | {"title": EMOJI * 201}, "tasks_title_length"),
        ("tasks", TASK | {"description": "x" * 1001}, "tasks_description_length"),
        ("tasks", TASK | {"user_id": "nobody"}, "tasks_user_id_fkey"),
        ("users", EXTERNAL | {"id": ""}, "users_id_length"),
        ("users", EXTERNAL | {"id": "x" * 256}, "users_id_length"),
        ("users", EXTERNAL | {"name": "x" * 201}, "users_name_length"),
        ("users", EXTERNAL | {"email": "x" * 255}, "users_email_length"),
        ("emails", {"email_key": "ada@x.org", "user_id": "two"}, "emails_pkey"),
        ("users", USER | {"id": "two", "email": None, "email_key": "b"}, "users_local_complete"),
        ("users", USER | {"id": "two", "email_key": None}, "users_local_complete"),
        ("users", USER | {"id": "two", "email_key": "b", "password_hash": None}, "users_local_complete"),
    ],
)
def test_the_database_itself_refuses_what_the_contract_does(
    with_ada: Postgres, table: str, row: dict[str, Any], constraint: str
) -> None:
    """The test writes by SQL, because the service would refuse the values first."""
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refused:
        insert(with_ada, table, row)
    assert refused.value.constraint_name == constraint


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (("users", "id"), "text"),
        (("sessions", "id"), "uuid"),
        (("tasks", "id"), "bigint"),
        (("tasks", "created_at"), "timestamp with time zone"),
    ],
)
def test_columns_have_the_types_of_the_design(migrated: Postgres, column: tuple[str, str], kind: str) -> None:
    found = {(row["table_name"], row["column_name"]): row["data_type"] for row in migrated.sql(COLUMNS)}
    assert found[column] == kind


def test_a_deleted_user_takes_sessions_tokens_and_tasks_along(with_ada: Postgres) -> None:
    """The row in `emails` stays, because no foreign key connects it to the user."""
    session = {"id": uuid4(), "user_id": "ada"}
    insert(with_ada, "users", EXTERNAL)
    with_ada.sql("INSERT INTO sessions (id, user_id, expires_at) VALUES ($1, $2, now())", *session.values())
    insert(with_ada, "refresh_tokens", {"user_id": "ada", "digest": b"digest", "session_id": session["id"]})
    insert(with_ada, "tasks", TASK)
    insert(with_ada, "tasks", TASK | {"user_id": "eve"})
    with_ada.sql(
        "INSERT INTO mail_tokens (user_id, digest, purpose, email, expires_at) "
        "VALUES ('ada', $1, 'verify', 'a@example.com', now())",
        b"x",
    )
    with_ada.sql("DELETE FROM users WHERE id = 'ada'")
    left = {table: len(with_ada.sql(f"SELECT * FROM {table}")) for table in TABLES}  # noqa: S608
    assert left == dict.fromkeys(TABLES, 0) | {"users": 1, "tasks": 1, "emails": 1}


def test_a_schema_is_current_after_the_last_migration_and_only_then(
    new_empty_database: Callable[[], Postgres], new_migration: Callable[[str], None]
) -> None:
    database = new_empty_database()
    assert not asyncio.run(revision.is_current(database.url))
    migrate(database)
    assert asyncio.run(revision.is_current(database.url))
    new_migration("op.add_column('tasks', sa.Column('due_at', sa.DateTime()))")
    assert not asyncio.run(revision.is_current(database.url))


def test_a_command_writes_the_migration_for_what_the_models_have_changed(
    new_empty_database: Callable[[], Postgres], tmp_path: Path
) -> None:
    backend = Path(shutil.copytree(ROOT / "backend", tmp_path / "backend"))
    models = backend / "tasks" / "models.py"
    column = "    priority: int = Field(sa_column=Column(BigInteger, nullable=False, server_default='0'))\n"
    title = "    title: str = Field("
    models.write_text(models.read_text().replace(title, column + title))
    database = new_empty_database()

    def run(*arguments: str) -> None:
        program = [sys.executable, "-m", "backend", "migrate", *arguments]
        settings = environment(DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET)
        subprocess.run(program, cwd=tmp_path, env=settings, check=True, timeout=60)

    run("--new", "Tasks have a priority")
    following = f"{int(head()) + 1:04}"
    written = backend / "database" / "migrations" / "versions" / f"{following}_tasks_have_a_priority.py"
    assert "op.add_column('tasks'" in written.read_text()
    run()
    run("--check")


BEFORE_0009 = """
    INSERT INTO users (id, issuer, email, email_key, password_hash) VALUES
        ('ada', 'local', 'Ada@x.org', 'ada@x.org', '$'), ('bob', 'local', 'bob@x.org', 'bob@x.org', '$');
    INSERT INTO users (id, issuer, email) VALUES ('eve', 'better-auth', 'ada@x.org');
    INSERT INTO sessions (id, user_id, expires_at)
        SELECT md5(id)::uuid, id, 'infinity' FROM users WHERE id <> 'eve';
    INSERT INTO refresh_tokens (digest, session_id, generation, uses)
        SELECT convert_to(user_id || n, 'UTF8'), id, n, n FROM sessions, generate_series(1, 3) n;
    INSERT INTO known_addresses (user_id, address) SELECT id, '192.0.2.1' FROM users;
    INSERT INTO mail_tokens (digest, user_id, purpose, email, expires_at)
        SELECT convert_to(id, 'UTF8'), id, 'verify', email, 'infinity' FROM users;
    INSERT INTO outbox (kind, email, email_key) VALUES ('reset', 'ada@x.org', 'ada@x.org');
    INSERT INTO tasks (user_id, title, title_key, idempotency_key)
        SELECT users.id, 'T' || n, 't' || n, n FROM users, generate_series(1, 5) n;
"""


def contents(database: Postgres) -> dict[str, list[str]]:
    """Return the rows of each table of before, as JSON."""
    rows = "SELECT (to_jsonb(t) - 'user_id')::text AS line FROM {} t ORDER BY 1"
    return {table: [row["line"] for row in database.sql(rows.format(table))] for table in TABLES - {"emails"}}


def test_rows_of_every_table_move_to_keys_that_start_with_the_user_and_back(
    new_empty_database: Callable[[], Postgres],
) -> None:
    database = new_empty_database()
    migrate(database, "0008")
    before = shape(database)
    for statement in BEFORE_0009.split(";")[:-1]:
        database.sql(statement)
    rows = contents(database)
    migrate(database)
    assert contents(database) == rows
    assert {tuple(row.values()) for row in database.sql("SELECT email_key, user_id FROM emails")} == {
        ("ada@x.org", "ada"),
        ("bob@x.org", "bob"),
    }
    owner = "SELECT DISTINCT user_id, substr(encode(digest, 'escape'), 1, 3) AS named FROM refresh_tokens"
    assert sorted(tuple(row.values()) for row in database.sql(owner)) == [("ada", "ada"), ("bob", "bob")]
    asyncio.run(schema.check(database.url))
    migrate(database, str(8 - int(head())))
    assert shape(database) == before
    assert contents(database) == rows
    migrate(database)
