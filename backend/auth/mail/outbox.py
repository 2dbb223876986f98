"""Sends the mails of the outbox table; several processes may do so at once.

A process reads the table at its start, for mails that another process left when it died. Later it waits
for a request of its own or for the next retry. An idle service therefore sends no query.
"""

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

from loguru import logger

from backend.auth.accounts.statements import FIND_EMAIL
from backend.auth.mail import outbox_statements as statements
from backend.auth.mail.errors import MailUnavailableError
from backend.auth.mail.sender import Sender, sender_for
from backend.auth.mail.statements import ENQUEUE, Kind
from backend.auth.schemas import email_key
from backend.auth.tokens import opaque
from backend.database import Database, DatabaseError, Row, Transaction
from backend.settings import Settings
from backend.telemetry.events import Event, write

PAUSES_SECONDS: Final = (5, 30, 120, 600)
"""Pauses between the attempts to send a mail, which fails after one attempt more than there are pauses."""
DATABASE_PAUSE_SECONDS: Final = 5.0


PAGES: Final = {Kind.RESET: "/reset-password", Kind.VERIFY: "/verify-email", Kind.CHANGE: "/confirm-email"}
"""The page of APP_URL that the link of a mail leads to."""


class _Ready(NamedTuple):
    """A mail to send; `email` is the account's own spelling of the address."""

    user_id: str | None
    email: str
    link: str | None = None


class Outbox:
    """Sends mails in one process. Without MAIL_URL it sends none, and `check_available` raises."""

    def __init__(self, settings: Settings) -> None:
        self._sender: Sender | None = sender_for(settings)
        self._app_url = settings.pages_url
        self._woken = asyncio.Event()

    async def put(
        self,
        database: Database | Transaction,
        kind: Kind,
        email: str,
        user_id: str | None = None,
        session_id: UUID | None = None,
    ) -> None:
        """Write a mail to the outbox, where the service sends any; `wake` has it sent after the commit."""
        if self._sender is not None:
            mail = {"kind": kind.value, "email": email, "email_key": email_key(email)}
            await database.one(ENQUEUE, user_id=user_id, session_id=session_id, **mail)

    async def notify(self, transaction: Transaction, kind: Kind, user: Row) -> None:
        """Write a notice to the outbox, to the email that `user` has."""
        await self.put(transaction, kind, user["email"], user["id"])

    def check_available(self) -> None:
        """Raise `MailUnavailableError` if the service sends no mail."""
        if self._sender is None:
            raise MailUnavailableError

    def wake(self) -> None:
        """Make `run` read the table now."""
        self._woken.set()

    async def run(self, database: Database) -> None:
        """Send mails until cancelled."""
        if self._sender is None:
            return
        while True:
            self._woken.clear()
            seconds: float | None = DATABASE_PAUSE_SECONDS
            with suppress(DatabaseError), logger.catch(message="unexpected", exclude=DatabaseError):
                seconds = await self._drain(database, self._sender)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()

    async def _drain(self, database: Database, sender: Sender) -> float | None:
        """Send all mails that are due; return the seconds until the next is due, None if no mail waits."""
        while mails := await database.all(statements.CLAIM):
            async with asyncio.TaskGroup() as group:
                for mail in mails:
                    group.create_task(self._process(database, sender, mail))
        row = await database.one(statements.NEXT_DUE)
        return None if row is None or row["seconds"] is None else max(0.0, float(row["seconds"]))

    async def _process(self, database: Database, sender: Sender, mail: Row) -> None:
        """Send one mail, or drop or postpone it. After an error it is due again when `LEASE` is over."""
        log = logger.bind(kind=mail["kind"])
        with suppress(DatabaseError), log.catch(message="unexpected", exclude=DatabaseError):
            ready = await self._prepare(database, mail)
            if ready is None:
                await database.one(statements.FINISH, id=mail["id"], is_dropped=True)
            else:
                await self._send(database, sender, mail, ready)

    async def _prepare(self, database: Database, mail: Row) -> _Ready | None:
        """Return what to send and to whom, or None for a repeated mail or one without an account."""
        kind = Kind(mail["kind"])
        if await database.one(statements.IS_REPEATED, **mail):
            return None
        if kind not in statements.RECIPIENT:
            return _Ready(mail["user_id"], mail["email"])
        user_id, token = await self._find_user(database, mail), opaque.new_token()
        values = {**mail, "user_id": user_id, "digest": opaque.digest(token)}
        found = user_id and await database.one(statements.RECIPIENT[kind], **values)
        link = f"{self._app_url}{PAGES[kind]}#token={token}" if kind in PAGES else None
        return _Ready(user_id, found["email"], link) if found else None

    async def _find_user(self, database: Database, mail: Row) -> str | None:
        """Return the user whom a mail concerns; for a change of email None where another has it already."""
        owner = await database.one(FIND_EMAIL, email_key=mail["email_key"])
        user_id: str | None = owner["user_id"] if owner else None
        if mail["kind"] == Kind.CHANGE:
            return mail["user_id"] if user_id in (None, mail["user_id"]) else None
        return user_id

    async def _send(self, database: Database, sender: Sender, mail: Row, ready: _Ready) -> None:
        """Make one attempt. A mail that is not accepted is postponed, or fails after the last attempt."""
        kind, id_, attempts = mail["kind"], mail["id"], mail["attempts"]
        try:
            logged = await sender.send(Kind(kind), ready.email, ready.link)
        except Exception as error:  # noqa: BLE001  # any error means that the mail was not accepted
            reason = type(error).__name__
            if attempts <= len(PAUSES_SECONDS):
                pause = PAUSES_SECONDS[attempts - 1]
                words = "MAIL_URL: a mail could not be sent; the next attempt is in {} s"
                logger.warning(words, pause, kind=kind, reason=reason)
                await database.one(statements.POSTPONE, id=id_, pause=timedelta(seconds=pause))
                return
            event, level, logged = Event.MAIL_FAILED, "WARNING", {"reason": reason}
        else:
            event, level = Event.MAIL_SENT, "INFO"
        await database.one(statements.FINISH, id=id_, is_dropped=False)
        write(event, ready.user_id, level=level, kind=kind, **logged)
