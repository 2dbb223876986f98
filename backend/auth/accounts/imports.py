"""Imports users with their bcrypt hashes from a file, in one transaction."""

from collections.abc import Callable, Mapping
from pathlib import Path

from backend.auth.accounts.service import add_user
from backend.auth.accounts.user_files import read_users
from backend.database import Database

_BATCH = 1000


async def import_users(
    database: Database, file: Path, show: Callable[[int, int], None], names: Mapping[str, str] | None = None
) -> tuple[int, list[int]]:
    """Import the users of `file` in one transaction; calls `show(done, total)` once per batch.

    Returns the number of new users, and the lines, from 1, of those whose email has an account already,
    which stays as it is. `names` is for `read_users`. Raises `UserFileError`, `UnreachableError`.
    """
    users, skipped = read_users(file, names or {}), list[int]()
    async with database.transaction() as transaction:
        for done, (number, user) in enumerate(users, 1):
            if await add_user(transaction, user.email, user.name, user.password_hash) is None:
                skipped.append(number)
            if done % _BATCH == 0 or done == len(users):
                show(done, len(users))
    return len(users) - len(skipped), skipped
