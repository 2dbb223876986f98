"""Errors that callers of the database see. `backend.web` turns them into HTTP responses."""


class DatabaseError(Exception):
    """The database did not run the request and wrote nothing. `reason` is for the log."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnreachableError(DatabaseError):
    """PostgreSQL did not answer in time, after retries."""


class NodeAwayError(UnreachableError):
    """The node of a Citus cluster that has the rows did not answer, when it was last checked."""


class PoolFullError(DatabaseError):
    """Too many requests wait for a connection already."""


class NotUniqueError(Exception):
    """A transaction violated a unique constraint and wrote nothing."""
