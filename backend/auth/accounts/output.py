"""Prints users for the `users` commands: as a table on a terminal, as tab-separated lines, or as JSON."""

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import typer

_LISTED = ("id", "email", "email_verified", "name", "created_at", "disabled_at", "sessions")
_COLUMNS = ("email", "email_verified", "name", "sessions", "created_at", "disabled_at", "id")
"""The order of a table, where `created_at` and `disabled_at` are dates in UTC."""


def print_json(value: Any) -> None:
    """Print one JSON value."""
    typer.echo(json.dumps(value, indent=2, default=_as_text))


def print_users(users: Iterable[Mapping[str, Any]]) -> None:
    """Print a row for each user: in a table on a terminal, with tabs in between otherwise."""
    if sys.stdout.isatty():
        _print_table([_as_text(_short(user[name])) for name in _COLUMNS] for user in users)
        return
    for row in (_LISTED, *([_as_text(user[name]) for name in _LISTED] for user in users)):
        typer.echo("\t".join(row))


def print_user(user: Mapping[str, Any]) -> None:
    """Print a line for each field."""
    for name, value in user.items():
        typer.echo(f"{name + ':':<16}{_as_text(value)}".rstrip())


def _print_table(rows: Iterable[Iterable[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415  # takes 0.1 s, for a terminal alone
    from rich.table import Column, Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    headings = (name.removeprefix("email_").removesuffix("_at") for name in _COLUMNS)
    table = Table(*(Column(heading, overflow="fold") for heading in headings))
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def _short(value: object) -> object:
    """Return the date of a timestamp, because a terminal is narrow; `show` prints the time too."""
    return value.date() if isinstance(value, datetime) else value


def _as_text(value: object) -> str:
    """Return the value as text; control characters are escaped, because a terminal would obey them."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.isoformat(timespec="seconds")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))
