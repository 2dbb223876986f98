"""Tables partitioned by user: each statement touches one partition, because it names its user.

PostgreSQL's own partitions stand for the shards of a Citus cluster (README, "Past one machine").
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import pytest

from backend.database import Statement, WideStatement
from backend.database.url import connect_arguments
from tests import test_isolation, test_ownership_matrix
from tests.conftest import Postgres
from tests.database.statements import all_statements, values_of
from tests.service import JWT_SECRET, Service, running
from tests.tasks import test_conditions, test_idempotency, test_list

PARTS = 8
KEYS = {
    **dict.fromkeys(("tasks", "sessions", "refresh_tokens", "known_addresses", "mail_tokens"), "user_id"),
    "users": "id",
    "emails": "email_key",
}
"""The partitioned tables, and their partition columns."""

ASKS_ALL_PARTS = {
    "tasks.statements.ANYBODYS_TASK": "tells another's task from none, after a miss",
    "auth.accounts.statements.HIGHEST_COST": "lets a failed sign-in take as long as any",
    "auth.accounts.statements.COUNT_ACCOUNTS": "counts the accounts of an address, at a limit or a failure",
    "auth.accounts.operator_statements.LIST_USERS": "is an operator's",
    "auth.sessions.statements.EXPIRED_OWNERS": "starts the hourly sweep",
    "auth.sessions.refresh_statements.OWNER_OF_TOKEN": "is for tokens issued before migration 0009",
    "auth.mail.statements.READ_TOKEN": "is for mailed links, whose tokens are short",
}
"""Statements that look at all users, and why."""

PARTED = {f"{table}_{number}" for table in KEYS for number in range(PARTS)}
STATEMENTS = dict(all_statements())


def part(database: Postgres) -> Postgres:
    """Replace each table of `KEYS` by a partitioned one with the same columns, indexes and constraints."""
    asyncio.run(_part(database.url))
    return database


async def _part(url: str) -> None:
    connection = await asyncpg.connect(**connect_arguments(url))
    try:
        foreign = await connection.fetch(
            'SELECT conrelid::regclass::text AS "table", pg_get_constraintdef(oid) AS text '
            "FROM pg_constraint WHERE contype = 'f' ORDER BY conname"
        )
        for table, key in KEYS.items():
            parts = " ".join(
                f"CREATE TABLE {table}_{number} PARTITION OF {table} "
                f"FOR VALUES WITH (MODULUS {PARTS}, REMAINDER {number});"
                for number in range(PARTS)
            )
            await connection.execute(
                f"ALTER TABLE {table} RENAME TO whole;"
                f"CREATE TABLE {table} (LIKE whole INCLUDING ALL) PARTITION BY HASH ({key});"
                f"DROP TABLE whole CASCADE; {parts}"
            )
        for constraint in foreign:
            await connection.execute(f"ALTER TABLE {constraint['table']} ADD {constraint['text']}")
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def database(new_database: Callable[[], Postgres]) -> Postgres:
    """A database with partitioned tables, which replaces the shared one in this module."""
    return part(new_database())


@pytest.fixture(scope="module")
def service(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on that database, which replaces the shared one in this module."""
    log = tmp_path_factory.mktemp("parted") / "log"
    with running(log, DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET) as running_service:
        yield running_service


def parts_of(database: Postgres, plans: str, name: str, statement: Statement) -> set[str]:
    """Return the partitions that a statement's plan reads or changes for given values."""
    report = asyncio.run(_explain(database.url, plans, statement, values_of(name, statement)))
    nodes = _nodes(json.loads(report)[0]["Plan"])
    return {node["Relation Name"] for node in nodes if node.get("Relation Name") in PARTED}


async def _explain(url: str, plans: str, statement: Statement, values: list[Any]) -> Any:
    connection = await asyncpg.connect(**connect_arguments(url))
    try:
        await connection.execute(f"SET plan_cache_mode = force_{plans}_plan; PREPARE it AS {statement.sql}")
        arguments = ", ".join(_literal(value) for value in values)
        return await connection.fetchval(
            f"EXPLAIN (FORMAT JSON) EXECUTE it {f'({arguments})' if values else ''}"
        )
    finally:
        await connection.close()


def _literal(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case bytes():
            return f"'\\x{value.hex()}'"
    return "'" + str(value).replace("'", "''") + "'"


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


@pytest.mark.parametrize("plans", ["custom", "generic"])
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_touches_one_part_of_each_table(database: Postgres, plans: str, name: str) -> None:
    """A statement that looks at all users has its reason in `ASKS_ALL_PARTS`."""
    parts = parts_of(database, plans, name, STATEMENTS[name])
    tables = [part.rpartition("_")[0] for part in parts]
    assert (len(tables) > len(set(tables))) == (name in ASKS_ALL_PARTS), parts


def test_every_exception_is_a_wide_statement() -> None:
    wide = {name for name, statement in STATEMENTS.items() if isinstance(statement, WideStatement)}
    assert ASKS_ALL_PARTS.keys() == wide


def _take_over(module: Any) -> None:
    """Run the tests of a module here too, on the partitioned tables."""
    for name, value in vars(module).items():
        if name.startswith("test_") or hasattr(value, "_fixture_function"):
            globals().setdefault(name, value)


for _module in (test_isolation, test_ownership_matrix, test_list, test_conditions, test_idempotency):
    _take_over(_module)
del globals()["test_title_order_does_not_depend_on_the_locale_of_the_database"]  # it names each index
