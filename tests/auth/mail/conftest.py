"""One mail server and one service that sends through it, which most tests of mail share."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from backend.database.url import connect_arguments
from tests.auth.mail.smtp import Mailbox, smtp_server
from tests.conftest import Postgres
from tests.database.citus import ACTIVITY
from tests.service import JWT_SECRET, Account, Service, running

_numbers = count(1)


@dataclass
class Mailing:
    """A service that sends mail, its database, and its mailbox."""

    service: Service
    database: Postgres
    mailbox: Mailbox

    def register(self) -> Account:
        """Register a new account."""
        return self.service.register(email=new_email())

    def ask(self, path: str, email: str) -> httpx2.Response:
        """Ask for a mail."""
        return self.service.client().post(path, json={"email": email})

    def reset_token(self, email: str) -> str:
        """Request a reset, and return the token of its mail."""
        assert self.ask("/auth/password/forgot", email).status_code == 202
        return self.mailbox.wait(email, "Reset").token

    def verify_token(self, email: str) -> str:
        """Request a verification, and return the token of its mail."""
        assert self.ask("/auth/email/verification", email).status_code == 202
        return self.mailbox.wait(email, "Verify").token

    def send(self, path: str, **body: str) -> httpx2.Response:
        """Send JSON without an access token."""
        return self.service.client().post(path, json=body)

    def settled(self, kind: str, email: str) -> None:
        """Wait until the outbox has finished all mails of a kind to an address."""
        statement = "SELECT id FROM outbox WHERE kind = $1 AND email = $2 AND done_at IS NULL"
        self.mailbox.until(lambda: not self.database.sql(statement, kind, email))

    def forget_repetition(self) -> None:
        """Backdate the outbox by a minute, so that the next mail is no repeat."""
        self.database.sql("UPDATE outbox SET created_at = created_at - interval '61 seconds'")


def new_email() -> str:
    """Return a unique address."""
    return f"mail{next(_numbers)}@example.com"


@contextmanager
def held(database: Postgres, *statements: str) -> Iterator[None]:
    """Run statements in a transaction that is committed at the end of the block."""
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(asyncpg.connect(**connect_arguments(database.url)))
    try:
        for statement in ("BEGIN", *statements):
            loop.run_until_complete(connection.execute(statement))
        yield
        loop.run_until_complete(connection.execute("COMMIT"))
    finally:
        loop.run_until_complete(connection.close())
        loop.close()


def waiting(database: Postgres) -> int:
    """Return how many connections to this database wait for a lock."""
    waiting_now = "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return len(database.sql(f"SELECT pid FROM {ACTIVITY} {waiting_now}"))  # noqa: S608  # a name of ours


@contextmanager
def running_mailing(database: Postgres, directory: Path, program: Sequence[str] = ()) -> Iterator[Mailing]:
    """Run a service with a mail server of its own for the length of the block."""
    with smtp_server() as mailbox:
        settings = {"DATABASE_URL": database.url, "JWT_SECRET": JWT_SECRET, "MAIL_URL": mailbox.url}
        with running(directory / "log", program=program, **settings) as service:
            yield Mailing(service, database, mailbox)


@pytest.fixture(scope="session")
def mailing(
    new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mailing]:
    """A service that sends mail, EMAIL_VERIFICATION=optional."""
    with running_mailing(new_database(), tmp_path_factory.mktemp("mailing")) as mailing:
        yield mailing


@pytest.fixture
def new_mailing(
    new_database: Callable[[], Postgres], new_service: Callable[..., Service]
) -> Iterator[Callable[..., Mailing]]:
    """Run a service with settings of its own and a mail server of its own."""
    with smtp_server() as mailbox:

        def run(**settings: Any) -> Mailing:
            database = new_database()
            url = settings.pop("MAIL_URL", mailbox.url)
            service = new_service(DATABASE_URL=database.url, MAIL_URL=url, **settings)
            return Mailing(service, database, mailbox)

        yield run


@pytest.fixture
def carol(mailing: Mailing) -> Iterator[Account]:
    """An account at `mailing`."""
    account = mailing.register()
    yield account
    account.client.close()
