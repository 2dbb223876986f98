"""Deletes expired sessions of users who do not return. A sign-in deletes those of its own user."""

import asyncio
from contextlib import suppress
from time import monotonic
from typing import Final

from backend.auth.sessions import statements
from backend.database import Database, DatabaseError

SWEEP_SECONDS: Final = 3600.0
"""The minimum interval between two sweeps of a process."""


class Sweep:
    """Starts a sweep after a sign-in, at most hourly. A service without sign-ins sends no query."""

    def __init__(self) -> None:
        self._due = monotonic() + SWEEP_SECONDS
        self._task: asyncio.Task[None] | None = None

    def after_sign_in(self, database: Database) -> None:
        """Start a sweep in a separate task if one is due."""
        if monotonic() >= self._due and (self._task is None or self._task.done()):
            self._due = monotonic() + SWEEP_SECONDS
            self._task = asyncio.create_task(_sweep(database))


async def _sweep(database: Database) -> None:
    with suppress(DatabaseError):  # the next sweep tries again
        while owners := {row["user_id"] for row in await database.all(statements.EXPIRED_OWNERS)}:
            swept = [await database.one(statements.SWEEP, user_id=owner) for owner in owners]
            if not any(row and row["count"] for row in swept):
                return  # other transactions have locked all of them
