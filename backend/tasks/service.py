"""Creates, lists, reads, changes and deletes the caller's tasks, for the routes under both prefixes."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from backend.auth.dependencies import Caller, RevokedTokenError, own
from backend.database import Database, NodeAwayError, Row, Statement
from backend.tasks import statements
from backend.tasks.errors import (
    ConcealedTaskError,
    IdempotencyKeyReusedError,
    PreconditionFailedError,
    TaskForbiddenError,
    TaskNotFoundError,
)
from backend.tasks.paging import SORT_KEYS, Position
from backend.tasks.schemas import TaskCreate, TaskQuery, TaskRead, TaskUpdate
from backend.telemetry import events
from backend.telemetry.events import Event
from backend.web.errors import AppError, Contract


class Expected(NamedTuple):
    """A task's id, and the entity tags with which the request may change it; None allows any."""

    id: int
    tags: list[str] | None


LOOK_SECONDS = 1.0
"""The longest wait on a cluster to distinguish 403 from 404. After it the status is 404."""

FOREIGN_TASK: dict[int | None, type[AppError]] = {
    403: TaskForbiddenError,
    404: ConcealedTaskError,
    None: TaskNotFoundError,
}
"""The error for another user's task, by `Contract.foreign_task`."""


async def create_task(
    database: Database, caller: Caller, data: TaskCreate, key: str | None
) -> tuple[Row | dict[str, Any], bool]:
    """Return a task, and True if it is new. A `key` that was used before returns the task it created.

    Raises `RevokedTokenError`, and `IdempotencyKeyReusedError` if the key was used with other fields.
    """
    values = {**vars(data), "title_key": data.title.casefold()}
    if key is None:
        return _created(own(await database.one(statements.CREATE_TASK, **values, **caller.values))), True
    digest = _digest(data)
    values |= {"idempotency_key": key, "idempotency_digest": digest}
    while True:  # repeats only if the task was deleted between the two statements
        task = own(await database.one(statements.CREATE_TASK_ONCE, **values, **caller.values))
        if task["id"] is not None:
            return _created(task), True
        task = own(await database.one(statements.FIND_BY_KEY, idempotency_key=key, **caller.values))
        if task["id"] is not None:  # pragma: no branch  # a race
            return _same(task, digest), False


def _created(task: Row) -> Row:
    events.record(Event.TASK_CREATED, task_id=task["id"])
    return task


def _same(task: Row, digest: bytes) -> dict[str, Any]:
    if task["idempotency_digest"] != digest:
        raise IdempotencyKeyReusedError
    return {name: task[name] for name in TaskRead.model_fields}


def _digest(data: TaskCreate) -> bytes:
    """Return a digest of the fields, which does not depend on the spelling of the JSON.

    It leaves defaults out, because a field that a later version adds must not change the digest.
    """
    return sha256(data.model_dump_json(exclude_defaults=True).encode()).digest()


async def list_tasks(
    database: Database, caller: Caller, query: TaskQuery, after: Position | None
) -> tuple[Sequence[Row], Position | None]:
    """Return a page, and the position of its last task if more follow; raises `RevokedTokenError`."""
    position = {"after_key": after.key, "after_id": after.id} if after else {}
    rows = await database.all(
        statements.LIST_TASKS[query.status, query.sort, query.order, after is not None],
        row_limit=query.limit + 1,
        **position,
        **caller.values,
    )
    if not rows:
        raise RevokedTokenError
    if rows[0]["id"] is None:
        return (), None
    if len(rows) <= query.limit:
        return rows, None
    last = rows[query.limit - 1]
    return rows[: query.limit], Position(SORT_KEYS[query.sort].of_row(last), last["id"])


async def read_task(database: Database, caller: Caller, contract: Contract, task_id: int) -> Row:
    """Return the task; raises `RevokedTokenError`, `TaskNotFoundError`, or one of `FOREIGN_TASK`."""
    return await _one(database, caller, contract, statements.READ_TASK, task_id)


async def update_task(
    database: Database, caller: Caller, contract: Contract, task: Expected, data: TaskUpdate
) -> Row:
    """Change the fields that `data` holds and no other.

    Returns and raises as `read_task` does, and raises `PreconditionFailedError`.
    """
    sent = {field: getattr(data, field) for field in data.model_fields_set}
    if "title" in sent:
        sent["title_key"] = sent["title"].casefold()
    values = statements.update_values(sent)
    values["expected"] = task.tags
    changed = await _one(database, caller, contract, statements.UPDATE_TASK, task.id, **values)
    events.record(Event.TASK_UPDATED, task_id=task.id, fields=sorted(data.model_fields_set))
    return changed


async def toggle_task(database: Database, caller: Caller, contract: Contract, task: Expected) -> Row:
    """Flip `completed` in one atomic statement; returns and raises as `update_task` does."""
    changed = await _one(database, caller, contract, statements.TOGGLE_TASK, task.id, expected=task.tags)
    events.record(Event.TASK_COMPLETED if changed["completed"] else Event.TASK_REOPENED, task_id=task.id)
    return changed


async def delete_task(database: Database, caller: Caller, contract: Contract, task: Expected) -> None:
    """Delete the task; raises as `update_task` does."""
    await _one(database, caller, contract, statements.DELETE_TASK, task.id, expected=task.tags)
    events.record(Event.TASK_DELETED, task_id=task.id)


async def _one(
    database: Database,
    caller: Caller,
    contract: Contract,
    statement: Statement,
    task_id: int,
    **values: Any,
) -> Row:
    row = own(await database.one(statement, task_id=task_id, **values, **caller.values))
    if row["id"] is not None:
        return row
    if values.get("expected") is not None:
        current = await database.one(statements.READ_TASK, task_id=task_id, **caller.values)
        if own(current)["id"] is not None:
            raise PreconditionFailedError
    raise await _missed(database, caller, contract, task_id)


async def _missed(database: Database, caller: Caller, contract: Contract, task_id: int) -> AppError:
    """Return the error for a task that the caller does not have; raises `RevokedTokenError`."""
    if contract.foreign_task is None:
        return TaskNotFoundError()
    values = {"task_id": task_id, **caller.values}
    try:
        row = await database.look(statements.ANYBODYS_TASK, seconds=LOOK_SECONDS, **values)
    except NodeAwayError:
        return TaskNotFoundError()
    if own(row)["user_id"] in {None, caller.user_id}:  # the caller created it between the two statements
        return TaskNotFoundError()
    return FOREIGN_TASK[contract.foreign_task](reason="foreign_task")
