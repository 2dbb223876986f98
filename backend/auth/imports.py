"""Users of another system, brought in with their bcrypt hashes: a file whole or not at all."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, Field, ValidationError
from uuid_utils import compat

from backend.auth.schemas import Email, email_key
from backend.auth.statements import IMPORT_USER
from backend.database import Database
from backend.text import Line

COLUMNS = ("email", "name", "password_hash")
MAX_PROBLEMS = 20
_BATCH = 1000

# A cost over 16 would keep a hash thread busy for seconds at every sign-in.
BcryptHash = Annotated[str, Field(pattern=r"^\$2[aby]\$(0[4-9]|1[0-6])\$[./A-Za-z0-9]{53}$")]


class UserFileError(Exception):
    """The file cannot be imported, and nothing of it was; a line for each problem, up to `MAX_PROBLEMS`."""


class ImportedUser(BaseModel):
    """One line of the file."""

    email: Email
    name: Line | None = None
    password_hash: BcryptHash


async def import_users(database: Database, file: Path, show: Callable[[int, int], None]) -> int:
    """Return how many users of `file` were new; `show` is told how many of how many are done.

    CSV (`email,name,password_hash`, with or without that first line) or JSON Lines. Who is here already, by
    their email, stays as they are. Raises `UserFileError`, `DatabaseUnavailableError`.
    """
    users = _read(file)
    done = created = 0
    async with database.transaction() as transaction:
        for start in range(0, len(users), _BATCH):
            for user in users[start : start + _BATCH]:
                created += await transaction.one(IMPORT_USER, **_values(user)) is not None
            done = min(start + _BATCH, len(users))
            show(done, len(users))
    return created


def _values(user: ImportedUser) -> dict[str, Any]:
    return {
        "user_id": str(compat.uuid7()),
        "email": user.email,
        "email_key": email_key(user.email),
        "name": user.name,
        "password_hash": user.password_hash,
    }


def _read(file: Path) -> list[ImportedUser]:
    users: list[ImportedUser] = []
    first_line: dict[str, int] = {}
    problems: list[str] = []
    for number, record in _records(file):
        try:
            user = ImportedUser.model_validate(record)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, problem["loc"])) or "line"
            problems.append(f"line {number}: {field}: {problem['msg']}")
            continue
        earlier = first_line.setdefault(email_key(user.email), number)
        if earlier != number:
            problems.append(f"line {number}: email: is the one of line {earlier} too")
        users.append(user)
    if problems:
        raise UserFileError("\n".join(f"{file}, {problem}" for problem in problems[:MAX_PROBLEMS]))
    return users


def _records(file: Path) -> Iterator[tuple[int, Any]]:
    read = _csv if file.suffix.lower() == ".csv" else _json_lines
    try:
        with file.open("rb") as content:
            yield from read(file, _text(file, content))
    except OSError as error:
        raise UserFileError(f"{file}: {error.strerror}") from error


def _text(file: Path, content: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(content, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserFileError(f"{file}, line {number}: is not UTF-8") from error


def _csv(file: Path, lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(lines, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserFileError(f"{file}, line {number}: {error}") from error
        if row is None:
            return
        if row and not (number == 1 and _is_header(row)):
            yield number, dict(zip(COLUMNS, (cell or None for cell in row), strict=False))


def _is_header(row: Sequence[str]) -> bool:
    return tuple(cell.strip().lower() for cell in row) == COLUMNS


def _json_lines(_: Path, lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError:
            yield number, line
