"""The statements on tasks, compiled once: each has `caller` in it and reaches that user's tasks alone.

A row means that the caller's session lives; its `id` is null where they have no such task.
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
    DateTime,
    Integer,
    Interval,
    Select,
    Text,
    Update,
    any_,
    asc,
    bindparam,
    case,
    cast,
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
from backend.database import Statement
from backend.database.expressions import moment_after, moment_of
from backend.tasks.models import tasks
from backend.tasks.paging import SORT_KEYS
from backend.tasks.schemas import Order, Sort, Status, TaskCreate, TaskRead, TaskUpdate

_columns = tuple(tasks.c[name] for name in TaskRead.model_fields)
_is_theirs = tasks.c.user_id == CALLER_ID
_is_this = (tasks.c.id == bindparam("task_id", type_=BigInteger)) & _is_theirs
_is_callers = _is_this & IS_LET_IN
_expected = bindparam("expected", type_=ARRAY(Text))
# Sent as texts: before an array of moments asyncpg asks for its type, 0.6 s for each connection to Citus.
_moments = cast(_expected, ARRAY(DateTime(timezone=True)))
_is_as_expected = or_(_expected.is_(None), tasks.c.updated_at == any_(_moments))
"""Whether `updated_at` is one of the moments that the client allows; null allows any.

As part of the statement that changes, it holds for the very version of the row that is changed.
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
"""Later than the last change, even when that one's clock was ahead or it held this one up."""


def _create(*more: str) -> Insert:
    names = (*TaskCreate.model_fields, "title_key", *more)
    values = select(caller.c.id, *(bindparam(name, type_=tasks.c[name].type) for name in names))
    return insert(tasks).from_select(["user_id", *names], values)


def _create_once() -> Statement:
    create = _create(_key.name, "idempotency_digest")
    return _changing(
        create.on_conflict_do_nothing(index_elements=[tasks.c.user_id, _key], index_where=_key.is_not(None))
    )


def _update() -> Update:
    """Keep what is not sent as it is in the row's newest version, so that no write of another is undone.

    One statement for every set of fields: with one for each set their number would double with each field.
    """
    new = {name: case((_sent(name), _new(name)), else_=tasks.c[name]) for name in _CHANGEABLE}
    changes = or_(*(tasks.c[name].is_distinct_from(value) for name, value in new.items()))
    updated_at = case((changes, _later), else_=tasks.c.updated_at)
    return update(tasks).where(_is_callers, _is_as_expected).values(**new, updated_at=updated_at)


def _sent(name: str) -> ColumnElement[bool]:
    return bindparam(f"sends_{name}", type_=Boolean)


def _new(name: str) -> ColumnElement[Any]:
    return bindparam(f"new_{name}", type_=tasks.c[name].type)


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
    # Limited within, so that the index gives the first rows in order and nothing is sorted.
    # As a subquery, so that PostgreSQL does not know it: for a large page of few it would rather sort.
    limit = select(bindparam("row_limit", type_=Integer)).scalar_subquery()
    rows = page.order_by(*directed).limit(limit).subquery("page")
    return Statement(select(rows).select_from(caller.outerjoin(rows, true())))


CREATE_TASK = Statement(_create().returning(*_columns))

CREATE_TASK_ONCE = _create_once()
"""Its `id` is null where a task of the caller's has the key already.

A statement of its own, so that a request without a key pays nothing. It waits for another that is about to
create a task with the key.
"""

FIND_BY_KEY = Statement(
    select(*_columns, tasks.c.idempotency_digest).select_from(
        caller.outerjoin(tasks, _is_theirs & (_key == bindparam("idempotency_key", type_=Text)))
    )
)

READ_TASK = Statement(select(*_columns).select_from(caller.outerjoin(tasks, _is_this)))

UPDATE_TASK = _changing(_update())
"""Its values come from `update_values`."""

TOGGLE_TASK = _changing(
    update(tasks).where(_is_callers, _is_as_expected).values(completed=~tasks.c.completed, updated_at=_later)
)

DELETE_TASK = _changing(delete(tasks).where(_is_callers, _is_as_expected))

ANYBODYS_TASK = Statement(
    select(tasks.c.id, tasks.c.user_id).select_from(
        caller.outerjoin(tasks, tasks.c.id == bindparam("task_id", type_=BigInteger))
    )
)
"""The one look at tasks that may be another's; it asks all parts of the table."""

LIST_TASKS = {
    (status, sort, order, goes_on): _list(status, sort, order, goes_on=goes_on)
    for status, sort, order, goes_on in product(
        get_args(Status), get_args(Sort), get_args(Order), (False, True)
    )
}
