"""Moments in SQL, as Citus takes them in statements that change a spread table.

Citus refuses a call that depends on more than its arguments within CASE or COALESCE, and with a column as
an argument. A subquery is not looked into, and in UTC an addition depends on no setting.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Text, func, literal, select

_UTC = literal("UTC", Text)


def moment_of(call: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """Return the moment of a call such as `now()`, for CASE and COALESCE."""
    return select(call).scalar_subquery()


def moment_after(moment: ColumnElement[datetime], period: ColumnElement[Any]) -> ColumnElement[datetime]:
    """Return a column's moment and a period more."""
    return func.timezone(_UTC, func.timezone(_UTC, moment) + period)
