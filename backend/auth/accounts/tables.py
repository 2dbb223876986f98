"""Users on standard output: a table for people, plain lines for a pipe, JSON for programs."""

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import typer

from backend.auth.accounts.operator_statements import FIELDS

_LISTED = tuple(name for name in FIELDS if name not in {"issuer", "pending_email"})


def print_json(value: Any) -> None:
    """Print one JSON value."""
    typer.echo(json.dumps(value, indent=2, default=_as_text))


def print_users(users: Iterable[Mapping[str, Any]]) -> None:
    """Print a row for each user."""
    _print_rows([_LISTED, *([_as_text(user[name]) for name in _LISTED] for user in users)])


def print_user(user: Mapping[str, Any]) -> None:
    """Print a line for each field."""
    for name, value in user.items():
        typer.echo(f"{name + ':':<16}{_as_text(value)}".rstrip())


def _print_rows(rows: Iterable[Iterable[str]]) -> None:
    header, *others = rows
    if not sys.stdout.isatty():
        for row in (header, *others):
            typer.echo("\t".join(row))
        return
    from rich.console import Console  # noqa: PLC0415  # takes a tenth of a second, and people alone see it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table()
    for name in header:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in others:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _as_text(value: object) -> str:
    """Return the value without characters that would drive a terminal or break a line."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.isoformat(timespec="seconds")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))
