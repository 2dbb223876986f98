"""The task routes: the same handlers under `/tasks` and `/api/{user_id}/tasks`, with different statuses."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import Response

from backend.auth.dependencies import CallerDep
from backend.database import Row
from backend.tasks import service
from backend.tasks.documentation import CHANGE, CREATE, DELETE, LIST, READ
from backend.tasks.errors import IdempotencyKeyReusedError, PreconditionFailedError, TaskNotFoundError
from backend.tasks.headers import allowed_tags, get_idempotency_key, is_known, tag_of, tag_of_page
from backend.tasks.paging import Cursors, next_link
from backend.tasks.schemas import TaskCreate, TaskQuery, TaskRead, TaskRow, TaskUpdate
from backend.tasks.service import Expected
from backend.web.database import DatabaseDep
from backend.web.error_documentation import raises
from backend.web.errors import Contract
from backend.web.json_response import Answer
from backend.web.routing import route_class

MAX_ID = 2**63 - 1


def _task_id(value: str) -> int:
    """Return a positive 64-bit integer without leading zeros; raises `TaskNotFoundError` for other text."""
    if len(value) <= len(str(MAX_ID)) and value.isascii() and value.isdigit() and value[0] != "0":
        task_id = int(value)
        if task_id <= MAX_ID:
            return task_id
    raise TaskNotFoundError


IdempotencyKeyDep = Annotated[str | None, Depends(get_idempotency_key)]
TaskId = Annotated[
    int,
    Path(ge=1, le=MAX_ID, json_schema_extra={"format": "int64"}, examples=[1]),
    BeforeValidator(_task_id),
]


def _answer(
    task: Row | dict[str, Any], status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()
) -> Answer:
    return Answer(TaskRow(*task.values()), status, [(b"etag", tag_of(task)), *headers])


def _unless_known(request: Request, answer: Answer, tag: bytes) -> Response:
    """Return the response with its tag, or 304 if the client has it (RFC 9110 section 15.4.5)."""
    if is_known(request, tag):
        return Response(status_code=304, headers={"ETag": tag.decode()})
    answer.raw_headers.append((b"etag", tag))
    return answer


def task_router(prefix: str, contract: Contract, of: str = "") -> APIRouter:
    """Return the task routes under `prefix`, with the statuses of `contract`.

    In the OpenAPI document their tag and summaries end with `of`.
    """
    router = APIRouter(prefix=prefix, tags=[f"tasks{of}"], route_class=route_class(contract))
    foreign = service.FOREIGN_TASK[contract.foreign_task]
    misses = raises(TaskNotFoundError, foreign)
    changes = raises(TaskNotFoundError, foreign, PreconditionFailedError)

    @router.post("", status_code=201, response_model=TaskRead, summary=f"Create a task{of}", **CREATE)
    @raises(IdempotencyKeyReusedError)
    async def create_task(
        database: DatabaseDep,
        caller: CallerDep,
        request: Request,
        key: IdempotencyKeyDep,
        data: Annotated[TaskCreate, Body()],
    ) -> Answer:
        """Create a task of yours; `Location` has its address.

        The title is trimmed; all other text is kept as it is sent. A client may repeat a request with an
        `Idempotency-Key`. While the task exists, a repeated request returns it and creates nothing.
        """
        task, is_new = await service.create_task(database, caller, data, key)
        location = b"%s/%d" % (request.scope["raw_path"], task["id"])
        return _answer(task, 201 if is_new else 200, [(b"location", location)])

    @router.get("", response_model=list[TaskRead], summary=f"List tasks{of}", **LIST)
    async def list_tasks(
        database: DatabaseDep, caller: CallerDep, request: Request, query: Annotated[TaskQuery, Query()]
    ) -> Response:
        """List your tasks, a page at a time.

        If more follow, the answer has `Link: <…>; rel="next"` (RFC 8288), relative to this server.
        A client that follows the links to the end gets each task that stays throughout once, even if others
        come and go.

        A client that polls may send the page's `ETag` back in `If-None-Match`. While nothing on the page has
        changed, the answer is 304 without a body. It saves the transfer; the database reads the page anyway.
        """
        cursors: Cursors = request.app.state.cursors
        path, asked = request.scope["raw_path"], request.scope["query_string"]
        after = cursors.read(caller.user_id, query, query.cursor) if query.cursor else None
        rows, last = await service.list_tasks(database, caller, query, after)
        link = last and next_link(path, query, cursors.issue(caller.user_id, query, last))
        answer = Answer([TaskRow(*row) for row in rows], headers=[(b"link", link)] if link else ())
        return _unless_known(request, answer, tag_of_page(bytes(answer.body), asked, link))

    @router.get("/{task_id}", response_model=TaskRead, summary=f"Read a task{of}", **READ)
    @misses
    async def read_task(
        database: DatabaseDep, caller: CallerDep, request: Request, task_id: TaskId
    ) -> Response:
        """Return one task of yours, or 304 if `If-None-Match` names its `ETag`."""
        task = await service.read_task(database, caller, contract, task_id)
        return _unless_known(request, Answer(TaskRow(*task)), tag_of(task))

    @router.patch("/{task_id}", response_model=TaskRead, summary=f"Change a task{of}", **CHANGE)
    @router.put(
        "/{task_id}",
        name="put_task",
        response_model=TaskRead,
        summary=f"Put a task{of}",
        description="Change a task as PATCH does: only the sent fields change, and at least one is required.",
        **CHANGE,
    )
    @changes
    async def update_task(
        database: DatabaseDep,
        caller: CallerDep,
        request: Request,
        task_id: TaskId,
        data: Annotated[TaskUpdate, Body()],
    ) -> Answer:
        """Change any of title, description and completed; `description: null` clears it."""
        task = Expected(task_id, allowed_tags(request))
        return _answer(await service.update_task(database, caller, contract, task, data))

    @router.patch("/{task_id}/complete", response_model=TaskRead, summary=f"Toggle a task{of}", **CHANGE)
    @changes
    async def toggle_task(
        database: DatabaseDep, caller: CallerDep, request: Request, task_id: TaskId
    ) -> Answer:
        """Flip the value of `completed` that the task has when the statement runs."""
        task = Expected(task_id, allowed_tags(request))
        return _answer(await service.toggle_task(database, caller, contract, task))

    @router.delete("/{task_id}", status_code=204, summary=f"Delete a task{of}", **DELETE)
    @changes
    async def delete_task(
        database: DatabaseDep, caller: CallerDep, request: Request, task_id: TaskId
    ) -> Response:
        """Delete one task of yours, for good."""
        await service.delete_task(database, caller, contract, Expected(task_id, allowed_tags(request)))
        return Response(status_code=204)

    return router
