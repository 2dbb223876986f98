"""Creating, reading, changing and deleting one's own tasks: the work behind the routes of both surfaces."""

from collections.abc import Sequence
from typing import Any

from backend.auth.dependencies import Caller, RevokedTokenError
from backend.database import Database, Row, Statement
from backend.tasks import statements
from backend.tasks.errors import ConcealedTaskError, TaskForbiddenError, TaskNotFoundError
from backend.tasks.paging import SORT_KEYS, Position
from backend.tasks.schemas import TaskCreate, TaskQuery, TaskUpdate
from backend.telemetry import events
from backend.telemetry.events import Event
from backend.web.errors import AppError, Contract

FOREIGN_TASK: dict[int, type[AppError]] = {403: TaskForbiddenError, 404: ConcealedTaskError}
"""The error for a task that is another user's, by the status that its surface has for it."""


async def create_task(database: Database, caller: Caller, data: TaskCreate) -> Row:
    """Return the new task; raises `RevokedTokenError`."""
    task = await database.one(
        statements.CREATE_TASK, **vars(data), title_key=data.title.casefold(), **caller.values
    )
    if task is None:
        raise RevokedTokenError
    events.record(Event.TASK_CREATED, task_id=task["id"])
    return task


async def list_tasks(
    database: Database, caller: Caller, query: TaskQuery, after: Position | None
) -> tuple[Sequence[Row], Position | None]:
    """Return a page, and where the next one starts after, if one follows; raises `RevokedTokenError`."""
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
    database: Database, caller: Caller, contract: Contract, task_id: int, data: TaskUpdate
) -> Row:
    """Change what `data` sends and nothing else; returns and raises as `read_task` does."""
    sent = {field: getattr(data, field) for field in data.model_fields_set}
    if "title" in sent:
        sent["title_key"] = sent["title"].casefold()
    values = statements.update_values(sent)
    task = await _one(database, caller, contract, statements.UPDATE_TASK, task_id, **values)
    events.record(Event.TASK_UPDATED, task_id=task_id, fields=sorted(data.model_fields_set))
    return task


async def toggle_task(database: Database, caller: Caller, contract: Contract, task_id: int) -> Row:
    """Flip `completed` in one atomic statement; returns and raises as `read_task` does."""
    task = await _one(database, caller, contract, statements.TOGGLE_TASK, task_id)
    events.record(Event.TASK_COMPLETED if task["completed"] else Event.TASK_REOPENED, task_id=task_id)
    return task


async def delete_task(database: Database, caller: Caller, contract: Contract, task_id: int) -> None:
    """Delete the task; raises as `read_task` does."""
    await _one(database, caller, contract, statements.DELETE_TASK, task_id)
    events.record(Event.TASK_DELETED, task_id=task_id)


async def _one(
    database: Database,
    caller: Caller,
    contract: Contract,
    statement: Statement,
    task_id: int,
    **values: Any,
) -> Row:
    row = await database.one(statement, task_id=task_id, **values, **caller.values)
    if row is None:
        raise RevokedTokenError
    if row["id"] is not None:
        return row
    anybodys = await database.one(statements.ANYBODYS_TASK, task_id=task_id, **caller.values)
    if anybodys is None:  # deleted meanwhile, with all that was theirs
        raise RevokedTokenError
    if anybodys["id"] is None:
        raise TaskNotFoundError
    raise FOREIGN_TASK[contract.foreign_task](reason="foreign_task")
