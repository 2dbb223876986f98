"""Imports users with their bcrypt hashes from a file, in one transaction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backend.auth.accounts.service import add_user
from backend.auth.accounts.user_files import read_users
from backend.database import Database

_BATCH = 1000


@dataclass
class Imported:
    """The outcome of an import."""

    new: int = 0
    skipped: list[int] = field(default_factory=list)
    """The lines, from 1, of users whose email has an account already."""


async def import_users(
    database: Database, file: Path, show: Callable[[int, int], None], names: Mapping[str, str] | None = None
) -> Imported:
    """Import the users of `file` in one transaction; calls `show(done, total)` once per batch.

    An existing account stays as it is. `names` is for `read_users`. Raises `UserFileError`,
    `UnreachableError`.
    """
    users = read_users(file, names or {})
    imported = Imported()
    async with database.transaction() as transaction:
        for done, (number, user) in enumerate(users, 1):
            if await add_user(transaction, user.email, user.name, user.password_hash) is None:
                imported.skipped.append(number)
            else:
                imported.new += 1
            if done % _BATCH == 0 or done == len(users):
                show(done, len(users))
    return imported
