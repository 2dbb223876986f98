"""SQL expressions for timestamps that Citus accepts in statements that change a distributed table.

Citus refuses a function that is not immutable in CASE or COALESCE, or with a column as an argument. It does
not inspect subqueries. An addition in UTC is immutable, because it depends on no setting.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Interval, func, literal_column, select

_UTC = literal_column("interval '0'", Interval)
"""The offset of UTC. PostgreSQL would look the name up at each use."""


def moment_of(call: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """Return the timestamp of a call such as `now()`, for use in CASE and COALESCE."""
    return select(call).scalar_subquery()


def moment_after(moment: ColumnElement[datetime], period: ColumnElement[Any]) -> ColumnElement[datetime]:
    """Return the timestamp of a column plus `period`."""
    return func.timezone(_UTC, func.timezone(_UTC, moment) + period)
