"""Compiles a SQLAlchemy Core statement for asyncpg once, when its module is imported."""

from typing import Any

from sqlalchemy import SelectBase
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.sql.expression import ClauseElement
from sqlalchemy.sql.visitors import iterate

_DIALECT = PGDialect_asyncpg()  # type: ignore[no-untyped-call]  # SQLAlchemy's dialects are untyped


class Statement:
    """SQL text with numbered parameters, and the name of the value for each parameter.

    `only_reads` tells whether the statement may be sent again after its connection died. It is False for SQL
    as text, unless `text(…).columns(…)` says that it is a query.
    """

    __slots__ = ("_constants", "_names", "only_reads", "sql")

    def __init__(self, query: ClauseElement) -> None:
        compiled: Any = query.compile(dialect=_DIALECT)
        self.sql = str(compiled)
        self._names: tuple[str, ...] = tuple(compiled.positiontup or ())
        self._constants: dict[str, Any] = {
            name: value for name, value in compiled.params.items() if value is not None
        }
        writes = any(getattr(element, "is_dml", False) for element in iterate(query))
        self.only_reads = isinstance(query, SelectBase) and not writes

    def arguments(self, values: dict[str, Any]) -> list[Any]:
        """Return `values` in the order of the parameters; raises KeyError for a missing one."""
        given = self._constants | values if self._constants else values
        return [given[name] for name in self._names]


class WideStatement(Statement):
    """A statement that looks at rows of all users, so that it asks every node of a spread database."""

    __slots__ = ()
