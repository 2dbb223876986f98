"""Imports users of another system, with their bcrypt hashes, from CSV or JSON Lines, in one transaction."""

import csv
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from backend.auth.accounts.service import add_user
from backend.auth.schemas import Email
from backend.database import Database
from backend.web.text import Line

COLUMNS = ("email", "name", "password_hash")

# A cost over 16 would keep a hash thread busy for seconds at every sign-in.
_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|1[0-6])\$[./A-Za-z0-9]{53}")
_OBJECT = TypeAdapter(dict[str, Any])

_Cells = dict[str, str] | csv.Error


class UserFileError(Exception):
    """The file cannot be imported, and nothing of it was; the message has a line for each problem."""


def _bcrypt(value: str) -> str:
    if not _BCRYPT.fullmatch(value):
        kind, message = "bcrypt", "is no bcrypt hash ($2a$, $2b$ or $2y$, cost 04 to 16, 60 characters)"
        raise PydanticCustomError(kind, message)
    return value


class ImportedUser(BaseModel):
    """One user of the file."""

    email: Email
    name: Line | None = None
    password_hash: Annotated[str, AfterValidator(_bcrypt)]


async def import_users(
    database: Database, file: Path, names: Mapping[str, str] | None = None
) -> tuple[int, list[int]]:
    """Import the users of `file` in one transaction, with a progress bar on standard error.

    Returns the number of new users, and the lines, from 1, of those whose email has an account already,
    which stays as it is. `names` maps names of `COLUMNS` to the file's own names for them. Raises
    `UserFileError`, `UnreachableError`.
    """
    users, skipped = _read_users(file, names or {}), list[int]()
    async with database.transaction() as transaction:
        with typer.progressbar(users, label="Importing", file=sys.stderr) as shown:
            for number, user in shown:
                if await add_user(transaction, user.email, user.name, user.password_hash) is None:
                    skipped.append(number)
    return len(users) - len(skipped), skipped


def _read_users(file: Path, names: Mapping[str, str]) -> list[tuple[int, ImportedUser]]:
    columns = {names.get(column, column).lower(): column for column in COLUMNS}
    text = _read(file)
    is_csv = file.suffix.lower() == ".csv"
    users: list[tuple[int, ImportedUser]] = []
    problems: list[str] = []
    for number, record in _rows(file, text, columns) if is_csv else _lines(text):
        if isinstance(record, csv.Error):
            problems.append(f"{file}, line {number}: {record}")
            continue
        try:
            fields = _fields(record, columns) if isinstance(record, str) else record
            users.append((number, ImportedUser.model_validate(fields)))
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            problems.append(": ".join([f"{file}, line {number}", *map(str, problem["loc"]), problem["msg"]]))
    if problems:
        hint = "" if is_csv else " (the name of a CSV file ends in .csv)"
        summary = f"nothing was imported: {len(problems):,} of the lines are wrong{hint}"
        raise UserFileError("\n".join([*problems, summary]))
    return users


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except OSError as error:
        raise UserFileError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise UserFileError(f"{file}, line {number}: is not UTF-8") from error


def _rows(file: Path, text: str, columns: Mapping[str, str]) -> Iterator[tuple[int, _Cells]]:
    """Yield the first line of each row that is not empty, and its cells, or what is wrong with them.

    The first row names the columns. Without --column it may be missing: then the first row has an email, and
    the columns are those of `COLUMNS`.
    """
    reader, number = csv.reader(StringIO(text, newline="\n"), strict=True), 1
    header: Sequence[str] = COLUMNS
    try:
        for index, row in enumerate(reader):
            if index == 0 and ("@" not in "".join(row) or set(columns) != set(COLUMNS)):
                header = _header(row, columns)
            elif cells := _cells(header, row):
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserFileError(f"{file}, line {number}: {error}") from error


def _header(row: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """Return our names of the columns, "" for the others; raises `csv.Error`.

    The column `name` may be missing, unless the file has another name for it.
    """
    header = [columns.get(cell.strip().lower(), "") for cell in row]
    for column in COLUMNS:
        is_optional = column == "name" and columns.get("name") == "name"
        if header.count(column) != 1 and (column in header or not is_optional):
            message = "the header must name {0} once, between commas; --column {0}=... takes another name"
            raise csv.Error(message.format(column))
    return header


def _cells(header: Sequence[str], row: Sequence[str]) -> _Cells:
    """Return the cells that are not empty, without blanks around them, or an error for too many."""
    cells = [cell.strip() for cell in row]
    if any(cells[len(header) :]):
        return csv.Error(f"has {len(cells)} columns instead of {len(header)}")
    return {name: cell for name, cell in zip(header, cells, strict=False) if cell}


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _fields(line: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a JSON object under our names; raises `ValidationError`."""
    fields = _OBJECT.validate_json(line).items()
    return {columns[name.lower()]: value for name, value in fields if name.lower() in columns}
