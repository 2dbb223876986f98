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
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

from loguru import logger

from backend.auth.accounts.user_files import COLUMNS, UserFileError
from backend.auth.tokens.kept_secret import kept_secret
from backend.database import Database, DatabaseError, revision
from backend.database.embedded import EmbeddedServerError, lasting_server
from backend.database.url import DatabaseURLError
from backend.settings import Settings, SettingsError, load_settings
from backend.telemetry import logs
from backend.web.errors import AppError

if TYPE_CHECKING:
    from typer import Typer

Result = TypeVar("Result")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; whatever keeps it from running is one line on standard error and exit code 1."""
    signal.signal(signal.SIGTERM, _stop)
    _check_streams()
    try:
        with _whole_output():
            _commands()(args=arguments, prog_name="python -m backend")
    except DatabaseURLError as error:
        sys.exit(f"tasks-api: DATABASE_URL: {error}")
    except (SettingsError, EmbeddedServerError, revision.SchemaError, UserFileError) as error:
        sys.exit(f"tasks-api: {error}")
    except DatabaseError as error:
        sys.exit(f"tasks-api: DATABASE_URL: the database cannot be reached ({error.reason})")
    except AppError as error:
        sys.exit(f"tasks-api: {error.detail}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _check_streams() -> None:
    """Fail in one line where the caller has closed standard output; Python has None in its place."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # for the life of the process
    if sys.stdout is None:
        sys.exit("tasks-api: standard output: is closed")


@contextmanager
def _whole_output() -> Iterator[None]:
    """Fail in one line where standard output takes no more; a reader that has left (`head`) is no error."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (OSError, SystemExit) as end:
        error = (
            end.__context__ if isinstance(end, SystemExit) else end
        )  # Typer makes an exit of a closed pipe
        if not isinstance(error, BrokenPipeError if end is not error else OSError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python tries again at its end, and complains
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        sys.exit(f"tasks-api: {error.filename or 'standard output'}: {error.strerror}")


def _stop(*_: object) -> NoReturn:
    """Leave in an orderly way, the embedded server stopped; Uvicorn has finished its requests by then."""
    sys.exit(0)


def _commands() -> "Typer":
    """Return the commands; a worker imports this module too, and needs none of them."""
    import typer  # noqa: PLC0415

    from backend.auth.accounts.commands import users_commands  # noqa: PLC0415

    commands = typer.Typer(
        help="Sign in and keep tasks.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    commands.callback()(lambda: None)
    _add_services(commands)
    _add_import(commands)
    commands.command("openapi", help="Print the OpenAPI document.")(_openapi)
    commands.command("secret", help="Print a new secret.")(_secret)
    commands.add_typer(users_commands(_with_database), name="users")
    return commands


def _add_services(commands: "Typer") -> None:
    from typer import Argument, Option  # noqa: PLC0415

    @commands.command(help="Migrate the database and serve.")
    def serve(
        *, reload: Annotated[bool, Option("--reload", help="restart when the code changes")] = False
    ) -> None:
        _serve(reload=reload)

    @commands.command(help="Make or upgrade the schema.")
    def migrate(
        *,
        revision: Annotated[str, Argument(help="an Alembic revision; `base` takes all back")] = "head",
        check: Annotated[
            bool, Option("--check", help="tell whether the models need a new migration")
        ] = False,
        new: Annotated[
            str, Option(metavar="WORDS", help="write a migration for what the models have changed")
        ] = "",
    ) -> None:
        _migrate(revision, check=check, new=new)

    @commands.command(help="Spread the tables over the nodes of a Citus cluster.")
    def distribute(*, yes: Annotated[bool, Option("--yes", help="do not ask first")] = False) -> None:
        _distribute(asks=not yes)


def _add_import(commands: "Typer") -> None:
    from typer import Argument, BadParameter, Option  # noqa: PLC0415

    def renamed_column(text: str) -> tuple[str, str]:
        column, _, name = text.partition("=")
        if column not in COLUMNS or not name.strip():
            message = f"must be like password_hash=encrypted_password, for one of {', '.join(COLUMNS)}"
            raise BadParameter(message)
        return column, name.strip()

    @commands.command("import-users", help="Bring in users with their bcrypt hashes, all or none.")
    def import_users(
        file: Annotated[Path, Argument(help="CSV (*.csv) or JSON Lines of email, name and password_hash")],
        column: Annotated[
            list[str] | None,
            Option(
                metavar="COLUMN=NAME",
                help="what the file calls a column, such as password_hash=encrypted_password; "
                "may be repeated",
            ),
        ] = None,
    ) -> None:
        _import_users(file, dict(map(renamed_column, column or ())))


def _serve(*, reload: bool) -> None:
    from backend.web import server  # noqa: PLC0415  # a third of a second, which other commands need not wait

    server.check_address(load_settings())
    with _database() as (settings, url):
        logs.configure(settings.log_format)
        _upgrade(url, wait_seconds=settings.database_start_timeout_seconds)
        server.run(settings, reload=reload)


def _upgrade(url: str, *, wait_seconds: float = 0) -> None:
    """Bring the schema up to date, in a process that takes Alembic with it when it ends."""
    if not asyncio.run(revision.is_current(url, wait_seconds=wait_seconds)):
        done = subprocess.run([sys.executable, "-m", "backend", "migrate"], stdout=sys.stdout, check=False)
        if done.returncode:
            sys.exit(done.returncode)


def _migrate(target: str, *, check: bool, new: str) -> None:
    with _database() as (settings, url):
        from backend.database import schema  # noqa: PLC0415  # its Alembic takes ten megabytes

        logs.configure(settings.log_format)
        if new:
            asyncio.run(schema.write_migration(url, new))
        else:
            asyncio.run(schema.check(url) if check else schema.migrate(url, target))


def _distribute(*, asks: bool) -> None:
    from typer import confirm, echo  # noqa: PLC0415

    from backend.database.distribute import distribute  # noqa: PLC0415

    def tell(plan: str) -> None:
        echo(plan)
        if asks:
            confirm("Go on?", abort=True)

    with _database() as (_, url):
        asyncio.run(distribute(url, tell, echo))


def _with_database(work: Callable[[Database, Settings], Coroutine[Any, Any, Result]]) -> Result:
    """Return what `work` returns; the log goes to standard error, and standard output stays clean."""

    async def run(settings: Settings) -> Result:
        async with Database(settings) as database:
            return await work(database, settings)

    with redirect_stdout(sys.stderr), _database() as (settings, url):
        logs.configure(settings.log_format)
        _upgrade(url)
        return asyncio.run(run(settings))


def _import_users(file: Path, names: dict[str, str]) -> None:
    with _database() as (settings, url):
        logs.configure(settings.log_format)
        _upgrade(url)
        asyncio.run(_import(settings, file, names))


async def _import(settings: Settings, file: Path, names: dict[str, str]) -> None:
    from backend.auth.accounts.imports import import_users  # noqa: PLC0415  # as above

    def show(done: int, of: int) -> None:
        print(f"\r{done:,} of {of:,} users", end="", file=sys.stderr, flush=True)

    async with Database(settings) as database:
        imported = await import_users(database, file, show, names)
    skipped = [f"{file}, line {number}: skipped: the email has an account" for number in imported.skipped]
    summary = f"{imported.new:,} new, {len(skipped):,} skipped, whose accounts stay as they are"
    print("", *skipped, summary, sep="\n", file=sys.stderr)


def _openapi() -> None:
    from backend.app import create_app  # noqa: PLC0415  # half a second, as above

    settings = load_settings(database_url="postgresql://localhost", jwt_secret=secrets.token_urlsafe())
    print(json.dumps(create_app(settings).openapi(), indent=2))


def _secret() -> None:
    print(secrets.token_urlsafe(48))


@contextmanager
def _database() -> Iterator[tuple[Settings, str]]:
    """Yield the settings and the URL of the database: theirs, or the embedded one's under `DATA_DIR`."""
    settings = load_settings()
    if settings.database_url is not None:
        yield settings, settings.database_url.get_secret_value()
        return
    with lasting_server(settings.data_dir) as postgres:
        logs.configure(settings.log_format)
        logger.info("the embedded PostgreSQL runs under {}", settings.data_dir)
        # In the environment, for the worker processes.
        os.environ["DATABASE_URL"] = postgres.url
        if settings.mail_url is None:
            os.environ["MAIL_URL"] = (settings.data_dir.resolve() / "mail").as_uri()
        if settings.jwt_secret is None:
            os.environ["JWT_SECRET"] = kept_secret(settings.data_dir)
        yield load_settings(), postgres.url


if __name__ == "__main__":
    main()
