"""A node of a cluster is away: its users are refused, and everybody else is served as usual.

Most tests run on plain PostgreSQL, with tables and functions of Citus' names that say where users are and
which nodes answer. A user whose row is locked stands for one whose node is silent.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from typing import Any

import asyncpg
import pytest
from sqlalchemy import column, text

from backend.database import Database, NodeAwayError, Row, Statement, UnreachableError, WideStatement
from backend.database.url import connect_arguments
from backend.settings import Settings
from tests.conftest import Postgres
from tests.operations.proxy import Proxy
from tests.programs import needs_user_timeout
from tests.service import JWT_SECRET
from tests.waiting import until_async

POOL_SIZE = 5
SHARE = 2
"""Places of one node in a pool of that size."""
TIMEOUT_SECONDS = 2.0

USERS = (
    "CREATE TABLE users (id text PRIMARY KEY, work integer NOT NULL DEFAULT 0)",
    "INSERT INTO users VALUES ('east'), ('west')",
)
STAND_IN = (
    "CREATE TABLE pg_dist_partition AS SELECT 'users'::regclass AS logicalrelid",
    """CREATE TABLE pg_dist_node AS SELECT number AS groupid, name AS nodename, 5432 AS nodeport,
    true AS shouldhaveshards, true AS answers FROM (VALUES (1, 'east'), (2, 'west')) AS _ (number, name)""",
    "CREATE TABLE pg_dist_placement AS SELECT id AS shardid, id AS groupid FROM generate_series(1, 2) AS id",
    """CREATE FUNCTION get_shard_id_for_distribution_column(regclass, text) RETURNS integer LANGUAGE sql AS
    $$SELECT CASE WHEN $2 LIKE 'west%' THEN 2 ELSE 1 END$$""",
    """CREATE FUNCTION citus_check_connection_to_node(text, integer) RETURNS boolean LANGUAGE sql AS
    $$SELECT answers FROM pg_dist_node WHERE (nodename, nodeport) = ($1, $2)$$""",
)
"""What Citus tells of a cluster with two nodes, as far as it is asked."""

WORK = Statement(text("SELECT id FROM users WHERE id = :user_id FOR UPDATE").columns(column("id")))
LOOK = WideStatement(text("SELECT count(*) AS count FROM users"))
SLOW_LOOK = WideStatement(text("SELECT id FROM users FOR UPDATE"))
OWN = Statement(text("SELECT 1 AS one"))
"""A statement that the coordinator answers alone."""


@pytest.fixture
def plain(new_empty_database: Callable[[], Postgres]) -> Postgres:
    database = new_empty_database()
    for statement in USERS:
        database.sql(statement)
    return database


@pytest.fixture
def spread(plain: Postgres) -> Postgres:
    for statement in STAND_IN:
        plain.sql(statement)
    return plain


async def outcomes_of(asked: list[asyncio.Task[Row | None]]) -> list[Row | BaseException | None]:
    return await asyncio.gather(*asked, return_exceptions=True)


class Stage:
    """The `Database` under test, and a second way to the same server."""

    def __init__(self, database: Database, server: asyncpg.Connection) -> None:
        self.database, self._server = database, server

    async def work(self, user_id: str) -> Row | None:
        """Do the work of a user."""
        return await self.database.one(WORK, user_id=user_id)

    async def work_in_transaction(self, user_id: str) -> Row | None:
        """Do it as a part of more."""
        async with self.database.transaction() as transaction:
            return await transaction.one(WORK, user_id=user_id)

    async def know_all_users(self) -> None:
        """Let the node of each be looked up, because that takes a connection too."""
        await self.work("east")
        await self.work("west")

    def ask(self, user_id: str, number: int) -> list[asyncio.Task[Row | None]]:
        """Let a user ask so many times at once."""
        return [asyncio.create_task(self.work(user_id)) for _ in range(number)]

    async def freeze(self, *, answers: bool) -> None:
        """Hold up all work in the west; `answers` is what a check of the node finds out."""
        await self._server.execute("UPDATE pg_dist_node SET answers = $1 WHERE nodename = 'west'", answers)
        await self.hold_up()

    async def hold_up(self) -> None:
        """Lock the rows of all users in the west."""
        await self._server.execute("BEGIN; SELECT FROM users WHERE id LIKE 'west%' FOR UPDATE")

    async def heal(self) -> None:
        """Let their work go on."""
        await self.release()
        await self._server.execute("UPDATE pg_dist_node SET answers = true")

    async def release(self) -> None:
        """Unlock the rows of `hold_up`."""
        await self._server.execute("COMMIT")

    async def break_the_check(self) -> None:
        """Take away the function that checks a node."""
        await self._server.execute("DROP FUNCTION citus_check_connection_to_node")

    async def lose_the_west(self) -> None:
        """Freeze it, and wait until its users are refused."""
        await self.freeze(answers=False)
        with pytest.raises(UnreachableError):
            await self.work("west")
        await self.wait_until_the_west_gets(NodeAwayError)

    async def wait_until_the_west_gets(self, outcome: type) -> None:
        """Let its user work until this is what comes of it."""
        while True:
            (result,) = await outcomes_of(self.ask("west", 1))
            if isinstance(result, outcome):
                return
            await asyncio.sleep(0.02)

    async def connections(self) -> set[int]:
        """Return the server's processes for the database under test."""
        rows = await self._server.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return {row["pid"] for row in rows}


@asynccontextmanager
async def stage(
    database: Postgres, *, server: Postgres | None = None, seconds: float = TIMEOUT_SECONDS
) -> AsyncIterator[Stage]:
    """Set it up, with one statement done, so that it is known whether the database is spread.

    `server` is the database past a proxy that may fail.
    """
    settings = Settings(
        database_url=database.url,
        jwt_secret=JWT_SECRET,
        database_pool_size=POOL_SIZE,
        database_timeout_seconds=seconds,
        _env_file=None,
    )
    direct = await asyncpg.connect(**connect_arguments((server or database).url))
    try:
        async with Database(settings) as opened:
            await opened.one(OWN)
            yield Stage(opened, direct)
    finally:
        direct.terminate()


def play(test: Coroutine[Any, Any, None]) -> None:
    """Run a test; one that gets stuck fails."""
    asyncio.run(asyncio.wait_for(test, 60))


def test_a_silent_node_takes_its_share_of_the_connections_and_others_are_served(spread: Postgres) -> None:
    async def run() -> None:
        async with stage(spread) as scene:
            await scene.know_all_users()
            await scene.freeze(answers=True)
            asked = scene.ask("west", 3 * POOL_SIZE)
            await until_async(lambda: scene.database.pool.in_use >= SHARE)
            for _ in range(20):
                assert await scene.work("east")
                assert scene.database.pool.in_use == SHARE
            assert not any(task.done() for task in asked)
            await scene.heal()
            assert all(await outcomes_of(asked))

    play(run())


def test_transactions_leave_connections_to_others_too(spread: Postgres) -> None:
    async def run() -> None:
        async with stage(spread) as scene:
            await scene.know_all_users()
            await scene.freeze(answers=True)
            asked = scene.ask("west", POOL_SIZE)
            asked += [asyncio.create_task(scene.work_in_transaction("west")) for _ in range(POOL_SIZE)]
            await until_async(lambda: scene.database.pool.in_use >= 2 * SHARE)
            assert await scene.work("east")
            assert not any(task.done() for task in asked)
            await scene.heal()
            assert all(await outcomes_of(asked))

    play(run())


def test_on_plain_postgresql_one_user_may_take_all_connections(plain: Postgres) -> None:
    async def run() -> None:
        async with stage(plain) as scene:
            await scene.hold_up()
            asked = scene.ask("west", POOL_SIZE)
            await until_async(lambda: scene.database.pool.in_use == POOL_SIZE)
            assert {type(outcome) for outcome in await outcomes_of(asked)} == {UnreachableError}

    play(run())


def test_looks_at_all_nodes_take_one_connection_and_end_soon(spread: Postgres) -> None:
    async def run() -> None:
        async with stage(spread) as scene:
            await scene.freeze(answers=True)
            looks = [
                asyncio.create_task(scene.database.look(SLOW_LOOK, seconds=TIMEOUT_SECONDS / 4))
                for _ in range(POOL_SIZE)
            ]
            await until_async(lambda: scene.database.pool.in_use)
            assert scene.database.pool.in_use == 1
            assert await scene.work("east")
            assert {type(outcome) for outcome in await outcomes_of(looks)} == {NodeAwayError}
            await scene.heal()

    play(run())


def test_on_plain_postgresql_a_look_has_its_usual_time(plain: Postgres) -> None:
    async def run() -> None:
        async with stage(plain) as scene:
            await scene.hold_up()
            looks = [asyncio.create_task(scene.database.look(SLOW_LOOK, seconds=0)) for _ in range(POOL_SIZE)]
            await until_async(lambda: scene.database.pool.in_use == POOL_SIZE)
            await scene.release()
            assert all(await outcomes_of(looks))

    play(run())


def test_an_error_of_the_caller_in_a_transaction_costs_no_other_connection(plain: Postgres) -> None:
    async def run() -> None:
        async with stage(plain) as scene:
            await outcomes_of(scene.ask("east", POOL_SIZE))
            before = await scene.connections()
            with pytest.raises(ZeroDivisionError):
                async with scene.database.transaction():
                    raise ZeroDivisionError
            await until_async(lambda: scene.database.pool.in_use == 0)
            assert len(before - await scene.connections()) == 1

    play(run())


def test_a_node_that_is_away_is_refused_at_once_until_it_answers(spread: Postgres) -> None:
    async def run() -> None:
        async with stage(spread) as scene:
            await scene.lose_the_west()
            outcomes = await outcomes_of(scene.ask("west", 10 * POOL_SIZE))
            assert {type(outcome) for outcome in outcomes} == {NodeAwayError}
            with pytest.raises(NodeAwayError):
                await scene.work_in_transaction("west")
            with pytest.raises(NodeAwayError):  # a part of the rows is away
                await scene.database.one(LOOK)
            assert await scene.work("east")
            assert await scene.work_in_transaction("east")
            assert await scene.database.one(OWN)
            await scene.heal()
            await scene.wait_until_the_west_gets(asyncpg.Record)
            assert all(await outcomes_of(scene.ask("west", POOL_SIZE)))
            assert await scene.database.one(LOOK)

    play(run())


def test_a_node_that_is_back_is_checked_no_more(spread: Postgres) -> None:
    """An idle service sends nothing."""

    async def run() -> None:
        async with stage(spread) as scene:
            before = asyncio.all_tasks()
            await scene.lose_the_west()
            assert not asyncio.all_tasks() <= before
            await scene.heal()
            await until_async(lambda: asyncio.all_tasks() <= before)

    play(run())


def test_a_node_whose_check_fails_is_not_refused_for_ever(spread: Postgres) -> None:
    async def run() -> None:
        async with stage(spread) as scene:
            await scene.lose_the_west()
            await scene.release()
            await scene.break_the_check()
            await scene.wait_until_the_west_gets(asyncpg.Record)

    play(run())


def test_a_node_that_joined_later_is_known_by_its_users(spread: Postgres) -> None:
    """A failed transaction does not tell which node has failed, so each known one is checked."""
    spread.sql("UPDATE pg_dist_node SET shouldhaveshards = nodename = 'east'")

    async def run() -> None:
        async with stage(spread) as scene:
            await scene.know_all_users()
            await scene.freeze(answers=False)
            outcomes: list[type] = []
            while NodeAwayError not in outcomes and len(outcomes) < SHARE + 2:
                (outcome,) = await asyncio.gather(scene.work_in_transaction("west"), return_exceptions=True)
                outcomes.append(type(outcome))
            assert outcomes[-1] is NodeAwayError
            await scene.heal()

    play(run())


def test_a_slow_user_of_a_node_that_answers_leaves_its_others_served(spread: Postgres) -> None:
    async def run() -> None:
        async with stage(spread) as scene:
            await scene.freeze(answers=True)
            with pytest.raises(UnreachableError):
                await scene.work("west")
            assert await scene.work("west of all") is None
            await scene.heal()

    play(run())


def test_a_silent_node_costs_nobody_else_an_idle_connection(spread: Postgres) -> None:
    async def run() -> None:
        async with stage(spread) as scene:
            await outcomes_of(scene.ask("east", 2 * POOL_SIZE))
            before = await scene.connections()
            await scene.lose_the_west()
            assert len(before - await scene.connections()) <= SHARE
            await scene.heal()

    play(run())


@needs_user_timeout
def test_a_dead_connection_to_the_coordinator_takes_the_other_idle_ones_with_it(spread: Postgres) -> None:
    """A router forgets all at once. Each would cost a read half of its time."""
    with closing(Proxy.before(spread.url)) as network:

        async def run() -> None:
            async with stage(Postgres(network.url), server=spread, seconds=3 * TIMEOUT_SECONDS) as scene:
                await outcomes_of(scene.ask("east", POOL_SIZE))
                assert len(await scene.connections()) > 1
                network.drop_packets()
                network.accept_connections()
                assert await scene.work("east")

        play(run())


def test_a_coordinator_that_fell_silent_loses_all_its_connections(spread: Postgres) -> None:
    """They may be dead for good, each of them, as after a router's restart."""
    with closing(Proxy.before(spread.url)) as network:

        async def run() -> None:
            async with stage(Postgres(network.url), server=spread) as scene:
                await outcomes_of(scene.ask("east", POOL_SIZE))
                before = await scene.connections()
                network.fall_silent()
                with pytest.raises(UnreachableError):
                    await scene.work("east")
                await until_async(lambda: scene.database.pool.in_use == 0)
                network.forget()
                assert await scene.work("east")
                assert len(before) > 1

        play(run())
