"""`python -m backend distribute` distributes all tables of users over a cluster's nodes, or none."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlmodel import SQLModel

import backend.auth.mail.models
import backend.auth.models
import backend.tasks.models  # noqa: F401  # all three fill SQLModel.metadata
from backend.database.distribute import BY_EMAIL, BY_USER
from tests.conftest import Postgres
from tests.database import citus
from tests.service import JWT_SECRET, ROOT, environment, running

FILL = (
    "INSERT INTO users (id, issuer) SELECT n, 'better-auth' FROM generate_series(1, 50) n",
    "INSERT INTO tasks (user_id, title, title_key) SELECT id, 'x', 'x' FROM users, generate_series(1, 20)",
)


def command(database: Postgres, *arguments: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backend", *arguments],
        cwd=directory,
        env=environment(DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET),
        input="n\n",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def on_cluster() -> Iterator[Postgres]:
    """A migrated database of a cluster, with rows and without distributed tables."""
    with citus.cluster() as cluster:
        database = Postgres(cluster.create(f"test_{os.getpid()}_distribute", spread=False))
        for statement in FILL:
            database.sql(statement)
        yield database


def spread(database: Postgres) -> dict[str, int]:
    """Return the distributed tables, each with its colocation group."""
    rows = database.sql("SELECT table_name::text, colocation_id FROM citus_tables")
    return {row["table_name"]: row["colocation_id"] for row in rows}


def test_every_table_of_users_is_spread() -> None:
    assert {*BY_USER, *BY_EMAIL} == {*SQLModel.metadata.tables} - {"outbox"}


def test_a_database_that_is_not_ready_is_told_in_one_line(
    new_empty_database: Callable[[], Postgres],
) -> None:
    database = new_empty_database()
    for words in ("run `python -m backend migrate` first", "there is no extension citus"):
        done = command(database, "distribute", "--yes")
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
        assert command(database, "migrate").returncode == 0


@pytest.mark.cluster
def test_a_cluster_without_workers_is_told_in_one_line(on_cluster: Postgres) -> None:
    for worker in on_cluster.sql("SELECT nodename, nodeport FROM pg_dist_node WHERE shouldhaveshards"):
        on_cluster.sql("SELECT citus_remove_node($1, $2)", *worker.values())
    done = command(on_cluster, "distribute", "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert "add one by citus_add_node" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.cluster
def test_tables_are_spread_once_after_a_yes_and_keep_their_rows(on_cluster: Postgres) -> None:
    asked = command(on_cluster, "distribute")
    assert (asked.returncode, spread(on_cluster)) == (1, {})
    assert "tasks (" in asked.stdout
    done = command(on_cluster, "distribute", "--yes")
    assert done.returncode == 0, done.stderr
    groups = spread(on_cluster)
    assert groups.keys() == {*BY_USER, *BY_EMAIL}
    assert len({groups[table] for table in BY_USER}) == 1
    assert on_cluster.sql("SELECT count(*) AS n FROM tasks") == [{"n": 1000}]
    assert on_cluster.sql("SELECT pg_relation_size('tasks') AS of_coordinator") == [{"of_coordinator": 0}]
    again = command(on_cluster, "distribute", "--yes")
    assert (again.returncode, again.stdout) == (0, "all tables are spread already\n")


@pytest.mark.cluster
def test_all_tables_are_spread_or_none(on_cluster: Postgres) -> None:
    """A unique index without the user cannot be spread, which shows after other tables are."""
    on_cluster.sql("CREATE UNIQUE INDEX by_id_alone ON tasks (id)")
    failed = command(on_cluster, "distribute", "--yes")
    assert (failed.returncode, spread(on_cluster)) == (1, {})
    assert "users: done" in failed.stdout
    assert failed.stderr.endswith("; nothing was changed\n")
    on_cluster.sql("DROP INDEX by_id_alone")
    assert command(on_cluster, "distribute", "--yes").returncode == 0


def with_new_columns(directory: Path) -> Path:
    """Copy the code, with a column and an index more of tasks and a column more of users."""
    shutil.copytree(ROOT / "backend", directory / "backend")
    priority = "priority: int = Field(sa_column=Column(BigInteger, nullable=False, server_default='0'))"
    for name, line, more in (
        ("tasks", "    title: str = Field(", f"    {priority}"),
        ("tasks", '        Index("tasks_by_created"', '        Index("by_priority", "user_id", "priority"),'),
        ("auth", "    name: str | None", "    nickname: str | None = Field(sa_type=Text)"),
    ):
        models = directory / "backend" / name / "models.py"
        models.write_text(models.read_text().replace(line, f"{more}\n{line}", 1))
    return directory


@pytest.mark.cluster
def test_a_spread_database_is_migrated_checked_and_served_like_any(
    on_cluster: Postgres, tmp_path: Path
) -> None:
    """`migrate --new` writes the migration, and Citus carries it out on all nodes."""
    assert command(on_cluster, "distribute", "--yes").returncode == 0
    assert command(on_cluster, "migrate", "--check").returncode == 0
    changed = with_new_columns(tmp_path)
    for arguments in (("--new", "More columns"), (), ("--check",)):
        done = command(on_cluster, "migrate", *arguments, directory=changed)
        assert done.returncode == 0, done.stderr
    program = f"import sys; sys.path[:0] = ['{changed}']; from backend.__main__ import main; main(['serve'])"
    settings = {"DATABASE_URL": on_cluster.url, "JWT_SECRET": JWT_SECRET}
    with running(tmp_path / "log", program=("-c", program), **settings) as service:
        ada = service.register()
        task = ada.create()
        assert ada.client.get("/tasks").json() == [task]
    assert on_cluster.sql("SELECT count(*), sum(priority) FROM tasks") == [{"count": 1001, "sum": 0}]


@pytest.mark.cluster
def test_ids_of_tasks_stay_unique_while_their_parts_move(on_cluster: Postgres) -> None:
    assert command(on_cluster, "distribute", "--yes").returncode == 0
    nodes = on_cluster.sql("SELECT nodename::text, nodeport FROM pg_dist_node WHERE shouldhaveshards")
    moves = (
        "SELECT citus_move_shard_placement(shardid, nodename, nodeport, $1, $2::int, 'block_writes') "
        "FROM citus_shards WHERE table_name = 'tasks'::regclass "
        "AND (nodename, nodeport) <> ($1, $2::int) LIMIT 1"
    )
    for node in nodes:
        on_cluster.sql(moves, node["nodename"], node["nodeport"])
        on_cluster.sql(FILL[1])
    assert on_cluster.sql("SELECT count(*) - count(DISTINCT id) AS twice FROM tasks") == [{"twice": 0}]
