"""PostgreSQL's plan of each statement on 50,000 tasks: an index, no sort, and no row read in vain."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from backend.auth.accounts.statements import CONFIRM_CALLER, FIND_ACCOUNT, FIND_EMAIL, HIGHEST_COST
from backend.database import Statement
from backend.database.url import connect_arguments
from backend.tasks import statements
from tests.conftest import Postgres
from tests.programs import needs_own_server

pytestmark = needs_own_server

HEAVY = "0"
"""The user with 5,000 tasks. A tenth of each user's tasks are pending."""

FILL = """
    INSERT INTO users (id, issuer, email, email_key, password_hash)
    SELECT n, 'local', n || '@example.com', n || '@example.com',
        '$2b$12$' || repeat('a', 53) FROM generate_series(0, {users}) n;
    INSERT INTO emails (email_key, user_id) SELECT email_key, id FROM users;
    INSERT INTO sessions (id, user_id, expires_at)
    SELECT lpad(id, 32, '0')::uuid, id, now() + interval '1 day' FROM users;
    INSERT INTO known_addresses (user_id, address) SELECT id, '192.0.2.' || id FROM users;
    INSERT INTO tasks (user_id, title, title_key, completed, created_at)
    SELECT CASE WHEN n % 100 < {percent} THEN 0 ELSE 1 + random / 5003 % {users} END,
        'T' || random % 5003, 't' || random % 5003, random % 10 <> 0,
        timestamptz '2026-01-01' + random % 9973 * interval '1 minute'
    FROM generate_series(1, {tasks}) n, LATERAL (SELECT abs(hashint4(n))) AS t (random);
    ANALYZE;
"""
PLANNED_ANEW = 5
"""PostgreSQL plans a prepared statement anew this often before it compares costs (its manual on PREPARE)."""
ON_ONE_TASK: dict[str, tuple[Statement, dict[str, Any]]] = {
    "READ_TASK": (statements.READ_TASK, {}),
    "UPDATE_TASK": (
        statements.UPDATE_TASK,
        {**statements.update_values({"title": "Z", "title_key": "z"}), "expected": None},
    ),
    "TOGGLE_TASK": (statements.TOGGLE_TASK, {"expected": None}),
    "DELETE_TASK": (statements.DELETE_TASK, {"expected": None}),
}
EITHER_PLAN = pytest.mark.parametrize("plans", ["custom", "generic"])


class Planner:
    """A connection to a database of tasks, kept for a module, because a new one for each plan takes 10 ms."""

    def __init__(self, runner: asyncio.Runner, url: str) -> None:
        self._runner = runner
        self._connection = runner.run(asyncpg.connect(**connect_arguments(url)))

    def close(self) -> None:
        """Close the connection."""
        self._runner.run(self._connection.close())

    def execute(self, script: str) -> None:
        """Run SQL without an answer."""
        self._runner.run(self._connection.execute(script))

    def fetchval(self, sql: str) -> Any:
        """Run one statement, and return its one value."""
        return self._runner.run(self._connection.fetchval(sql))

    def explain(self, plans: str, statement: Statement, **values: Any) -> list[dict[str, Any]]:
        """Run the statement as the service sends it, roll it back, and return the nodes of its plan."""
        arguments = ", ".join(_literal(value) for value in statement.arguments(values))
        self.execute(f"SET plan_cache_mode = force_{plans}_plan; BEGIN; PREPARE it AS {statement.sql}")
        given = f"({arguments})" if arguments else ""
        report = self.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE it {given}")
        self.execute("ROLLBACK; DEALLOCATE it")
        return list(_nodes(json.loads(report)[0]["Plan"]))

    def planned_anew(self, statement: Statement, values: list[dict[str, Any]]) -> Any:
        """Run a statement with each of these values, and return the number of plans that PostgreSQL made."""
        return self._runner.run(self._planned_anew(statement, values))

    async def _planned_anew(self, statement: Statement, values: list[dict[str, Any]]) -> Any:
        prepared = await self._connection.prepare(statement.sql)
        for value in values:
            assert await prepared.fetch(*statement.arguments(value))
        return await self._connection.fetchval(
            "SELECT custom_plans FROM pg_prepared_statements WHERE name = $1", prepared.get_name()
        )


@contextmanager
def filled(database: Postgres, **sizes: int) -> Iterator[Planner]:
    """Fill a database for the length of the block."""
    with asyncio.Runner() as runner:
        planner = Planner(runner, database.url)
        planner.execute(FILL.format(**sizes))
        yield planner
        planner.execute("TRUNCATE users, emails CASCADE")
        planner.close()


@pytest.fixture(scope="module")
def large(new_database: Callable[[], Postgres]) -> Iterator[Planner]:
    """A database with 50,000 tasks, where most users have a hundred."""
    with filled(new_database(), users=450, tasks=50_000, percent=10) as planner:
        yield planner


@pytest.fixture(scope="module")
def skewed(new_database: Callable[[], Postgres]) -> Iterator[Planner]:
    """A database where one user has most of the tasks, and a hundred others have twenty each."""
    with filled(new_database(), users=100, tasks=22_000, percent=90) as planner:
        yield planner


def _literal(value: object) -> str:
    return "NULL" if value is None else "'" + str(value).replace("'", "''") + "'"


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def caller(user_id: str) -> dict[str, Any]:
    return {"caller_id": user_id, "caller_issuer": "local", "caller_session": user_id.zfill(32)}


def scans_of(nodes: list[dict[str, Any]], table: str) -> list[dict[str, Any]]:
    """Return the scans of `table`. Assert that there is no sequential scan, no sort and no discarded row."""
    scans = [node for node in nodes if "Scan" in node["Node Type"] and "Relation Name" in node]
    assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan"}, nodes
    assert not [node for node in nodes if "Sort" in node["Node Type"]], nodes
    assert not any(node.get("Rows Removed by Filter") for node in scans), nodes
    return [node for node in scans if node["Relation Name"] == table]


@EITHER_PLAN
@pytest.mark.parametrize("limit", [20, 1000])
@pytest.mark.parametrize("variant", statements.LIST_TASKS, ids=lambda variant: "-".join(map(str, variant)))
def test_a_list_reads_only_what_it_answers_in_the_order_of_an_index(
    large: Planner, plans: str, limit: int, variant: tuple[Any, ...]
) -> None:
    """A user with 5,000 tasks waits no longer for a page of them."""
    _, sort, _, goes_on = variant
    values = caller(HEAVY) | {"row_limit": limit + 1}
    if goes_on:
        values |= {"after_key": "t2500" if sort == "title" else "2026-01-02 12:00:00Z", "after_id": 9}
    (scan,) = scans_of(large.explain(plans, statements.LIST_TASKS[variant], **values), "tasks")
    assert scan["Index Name"].startswith("tasks_by_")
    assert 21 <= scan["Actual Rows"] <= limit + 1


@EITHER_PLAN
def test_a_caller_costs_one_look_at_their_session_by_its_key(large: Planner, plans: str) -> None:
    """The user may have many sessions. The plan does not read the user, because deletion ends the session."""
    nodes = large.explain(plans, CONFIRM_CALLER, **caller(HEAVY))
    looks = [node for node in nodes if "Relation Name" in node and node["Actual Loops"]]
    assert [look["Index Name"] for look in looks] == ["sessions_pkey"]


@EITHER_PLAN
@pytest.mark.parametrize("name", ON_ONE_TASK)
def test_one_task_is_found_by_its_key(large: Planner, plans: str, name: str) -> None:
    statement, values = ON_ONE_TASK[name]
    task_id = large.fetchval(f"SELECT max(id) FROM tasks WHERE user_id = '{HEAVY}'")  # noqa: S608  # a constant
    nodes = large.explain(plans, statement, task_id=task_id, **values, **caller(HEAVY))
    (scan,) = scans_of(nodes, "tasks")
    assert (scan["Index Name"], scan["Actual Rows"], nodes[0]["Actual Rows"]) == ("tasks_pkey", 1, 1)


@EITHER_PLAN
def test_the_look_that_tells_403_from_404_is_by_key(large: Planner, plans: str) -> None:
    (scan,) = scans_of(
        large.explain(plans, statements.ANYBODYS_TASK, task_id=50_000, **caller(HEAVY)), "tasks"
    )
    assert (scan["Index Name"], scan["Actual Rows"]) == ("tasks_pkey", 1)


@EITHER_PLAN
def test_an_account_is_found_by_its_email(large: Planner, plans: str) -> None:
    key = "7@example.com"
    (email,) = scans_of(large.explain(plans, FIND_EMAIL, email_key=key), "emails")
    values = {"user_id": "7", "email_key": key, "address": ""}
    (user,) = scans_of(large.explain(plans, FIND_ACCOUNT, **values), "users")
    found = [(scan["Index Name"], scan["Actual Rows"]) for scan in (email, user)]
    assert found == [("emails_pkey", 1), ("users_pkey", 1)]


@EITHER_PLAN
def test_the_highest_cost_of_all_hashes_is_read_from_the_end_of_an_index(large: Planner, plans: str) -> None:
    (scan,) = scans_of(large.explain(plans, HIGHEST_COST), "users")
    assert (scan["Index Name"], scan["Actual Rows"]) == ("users_password_cost", 1)


@pytest.mark.parametrize("variant", statements.LIST_TASKS, ids=lambda variant: "-".join(map(str, variant)))
def test_a_list_is_planned_once_for_all_users(skewed: Planner, variant: tuple[Any, ...]) -> None:
    """Planning takes longer than listing. PostgreSQL would plan each time for users unlike the average."""
    _, sort, _, goes_on = variant
    values = [caller(str(number)) | {"row_limit": 21} for number in range(1, 11)]
    if goes_on:
        after = {"after_key": "t2500" if sort == "title" else datetime(2026, 1, 2, tzinfo=UTC), "after_id": 9}
        values = [value | after for value in values]
    assert skewed.planned_anew(statements.LIST_TASKS[variant], values) == PLANNED_ANEW
