"""The command line, `python -m backend`: serve, migrate, distribute, import-users, users, openapi, secret."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, TypeVar

from loguru import logger
from typer import Argument, BadParameter, Option, Typer, confirm, echo

from backend.auth.accounts import imports
from backend.auth.accounts.commands import users
from backend.auth.tokens.kept_secret import kept_secret
from backend.database import Database, DatabaseError, InsufficientPrivilegeError, revision
from backend.database.embedded import EmbeddedServerError, lasting_server
from backend.database.url import DatabaseURLError
from backend.settings import Settings, SettingsError, load_settings
from backend.telemetry import logs
from backend.web.errors import AppError

Result = TypeVar("Result")

commands = Typer(
    help="Sign in and keep tasks.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
commands.add_typer(users, name="users")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an expected failure is one line on standard error and exit code 1."""
    # `sys.exit` stops the embedded server too; Uvicorn has finished its requests by then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _check_streams()
    try:
        with _whole_output():
            commands(args=arguments, prog_name="python -m backend", obj=_with_database)
    except (DatabaseURLError, InsufficientPrivilegeError) as error:
        sys.exit(f"tasks-api: DATABASE_URL: {error}")
    except (SettingsError, EmbeddedServerError, revision.SchemaError, imports.UserFileError) as error:
        sys.exit(f"tasks-api: {error}")
    except DatabaseError as error:  # pragma: no cover  # untraced, as in `_upgrade`
        sys.exit(f"tasks-api: DATABASE_URL: the database cannot be reached ({error.reason})")
    except AppError as error:
        sys.exit(f"tasks-api: {error.errors[0]['message'] if error.errors else error.detail}")
    except KeyboardInterrupt:  # pragma: no cover  # untraced, as in `_upgrade`
        sys.exit(128 + signal.SIGINT)


def _check_streams() -> None:
    """Exit with one line if standard output is closed; Python then has None in its place."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # for the life of the process
    if sys.stdout is None:
        sys.exit("tasks-api: standard output: is closed")


@contextmanager
def _whole_output() -> Iterator[None]:
    """Exit with one line if standard output cannot be written; a closed pipe (`head`) is no error."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (OSError, SystemExit) as end:
        error = end.__context__ if isinstance(end, SystemExit) else end  # Typer exits for a closed pipe
        if not isinstance(error, OSError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # because Python flushes it again at exit
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        sys.exit(f"tasks-api: {error.filename or 'standard output'}: {error.strerror}")


@commands.command()
def serve(
    *, reload: Annotated[bool, Option("--reload", help="restart when the code changes")] = False
) -> None:
    """Migrate the database and serve."""
    from backend.web import server  # noqa: PLC0415  # takes 0.3 s, only for this command

    server.check_address(load_settings())
    with _database() as (settings, url):
        _upgrade(url, wait_seconds=settings.database_start_timeout_seconds)
        server.run(settings, reload=reload)


@commands.command()
def migrate(
    *,
    revision: Annotated[str, Argument(help="an Alembic revision; `base` undoes all")] = "head",
    check: Annotated[bool, Option("--check", help="tell whether the models need a new migration")] = False,
    new: Annotated[str, Option(metavar="WORDS", help="write a migration for changes of the models")] = "",
) -> None:
    """Make or upgrade the schema."""
    with _database() as (_, url):
        from backend.database import schema  # noqa: PLC0415  # Alembic takes ten megabytes

        if new:
            asyncio.run(schema.write_migration(url, new))
        else:
            asyncio.run(schema.check(url) if check else schema.migrate(url, revision))


@commands.command()
def distribute(*, yes: Annotated[bool, Option("--yes", help="do not ask first")] = False) -> None:
    """Spread the tables over the nodes of a Citus cluster."""
    from backend.database.distribute import distribute as spread  # noqa: PLC0415  # only for this command

    def tell(plan: str) -> None:
        echo(plan)
        if not yes:
            confirm("Go on?", abort=True)

    with _database() as (_, url):
        asyncio.run(spread(url, tell, echo))


def _renamed_column(text: str) -> tuple[str, str]:
    column, _, name = text.partition("=")
    if column not in imports.COLUMNS or not name.strip():
        message = f"must be like password_hash=encrypted_password, for one of {', '.join(imports.COLUMNS)}"
        raise BadParameter(message)
    return column, name.strip()


@commands.command()
def import_users(
    file: Annotated[Path, Argument(help="CSV (*.csv) or JSON Lines of email, name and password_hash")],
    column: Annotated[
        list[str] | None,
        Option(
            metavar="COLUMN=NAME",
            help="what the file calls a column, such as password_hash=encrypted_password; may be repeated",
        ),
    ] = None,
) -> None:
    """Import users with their bcrypt hashes, all or none."""
    names = dict(map(_renamed_column, column or ()))
    new, lines = _with_database(lambda database, _: imports.import_users(database, file, names))
    skipped = [f"{file}, line {number}: skipped: the email has an account" for number in lines]
    summary = f"{new:,} new, {len(skipped):,} skipped, whose accounts stay as they are"
    print(*skipped, summary, sep="\n", file=sys.stderr)


@commands.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    from backend.app import create_app  # noqa: PLC0415  # takes 0.5 s, only for this command

    settings = load_settings(database_url="postgresql://localhost", jwt_secret=secrets.token_urlsafe())
    print(json.dumps(create_app(settings).openapi(), indent=2))


@commands.command()
def secret() -> None:
    """Print a new secret."""
    print(secrets.token_urlsafe(48))


def _with_database(work: Callable[[Database, Settings], Coroutine[Any, Any, Result]]) -> Result:
    """Return the result of `work`. The log goes to standard error, the result to standard output."""

    async def run(settings: Settings) -> Result:
        async with Database(settings) as database:
            return await work(database, settings)

    with redirect_stdout(sys.stderr), _database() as (settings, url):
        _upgrade(url)
        return asyncio.run(run(settings))


def _upgrade(url: str, *, wait_seconds: float = 0) -> None:
    """Upgrade the schema in a process of its own, because Alembic would keep ten megabytes of this one."""
    is_current = asyncio.run(revision.is_current(url, wait_seconds=wait_seconds))
    if not is_current:  # pragma: no cover  # Python 3.11 traces no caller after an error in a coroutine
        done = subprocess.run([sys.executable, "-m", "backend", "migrate"], stdout=sys.stdout, check=False)
        if done.returncode:
            sys.exit(done.returncode)


@contextmanager
def _database() -> Iterator[tuple[Settings, str]]:
    """Yield the settings and the database's URL: the configured one, or the embedded one's under `DATA_DIR`.

    The log goes to `sys.stdout` as it is at the call.
    """
    settings = load_settings()
    logs.configure(settings.log_format)
    if settings.database_url is not None:
        yield settings, settings.database_url.get_secret_value()
        return
    with lasting_server(settings.data_dir) as postgres:
        logger.info("the embedded PostgreSQL runs under {}", settings.data_dir)
        made = {"DATABASE_URL": postgres.url}
        if settings.mail_url is None:
            made["MAIL_URL"] = (settings.data_dir.resolve() / "mail").as_uri()
        if settings.jwt_secret is None:
            made["JWT_SECRET"] = kept_secret(settings.data_dir)
        os.environ |= made  # for the worker processes
        yield load_settings(), postgres.url
        for name in made:  # because the next call starts the server again
            del os.environ[name]


if __name__ == "__main__":
    main()
