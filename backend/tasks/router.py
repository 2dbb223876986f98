"""The task routes: the same handlers under `/tasks` and `/api/{user_id}/tasks`, with different statuses."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query
from pydantic import BeforeValidator
from starlette.requests import Request
from starlette.responses import Response

from backend.auth.dependencies import CallerDep
from backend.database import Row
from backend.tasks import service
from backend.tasks.conditions import allowed, is_known, tag_of, tag_of_page
from backend.tasks.documentation import CHANGE, CREATE, DELETE, LIST, READ, document
from backend.tasks.errors import IdempotencyKeyReusedError, PreconditionFailedError, TaskNotFoundError
from backend.tasks.headers import get_idempotency_key, get_if_match, get_if_none_match
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


async def get_path(request: Request) -> bytes:
    """Return the path as the client sent it, for `Location` and `Link`."""
    return request.scope["raw_path"]  # type: ignore[no-any-return]  # ASGI's scope is untyped


async def get_cursors(request: Request) -> Cursors:
    """Return the `Cursors` of the process."""
    return request.app.state.cursors  # type: ignore[no-any-return]  # Starlette's state is untyped


PathDep = Annotated[bytes, Depends(get_path)]
CursorsDep = Annotated[Cursors, Depends(get_cursors)]
IfMatchDep = Annotated[bytes | None, Depends(get_if_match)]
IfNoneMatchDep = Annotated[bytes | None, Depends(get_if_none_match)]
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


def _unless_known(answer: Answer, tag: bytes, if_none_match: bytes | None) -> Response:
    """Return the response with its tag, or 304 if the client has it (RFC 9110 section 15.4.5)."""
    if is_known(if_none_match, tag):
        return Response(status_code=304, headers={"ETag": tag.decode()})
    answer.raw_headers.append((b"etag", tag))
    return answer


def task_router(
    prefix: str, contract: Contract, of: str = "", parameters: Sequence[dict[str, Any]] = ()
) -> APIRouter:
    """Return the task routes under `prefix`, with the statuses of `contract`.

    In the OpenAPI document their tag and summaries end with `of`, and each has these `parameters` too.
    """
    router = APIRouter(prefix=prefix, tags=[f"tasks{of}"], route_class=route_class(contract))
    foreign = service.FOREIGN_TASK[contract.foreign_task]
    misses = raises(TaskNotFoundError, foreign)
    changes = raises(TaskNotFoundError, foreign, PreconditionFailedError)
    documented = partial(document, parameters)

    @router.post(
        "", status_code=201, response_model=TaskRead, summary=f"Create a task{of}", **documented(CREATE)
    )
    @raises(IdempotencyKeyReusedError)
    async def create_task(
        database: DatabaseDep,
        caller: CallerDep,
        path: PathDep,
        key: IdempotencyKeyDep,
        data: Annotated[TaskCreate, Body()],
    ) -> Answer:
        """Create a task of yours; `Location` has its address.

        The title is trimmed; all other text is kept as it is sent. A client may repeat a request with an
        `Idempotency-Key`. While the task exists, a repeated request returns it and creates nothing.
        """
        task, is_new = await service.create_task(database, caller, data, key)
        return _answer(task, 201 if is_new else 200, [(b"location", b"%s/%d" % (path, task["id"]))])

    @router.get("", response_model=list[TaskRead], summary=f"List tasks{of}", **documented(LIST))
    async def list_tasks(  # noqa: PLR0913, PLR0917  # FastAPI passes each by name
        database: DatabaseDep,
        caller: CallerDep,
        request: Request,
        path: PathDep,
        cursors: CursorsDep,
        if_none_match: IfNoneMatchDep,
        query: Annotated[TaskQuery, Query()],
    ) -> Response:
        """List your tasks, a page at a time.

        If more follow, the answer has `Link: <…>; rel="next"` (RFC 8288), relative to this server.
        A client that follows the links to the end gets each task that stays throughout once, even if others
        come and go.

        A client that polls may send the page's `ETag` back in `If-None-Match`. While nothing on the page has
        changed, the answer is 304 without a body. It saves the transfer; the database reads the page anyway.
        """
        after = cursors.read(caller.user_id, query, query.cursor) if query.cursor else None
        rows, last = await service.list_tasks(database, caller, query, after)
        link = last and next_link(path, query, cursors.issue(caller.user_id, query, last))
        answer = Answer([TaskRow(*row) for row in rows], headers=[(b"link", link)] if link else ())
        tag = tag_of_page(bytes(answer.body), request.scope["query_string"], link)
        return _unless_known(answer, tag, if_none_match)

    @router.get("/{task_id}", response_model=TaskRead, summary=f"Read a task{of}", **documented(READ))
    @misses
    async def read_task(
        database: DatabaseDep, caller: CallerDep, if_none_match: IfNoneMatchDep, task_id: TaskId
    ) -> Response:
        """Return one task of yours, or 304 if `If-None-Match` names its `ETag`."""
        task = await service.read_task(database, caller, contract, task_id)
        return _unless_known(Answer(TaskRow(*task)), tag_of(task), if_none_match)

    @router.put("/{task_id}", response_model=TaskRead, summary=f"Put a task{of}", **documented(CHANGE))
    @changes
    async def put_task(
        database: DatabaseDep,
        caller: CallerDep,
        if_match: IfMatchDep,
        task_id: TaskId,
        data: Annotated[TaskUpdate, Body()],
    ) -> Answer:
        """Change a task as PATCH does: only the sent fields change, and at least one is required."""
        task = Expected(task_id, allowed(if_match, task_id))
        return _answer(await service.update_task(database, caller, contract, task, data))

    @router.patch("/{task_id}", response_model=TaskRead, summary=f"Change a task{of}", **documented(CHANGE))
    @changes
    async def update_task(
        database: DatabaseDep,
        caller: CallerDep,
        if_match: IfMatchDep,
        task_id: TaskId,
        data: Annotated[TaskUpdate, Body()],
    ) -> Answer:
        """Change any of title, description and completed; `description: null` clears it."""
        task = Expected(task_id, allowed(if_match, task_id))
        return _answer(await service.update_task(database, caller, contract, task, data))

    @router.patch(
        "/{task_id}/complete", response_model=TaskRead, summary=f"Toggle a task{of}", **documented(CHANGE)
    )
    @changes
    async def toggle_task(
        database: DatabaseDep, caller: CallerDep, if_match: IfMatchDep, task_id: TaskId
    ) -> Answer:
        """Flip the value of `completed` that the task has when the statement runs."""
        task = Expected(task_id, allowed(if_match, task_id))
        return _answer(await service.toggle_task(database, caller, contract, task))

    @router.delete("/{task_id}", status_code=204, summary=f"Delete a task{of}", **documented(DELETE))
    @changes
    async def delete_task(
        database: DatabaseDep, caller: CallerDep, if_match: IfMatchDep, task_id: TaskId
    ) -> Response:
        """Delete one task of yours, for good."""
        await service.delete_task(database, caller, contract, Expected(task_id, allowed(if_match, task_id)))
        return Response(status_code=204)

    return router
