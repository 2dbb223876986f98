"""Errors of the database, as its callers meet them; `web` turns them into answers."""


class DatabaseError(Exception):
    """The database did not do what was asked; nothing was written. `reason` is for the log."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnreachableError(DatabaseError):
    """PostgreSQL gave no answer in time, after retries."""


class PoolFullError(DatabaseError):
    """Too many requests wait for a connection."""


class NotUniqueError(Exception):
    """A transaction would have made two of what there may be one of; nothing was written."""
