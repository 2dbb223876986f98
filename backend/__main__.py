"""`python -m backend serve | migrate | openapi | secret`: a thin command line."""

import argparse
import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from loguru import logger

from backend.app import create_app
from backend.auth.accounts.imports import import_users
from backend.auth.accounts.user_files import COLUMNS, UserFileError
from backend.auth.tokens.kept_secret import kept_secret
from backend.database import Database, DatabaseError, revision
from backend.database.embedded import EmbeddedServerError, lasting_server
from backend.database.url import DatabaseURLError
from backend.settings import Settings, SettingsError, load_settings
from backend.telemetry import logs
from backend.web import server
from backend.web.errors import AppError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; whatever keeps it from running is one line on standard error and exit code 1."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    try:
        options.run(options)
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


def _stop(*_: object) -> NoReturn:
    """Leave in an orderly way, the embedded server stopped; Uvicorn has finished its requests by then."""
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backend", description="Sign in and keep tasks.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="migrate the database and serve")
    serve.add_argument("--reload", action="store_true", help="restart when the code changes (development)")
    serve.set_defaults(run=_serve)
    migrate = commands.add_parser("migrate", help="make or upgrade the schema")
    migrate.add_argument(
        "revision", nargs="?", default="head", help="an Alembic revision; `base` takes all back"
    )
    migrate.add_argument("--check", action="store_true", help="tell whether the models need a new migration")
    migrate.add_argument("--new", metavar="WORDS", help="write a migration for what the models have changed")
    migrate.set_defaults(run=_migrate)
    users = commands.add_parser("import-users", help="bring in users with their bcrypt hashes, all or none")
    users.add_argument("file", type=Path, help="CSV (*.csv) or JSON Lines of email, name and password_hash")
    users.add_argument(
        "--column",
        action="append",
        default=[],
        type=_renamed_column,
        metavar="COLUMN=NAME",
        help="what the file calls a column, such as password_hash=encrypted_password; may be repeated",
    )
    users.set_defaults(run=_import_users)
    commands.add_parser("openapi", help="print the OpenAPI document").set_defaults(run=_openapi)
    commands.add_parser("secret", help="print a new secret").set_defaults(run=_secret)
    return parser


def _renamed_column(text: str) -> tuple[str, str]:
    column, _, name = text.partition("=")
    if column not in COLUMNS or not name.strip():
        message = f"must be like password_hash=encrypted_password, for one of {', '.join(COLUMNS)}"
        raise argparse.ArgumentTypeError(message)
    return column, name.strip()


def _serve(options: argparse.Namespace) -> None:
    server.check_address(load_settings())
    with _database() as (settings, url):
        logs.configure(settings.log_format)
        _upgrade(url, wait_seconds=settings.database_start_timeout_seconds)
        server.run(settings, reload=options.reload)


def _upgrade(url: str, *, wait_seconds: float = 0) -> None:
    """Bring the schema up to date, in a process that takes Alembic with it when it ends."""
    if not asyncio.run(revision.is_current(url, wait_seconds=wait_seconds)):
        done = subprocess.run([sys.executable, "-m", "backend", "migrate"], check=False)
        if done.returncode:
            sys.exit(done.returncode)


def _migrate(options: argparse.Namespace) -> None:
    with _database() as (settings, url):
        from backend.database import schema  # noqa: PLC0415  # its Alembic takes ten megabytes

        logs.configure(settings.log_format)
        if options.new:
            asyncio.run(schema.write_migration(url, options.new))
        else:
            asyncio.run(schema.check(url) if options.check else schema.migrate(url, options.revision))


def _import_users(options: argparse.Namespace) -> None:
    with _database() as (settings, url):
        logs.configure(settings.log_format)
        _upgrade(url)
        asyncio.run(_import(settings, options.file, dict(options.column)))


async def _import(settings: Settings, file: Path, names: dict[str, str]) -> None:
    def show(done: int, of: int) -> None:
        print(f"\r{done:,} of {of:,} users", end="", file=sys.stderr, flush=True)

    async with Database(settings) as database:
        imported = await import_users(database, file, show, names)
    skipped = [f"{file}, line {number}: skipped: the email has an account" for number in imported.skipped]
    summary = f"{imported.new:,} new, {len(skipped):,} skipped, whose accounts stay as they are"
    print("", *skipped, summary, sep="\n", file=sys.stderr)


def _openapi(_: argparse.Namespace) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # into `head`, say
    settings = load_settings(database_url="postgresql://localhost", jwt_secret=secrets.token_urlsafe())
    print(json.dumps(create_app(settings).openapi(), indent=2))


def _secret(_: argparse.Namespace) -> None:
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
