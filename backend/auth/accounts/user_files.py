"""Reads and validates the file of an import: users of another system, in CSV or JSON Lines."""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ValidationError

from backend.auth.schemas import Email, email_key
from backend.web.text import Line

COLUMNS = ("email", "name", "password_hash")

# A cost over 16 would keep a hash thread busy for seconds at every sign-in.
_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|1[0-6])\$[./A-Za-z0-9]{53}")

_Record = tuple[int, object]
"""The number of a line, from 1, and its value, or a ValueError that says what is wrong with it."""


class UserFileError(Exception):
    """The file cannot be imported, and nothing of it was; the message has a line for each problem."""


def _bcrypt(value: str) -> str:
    if not _BCRYPT.fullmatch(value):
        raise ValueError("is no bcrypt hash ($2a$, $2b$ or $2y$, cost 04 to 16, 60 characters)")
    return value


class ImportedUser(BaseModel):
    """One user of the file, under the columns' own names."""

    email: Email
    name: Line | None = None
    password_hash: Annotated[str, AfterValidator(_bcrypt)]


def read_users(file: Path, names: Mapping[str, str]) -> list[tuple[int, ImportedUser]]:
    """Return the users of `file` with the numbers of their lines, from 1; raises `UserFileError`.

    `names` maps names of `COLUMNS` to the file's own names for them.
    """
    names = {column: names.get(column, column) for column in COLUMNS}
    users: list[tuple[int, ImportedUser]] = []
    first_line: dict[str, int] = {}
    problems: list[str] = []
    for number, record in _records(file, names):
        try:
            user = ImportedUser.model_validate(_renamed(record, names))
        except ValueError as error:
            problems.append(f"{file}, line {number}: {_problem(error, names)}")
            continue
        earlier = first_line.setdefault(email_key(user.email), number)
        if earlier != number:
            problems.append(f"{file}, line {number}: {names['email']}: is the one of line {earlier} too")
        users.append((number, user))
    if problems:
        summary = f"nothing was imported: {len(problems):,} of the lines are wrong"
        raise UserFileError("\n".join([*problems, summary]))
    return users


def _renamed(record: object, names: Mapping[str, str]) -> dict[str, Any]:
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004  # bad lines are errors of value
    return {column: record[name] for column, name in names.items() if name in record}


def _problem(error: ValueError, names: Mapping[str, str]) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_url=False, include_input=False)[0]
    column = names[str(problem["loc"][0])]
    return f"{column}: {problem['msg'].removeprefix('Value error, ')}"


def _records(file: Path, names: Mapping[str, str]) -> Iterator[_Record]:
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise UserFileError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise UserFileError(f"{file}, line {number}: is not UTF-8") from error
    return _csv(file, text, names) if file.suffix.lower() == ".csv" else _json_lines(text)


def _csv(file: Path, text: str, names: Mapping[str, str]) -> Iterator[_Record]:
    header = list(COLUMNS)
    for index, (number, row) in enumerate(_rows(file, text)):
        if index == 0 and _is_header(row):
            header = _columns(f"{file}, line {number}", row, names)
        elif index == 0 and list(names.values()) != header:
            raise UserFileError(f"{file}, line {number}: is no header, which names of columns need")
        elif len(row) > len(header):
            yield number, ValueError(f"has {len(row)} columns instead of {len(header)}")
        else:
            yield number, {name: cell for name, cell in zip(header, row, strict=False) if cell}


def _rows(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, without blanks around cells and empty cells at the end."""
    reader, number = csv.reader(StringIO(text, newline="\n"), strict=True), 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            while cells and not cells[-1]:
                cells.pop()
            if cells:
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserFileError(f"{file}, line {number}: {error}") from error


def _is_header(row: Sequence[str]) -> bool:
    return not any("@" in cell or cell.startswith("$") for cell in row)


def _columns(place: str, row: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Return the names in the header, in the letter case of `names`; raises `UserFileError`."""
    own = {name.lower(): name for name in names.values()}
    header = [own.get(cell.lower(), cell) for cell in row]
    for column, name in names.items():
        if header.count(name) > 1:
            raise UserFileError(f"{place}: {name}: is there twice")
        # The column `name` may be missing, unless the operator named it.
        if name not in header and (column != "name" or name != column):
            raise UserFileError(
                f"{place}: {name}: is no column of this file; --column {column}=... names another, "
                "and commas separate them"
            )
    return header


def _json_lines(text: str) -> Iterator[_Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            yield number, ValueError("is no JSON (the name of a CSV file ends in .csv)")
