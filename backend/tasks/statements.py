"""The statements on tasks, compiled once: each starts from `caller`, so that nobody reaches another's task.

A row means that the caller's session lives; its `id` is null where they have no such task.
"""

from itertools import combinations, product
from typing import Any, get_args

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Integer,
    Interval,
    Select,
    Text,
    Update,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)

from backend.auth.dependencies import caller
from backend.database import Statement
from backend.tasks.models import tasks
from backend.tasks.schemas import Order, Sort, Status, TaskUpdate

_columns = tuple(
    tasks.c[name]
    for name in ("id", "user_id", "title", "description", "completed", "created_at", "updated_at")
)
_caller_id = select(caller.c.id).scalar_subquery()
_is_callers = (tasks.c.id == bindparam("task_id", type_=BigInteger)) & (tasks.c.user_id == _caller_id)
_later = func.greatest(
    func.clock_timestamp(), tasks.c.updated_at + literal_column("interval '1 microsecond'", Interval)
)
"""Later than the last change, even when that one's clock was ahead or it held this one up."""


def _create() -> Statement:
    values = select(
        caller.c.id,
        bindparam("title", type_=Text),
        bindparam("title_key", type_=Text),
        bindparam("description", type_=Text),
        bindparam("completed", type_=Boolean),
    )
    names = ["user_id", "title", "title_key", "description", "completed"]
    return Statement(insert(tasks).from_select(names, values).returning(*_columns))


def _update(fields: tuple[str, ...]) -> Update:
    """Names only what is sent, so that no write of another field is undone."""
    new: dict[str, ColumnElement[Any]] = {
        field: bindparam(f"new_{field}", type_=tasks.c[field].type) for field in fields
    }
    changes = or_(*(tasks.c[field].is_distinct_from(value) for field, value in new.items()))
    if "title" in new:
        new["title_key"] = bindparam("new_title_key", type_=Text)
    updated_at = case((changes, _later), else_=tasks.c.updated_at)
    return update(tasks).where(_is_callers).values(**new, updated_at=updated_at)


def _changing(change: Any) -> Statement:
    changed = change.returning(*_columns).cte("changed")
    return Statement(select(changed).select_from(caller.outerjoin(changed, true())))


def _list(status: Status, sort: Sort, order: Order, *, goes_on: bool) -> Statement:
    key = {"created": tasks.c.created_at, "title": tasks.c.title_key}[sort]
    position = tuple_(key, tasks.c.id)
    # A subquery, so that PostgreSQL doesn't plan anew for each user: the plan that suits one suits all.
    user_id = select(bindparam("caller_id", type_=Text)).scalar_subquery()
    page: Select[Any] = select(*_columns).where(tasks.c.user_id == user_id)
    if status != "all":
        page = page.where(tasks.c.completed if status == "completed" else ~tasks.c.completed)
    if goes_on:
        last = tuple_(bindparam("after_key", type_=key.type), bindparam("after_id", type_=BigInteger))
        page = page.where(position > last if order == "asc" else position < last)
    directed = [column.asc() if order == "asc" else column.desc() for column in (key, tasks.c.id)]
    # Limited within, so that the index gives the first rows in order and nothing is sorted.
    # As a subquery, so that PostgreSQL does not know it: for a large page of few it would rather sort.
    limit = select(bindparam("row_limit", type_=Integer)).scalar_subquery()
    rows = page.order_by(*directed).limit(limit).subquery("page")
    return Statement(select(rows).select_from(caller.outerjoin(rows, true())))


CREATE_TASK = _create()

READ_TASK = Statement(
    select(*_columns).select_from(
        caller.outerjoin(
            tasks, (tasks.c.id == bindparam("task_id", type_=BigInteger)) & (tasks.c.user_id == caller.c.id)
        )
    )
)

UPDATE_TASK = {
    frozenset(fields): _changing(_update(fields))
    for count in range(1, len(TaskUpdate.model_fields) + 1)
    for fields in combinations(TaskUpdate.model_fields, count)
}
"""By the fields that are sent."""

TOGGLE_TASK = _changing(
    update(tasks).where(_is_callers).values(completed=~tasks.c.completed, updated_at=_later)
)

DELETE_TASK = _changing(delete(tasks).where(_is_callers))

ANYBODYS_TASK = Statement(
    select(tasks.c.id).select_from(
        caller.outerjoin(tasks, tasks.c.id == bindparam("task_id", type_=BigInteger))
    )
)
"""The one look at tasks that may be another's: it tells a foreign one from none, after a miss."""

LIST_TASKS = {
    (status, sort, order, goes_on): _list(status, sort, order, goes_on=goes_on)
    for status, sort, order, goes_on in product(
        get_args(Status), get_args(Sort), get_args(Order), (False, True)
    )
}
