"""The task routes, once for each surface: the same handlers with another prefix and another `Contract`."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import Response

from backend.auth.dependencies import CallerDep
from backend.tasks import service
from backend.tasks.errors import TaskNotFoundError
from backend.tasks.paging import Cursors, next_link
from backend.tasks.schemas import TaskCreate, TaskQuery, TaskRead, TaskUpdate
from backend.web.answer import Answer
from backend.web.database import DatabaseDep
from backend.web.error_answers import raises
from backend.web.errors import Contract
from backend.web.routing import route_class

MAX_ID = 2**63 - 1


def _task_id(value: str) -> int:
    """Return a positive 64-bit integer in its only spelling; any other text names no task."""
    if len(value) <= len(str(MAX_ID)) and value.isascii() and value.isdigit() and value[0] != "0":
        task_id = int(value)
        if task_id <= MAX_ID:
            return task_id
    raise TaskNotFoundError


async def get_path(request: Request) -> bytes:
    """Return the path as it was sent, for links to answers beside this one."""
    return request.scope["raw_path"]  # type: ignore[no-any-return]  # ASGI's scope is untyped


async def get_cursors(request: Request) -> Cursors:
    """Return what signs cursors; one per process."""
    return request.app.state.cursors  # type: ignore[no-any-return]  # Starlette's state is untyped


PathDep = Annotated[bytes, Depends(get_path)]
CursorsDep = Annotated[Cursors, Depends(get_cursors)]
TaskId = Annotated[int, Path(ge=1, le=MAX_ID, examples=[1]), BeforeValidator(_task_id)]


def task_router(prefix: str, contract: Contract, **openapi: Any) -> APIRouter:
    """Return the task routes under `prefix`, with the statuses of `contract`."""
    router = APIRouter(prefix=prefix, tags=["tasks"], route_class=route_class(contract))
    misses = raises(TaskNotFoundError, service.FOREIGN_TASK[contract.foreign_task])

    @router.post("", status_code=201, response_model=TaskRead, summary="Create a task", **openapi)
    async def create_task(
        database: DatabaseDep, caller: CallerDep, path: PathDep, data: Annotated[TaskCreate, Body()]
    ) -> Answer:
        """Create a task of yours, which `Location` names.

        The title is trimmed; all other text is kept as it is sent.
        """
        task = await service.create_task(database, caller, data)
        return Answer(dict(task), 201, [(b"location", b"%s/%d" % (path, task["id"]))])

    @router.get("", response_model=list[TaskRead], summary="List your tasks", **openapi)
    async def list_tasks(
        database: DatabaseDep,
        caller: CallerDep,
        path: PathDep,
        cursors: CursorsDep,
        query: Annotated[TaskQuery, Query()],
    ) -> Answer:
        """List your tasks, a page at a time.

        Where more follow, the answer carries `Link: <…>; rel="next"` (RFC 8288), relative to this server.
        Following it to the end meets each task that stayed throughout once, while others come and go.
        """
        after = None if query.cursor is None else cursors.read(caller.user_id, query, query.cursor)
        rows, last = await service.list_tasks(database, caller, query, after)
        link = last and next_link(path, query, cursors.issue(caller.user_id, query, last))
        return Answer([dict(row) for row in rows], headers=[(b"link", link)] if link else ())

    @router.get("/{task_id}", response_model=TaskRead, summary="Read a task", **openapi)
    @misses
    async def read_task(database: DatabaseDep, caller: CallerDep, task_id: TaskId) -> Answer:
        """Return one task of yours."""
        return Answer(dict(await service.read_task(database, caller, contract, task_id)))

    @router.put("/{task_id}", response_model=TaskRead, summary="Change a task", **openapi)
    @misses
    async def put_task(
        database: DatabaseDep, caller: CallerDep, task_id: TaskId, data: Annotated[TaskUpdate, Body()]
    ) -> Answer:
        """Change a task as PATCH does: only what is sent changes, at least one field is."""
        return Answer(dict(await service.update_task(database, caller, contract, task_id, data)))

    @router.patch("/{task_id}", response_model=TaskRead, summary="Change a task", **openapi)
    @misses
    async def update_task(
        database: DatabaseDep, caller: CallerDep, task_id: TaskId, data: Annotated[TaskUpdate, Body()]
    ) -> Answer:
        """Change any of title, description and completed; `description: null` clears it."""
        return Answer(dict(await service.update_task(database, caller, contract, task_id, data)))

    @router.patch("/{task_id}/complete", response_model=TaskRead, summary="Toggle a task", **openapi)
    @misses
    async def toggle_task(database: DatabaseDep, caller: CallerDep, task_id: TaskId) -> Answer:
        """Flip `completed`, whatever it is when the statement runs."""
        return Answer(dict(await service.toggle_task(database, caller, contract, task_id)))

    @router.delete("/{task_id}", status_code=204, summary="Delete a task", **openapi)
    @misses
    async def delete_task(database: DatabaseDep, caller: CallerDep, task_id: TaskId) -> Response:
        """Delete one task of yours, for good."""
        await service.delete_task(database, caller, contract, task_id)
        return Response(status_code=204)

    return router
