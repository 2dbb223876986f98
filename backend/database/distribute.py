"""Distributes the tables of a migrated database over the nodes of a Citus cluster, in one transaction.

All rows of a user are on one node, because each statement of the user must run on one node.
"""

import time
from collections.abc import Callable
from typing import Final

import asyncpg

from backend.database.connection import in_words
from backend.database.revision import SchemaError, connect, is_current

BY_USER: Final = {
    "users": "id",
    **dict.fromkeys(("sessions", "refresh_tokens", "mail_tokens", "known_addresses", "tasks"), "user_id"),
}
"""The tables distributed by user, with their distribution column. A table precedes those that refer to it."""
BY_EMAIL: Final = {"emails": "email_key"}
"""The table distributed by email. The outbox and `alembic_version` stay on the coordinator."""

_TABLES = "SELECT logicalrelid::regclass::text AS name FROM pg_dist_partition WHERE partmethod = 'h'"
_WORKERS = "SELECT count(*) FROM pg_dist_node WHERE isactive AND shouldhaveshards"
_SIZE = "SELECT pg_size_pretty(pg_total_relation_size($1::text::regclass))"
_SPREAD = "SELECT create_distributed_table($1::text::regclass, $2, colocate_with => $3)"
_EMPTY = (
    "SELECT truncate_local_data_after_distributing_table(name) "
    "FROM unnest('{users,emails}'::regclass[]) AS name"
)
"""Deletes the coordinator's local copy of the rows, and of all rows that refer to users."""


async def distribute(url: str, confirm: Callable[[str], None], show: Callable[[str], None]) -> None:
    """Distribute the tables that are not distributed yet.

    `confirm` gets the plan, and raises to prevent it. `show` gets a line for each step. Raises
    `SchemaError`; then nothing was changed.
    """
    if not await is_current(url):
        raise SchemaError("DATABASE_URL: the schema is not current; run `python -m backend migrate` first")
    connection = await connect(url)
    try:
        left = await _left(connection)
        if not left:
            show("all tables are spread already")
            return
        confirm(await _plan(connection, left))
        async with connection.transaction():
            for table, column in left.items():
                await _spread(connection, table, column, show)
            await connection.execute(_EMPTY)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise SchemaError(
            f"DATABASE_URL: spreading failed: {in_words(error)}; nothing was changed"
        ) from error
    finally:
        connection.terminate()


async def _left(connection: asyncpg.Connection) -> dict[str, str]:
    """Return the tables that are not distributed yet; raises `SchemaError` if Citus is not ready."""
    if await connection.fetchval("SELECT 1 FROM pg_extension WHERE extname = 'citus'") is None:
        raise SchemaError("DATABASE_URL: there is no extension citus; see the README, Past one machine")
    if not await connection.fetchval(_WORKERS):
        raise SchemaError("DATABASE_URL: the cluster has no node for tables; add one by citus_add_node")
    spread = {row["name"] for row in await connection.fetch(_TABLES)}
    return {name: column for name, column in (BY_USER | BY_EMAIL).items() if name not in spread}


async def _plan(connection: asyncpg.Connection, tables: dict[str, str]) -> str:
    version = await connection.fetchval("SELECT extversion FROM pg_extension WHERE extname = 'citus'")
    nodes = await connection.fetchval(_WORKERS)
    lines = [
        f"  {table} ({await connection.fetchval(_SIZE, table)}) by {column}"
        for table, column in tables.items()
    ]
    return "\n".join([f"Citus {version}; over {nodes} nodes, writes wait meanwhile:", *lines])


async def _spread(
    connection: asyncpg.Connection, table: str, column: str, show: Callable[[str], None]
) -> None:
    began = time.monotonic()
    beside = "users" if table in BY_USER and table != "users" else "none"
    await connection.execute("SET LOCAL citus.multi_shard_modify_mode = 'sequential'")
    await connection.execute("SET LOCAL client_min_messages = warning")
    await connection.fetchval(_SPREAD, table, column, beside)
    show(f"{table}: done in {time.monotonic() - began:.1f} s")
