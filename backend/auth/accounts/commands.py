"""The commands of `python -m backend users`, by which an operator lists and changes accounts.

No command takes a password as an argument, because `ps` shows arguments to every user.
"""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from backend.auth.accounts import operator
from backend.auth.accounts.output import print_json, print_user, print_users
from backend.auth.schemas import Email
from backend.web.text import Line, UnicodeText

users = typer.Typer(help="List and change accounts.", rich_markup_mode=None, no_args_is_help=True)
"""The commands. Their `context.obj` runs work with a database and the settings, and returns its result."""


def _parser(kind: Any) -> Callable[[str], str]:
    """Return a function that validates an argument as a `kind`; exits with code 2 if it is none."""

    def parse(value: str) -> str:
        try:
            return str(TypeAdapter(kind).validate_python(value))
        except ValidationError as error:
            raise typer.BadParameter(error.errors()[0]["msg"]) from None

    return parse


_text = _parser(UnicodeText)
Who = Annotated[
    str, typer.Argument(metavar="EMAIL_OR_ID", parser=_text, help="an email, or else an id; id:ID is an id")
]
AsJSON = Annotated[bool, typer.Option("--json", help="print JSON")]


@users.command("list")
def list_(  # noqa: PLR0913  # Typer passes each by its name
    context: typer.Context,
    *,
    unverified: Annotated[bool, typer.Option("--unverified", help="only unverified users")] = False,
    disabled: Annotated[bool, typer.Option("--disabled", help="only disabled users")] = False,
    email: Annotated[
        str, typer.Option(metavar="PART", parser=_text, help="only users whose email contains PART")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, metavar="N", help="at most N users")] = 50,
    as_json: AsJSON = False,
) -> None:
    """List users, the newest first."""
    filters = {"unverified": unverified, "disabled": disabled, "limit": limit}
    found = context.obj(lambda database, _: operator.list_users(database, part=email, **filters))
    (print_json if as_json else print_users)(found)


@users.command()
def show(context: typer.Context, who: Who, *, as_json: AsJSON = False) -> None:
    """Show a user."""
    found = context.obj(lambda database, _: operator.find_user(database, who))
    (print_json if as_json else print_user)(found)


@users.command("reset-link")
def reset_link(context: typer.Context, who: Who, *, as_json: AsJSON = False) -> None:
    """Print a link that sets a new password."""
    link = context.obj(lambda database, settings: operator.reset_link(database, settings, who))
    if as_json:
        print_json({"reset_link": link})
    else:
        typer.echo(link)


@users.command()
def create(  # noqa: PLR0913  # Typer passes each by its name
    context: typer.Context,
    email: Annotated[str, typer.Argument(metavar="EMAIL", parser=_parser(Email))],
    *,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", parser=_parser(Line), help="the user's name"),
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="read the password from standard input, one line")
    ] = False,
    invited: Annotated[
        bool, typer.Option("--invite", help="mail a link to choose a password, or print it")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Create an account; asks for the password twice."""
    if invited and password_stdin:
        raise typer.BadParameter("--invite and --password-stdin exclude each other")
    password = None if invited else _read_password(from_stdin=password_stdin)
    created = context.obj(
        lambda database, settings: operator.create_user(database, settings, email, name, password)
    )
    (print_json if as_json else print_user)(created)


def _add_change(name: str, meaning: str) -> None:
    @users.command(name, help=meaning)
    def command(context: typer.Context, who: Who, *, as_json: AsJSON = False) -> None:
        changed = context.obj(lambda database, _: operator.change_user(database, who, name))
        (print_json if as_json else print_user)(changed)


_add_change("disable", "Refuse a user everywhere, at once.")
_add_change("enable", "Let a user in again.")
_add_change("sign-out", "End all sessions of a user.")


@users.command()
def delete(
    context: typer.Context,
    who: Who,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    as_json: AsJSON = False,
) -> None:
    """Delete a user, their sessions and their tasks."""
    found = context.obj(lambda database, _: operator.find_user(database, who))
    if not yes:
        with redirect_stdout(sys.stderr):  # because standard output is for the result alone
            question = f"Delete {found['email'] or ''} ({found['id']}) with all sessions and tasks?"
            typer.confirm(question, abort=True)
    # By the id, because the email may have moved to another user by now.
    deleted = context.obj(lambda database, _: operator.delete_user(database, f"id:{found['id']}"))
    (print_json if as_json else print_user)(deleted)


def _read_password(*, from_stdin: bool) -> str:
    if from_stdin:
        # Bytes that are not UTF-8 become surrogates, which are no Unicode text.
        return _text(sys.stdin.buffer.readline().decode(errors="surrogateescape").rstrip("\r\n"))
    if not sys.stdin.isatty():
        raise typer.BadParameter("without a terminal, give --password-stdin or --invite")
    return _text(typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
