"""SQL statements on tasks, compiled once.

Each includes `caller`, and all but `ANYBODYS_TASK` reach the caller's tasks alone. A returned row means that
the caller's session is live. Its `id` is null when the caller has no such task.
"""

import operator
from collections.abc import Mapping
from itertools import product
from typing import Any, get_args

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Integer,
    Interval,
    Select,
    Text,
    Update,
    any_,
    asc,
    bindparam,
    case,
    delete,
    desc,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import Insert, insert

from backend.auth.dependencies import CALLER_ID, IS_LET_IN, caller
from backend.database import Statement, WideStatement
from backend.database.expressions import moment_after, moment_of
from backend.tasks.models import tasks
from backend.tasks.paging import SORT_KEYS
from backend.tasks.schemas import Order, Sort, Status, TaskCreate, TaskRead, TaskUpdate

_columns = tuple(tasks.c[name] for name in TaskRead.model_fields)
_is_theirs = tasks.c.user_id == CALLER_ID
_is_this = (tasks.c.id == bindparam("task_id", type_=BigInteger)) & _is_theirs
_is_callers = _is_this & IS_LET_IN
_tag = literal_column(
    "'\"' || tasks.id::text || '-' || "
    "to_hex((extract(epoch FROM tasks.updated_at - timestamptz 'epoch') * 1000000)::bigint) || '\"'",
    Text,
)
"""The same as `headers.tag_of`, from functions that Citus accepts because they are immutable."""
_expected = bindparam("expected", type_=ARRAY(Text))
_is_as_expected = or_(_expected.is_(None), _tag == any_(_expected))
"""The condition that the task has one of the entity tags that the client allows. Null allows any.

It is part of the changing statement, because it must hold for the row version that is changed.
"""
_key = tasks.c.idempotency_key
_CHANGEABLE = (*TaskUpdate.model_fields, "title_key")
_NOTHING_SENT: dict[str, Any] = {f"{kind}_{name}": None for name in _CHANGEABLE for kind in ("new", "sends")}
_STATUSES: dict[Status, tuple[ColumnElement[bool], ...]] = {
    "all": (),
    "pending": (~tasks.c.completed,),
    "completed": (tasks.c.completed,),
}
_ORDERS: dict[Order, tuple[Any, Any]] = {"asc": (asc, operator.gt), "desc": (desc, operator.lt)}
_later = func.greatest(
    moment_of(func.clock_timestamp()),
    moment_after(tasks.c.updated_at, literal_column("interval '1 microsecond'", Interval)),
)
"""A time after the last change, even if that change's clock was ahead or its lock delayed this statement."""


def _create(*more: str) -> Insert:
    names = (*TaskCreate.model_fields, "title_key", *more)
    values = select(caller.c.id, *(bindparam(name, type_=tasks.c[name].type) for name in names))
    return insert(tasks).from_select(["user_id", *names], values)


def _update() -> Update:
    """Return an update that leaves unsent fields as the row's newest version has them.

    It therefore undoes no concurrent write. One statement serves every set of fields, because one for each
    set would double the number of statements with each field.
    """
    new: dict[str, ColumnElement[Any]] = {}
    for name in _CHANGEABLE:
        column = tasks.c[name]
        is_sent = bindparam(f"sends_{name}", type_=Boolean)
        new[name] = case((is_sent, bindparam(f"new_{name}", type_=column.type)), else_=column)
    changes = or_(*(tasks.c[name].is_distinct_from(value) for name, value in new.items()))
    updated_at = case((changes, _later), else_=tasks.c.updated_at)
    return update(tasks).where(_is_callers, _is_as_expected).values(**new, updated_at=updated_at)


def update_values(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `UPDATE_TASK` that change the columns in `sent` and no other."""
    values = _NOTHING_SENT.copy()
    for name, value in sent.items():
        values[f"sends_{name}"], values[f"new_{name}"] = True, value
    return values


def _changing(change: Any) -> Statement:
    changed = change.returning(*_columns).cte("changed")
    return Statement(select(changed).select_from(caller.outerjoin(changed, true())))


def _list(status: Status, sort: Sort, order: Order, *, goes_on: bool) -> Statement:
    key = tasks.c[SORT_KEYS[sort].column]
    direction, is_after = _ORDERS[order]
    position = tuple_(key, tasks.c.id)
    page: Select[Any] = select(*_columns).where(_is_theirs, *_STATUSES[status])
    if goes_on:
        last = tuple_(bindparam("after_key", type_=key.type), bindparam("after_id", type_=BigInteger))
        page = page.where(is_after(position, last))
    directed = [direction(column) for column in (key, tasks.c.id)]
    # The limit is inside the subquery, because an index then returns the first rows in order without a sort.
    # The limit's value is a subquery too, because PostgreSQL would prefer a sort for a known large limit.
    limit = select(bindparam("row_limit", type_=Integer)).scalar_subquery()
    rows = page.order_by(*directed).limit(limit).subquery("page")
    return Statement(select(rows).select_from(caller.outerjoin(rows, true())))


CREATE_TASK = Statement(_create().returning(*_columns))

CREATE_TASK_ONCE = _changing(
    _create(_key.name, "idempotency_digest").on_conflict_do_nothing(
        index_elements=[tasks.c.user_id, _key], index_where=_key.is_not(None)
    )
)
"""Creates a task with a key; its `id` is null when a task of the caller has the key already.

The statement is separate, because a request without a key must not pay for it. It waits for a concurrent
creation with the same key.
"""

FIND_BY_KEY = Statement(
    select(*_columns, tasks.c.idempotency_digest).select_from(
        caller.outerjoin(tasks, _is_theirs & (_key == bindparam("idempotency_key", type_=Text)))
    )
)

READ_TASK = Statement(select(*_columns).select_from(caller.outerjoin(tasks, _is_this)))

UPDATE_TASK = _changing(_update())
"""`update_values` returns its parameters."""

TOGGLE_TASK = _changing(
    update(tasks).where(_is_callers, _is_as_expected).values(completed=~tasks.c.completed, updated_at=_later)
)

DELETE_TASK = _changing(delete(tasks).where(_is_callers, _is_as_expected))

ANYBODYS_TASK = WideStatement(
    select(tasks.c.id, tasks.c.user_id).select_from(
        caller.outerjoin(tasks, tasks.c.id == bindparam("task_id", type_=BigInteger))
    )
)
"""The only statement that reads other users' tasks. It reads all shards."""

LIST_TASKS = {
    (status, sort, order, goes_on): _list(status, sort, order, goes_on=goes_on)
    for status, sort, order, goes_on in product(
        get_args(Status), get_args(Sort), get_args(Order), (False, True)
    )
}
