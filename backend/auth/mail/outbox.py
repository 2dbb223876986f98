"""Sends the mails of the outbox table; several processes may do so at once.

A process reads the table at its start, for mails that another process left when it died. Later it waits
for a request of its own or for the next retry. An idle service therefore sends no query.
"""

import asyncio
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

from loguru import logger

from backend.auth.accounts.statements import FIND_EMAIL
from backend.auth.mail import outbox_statements as statements
from backend.auth.mail.sender import Sender, sender_for
from backend.auth.mail.statements import ENQUEUE, RESETS, Kind
from backend.auth.schemas import email_key
from backend.auth.tokens import opaque
from backend.database import Database, DatabaseError, Row, Transaction
from backend.settings import Settings
from backend.telemetry.events import Event, write

ATTEMPTS: Final = 5
"""The attempts to send a mail before it has failed."""
DATABASE_PAUSE_SECONDS: Final = 5.0
PAGES: Final = {
    **dict.fromkeys(RESETS, "/reset-password"),
    Kind.VERIFY: "/verify-email",
    Kind.CHANGE: "/confirm-email",
}
"""The page of APP_URL that the link of a mail leads to."""


async def addressed(database: Database, settings: Settings, mail: dict[str, Any]) -> dict[str, Any] | None:
    """Return the mail with its user's own spelling of `email`, and with a new `link` if its kind has one.

    None if the user may not have it any more.
    """
    kind, token = mail["kind"], opaque.new_token()
    found = await database.one(statements.RECIPIENT[kind], digest=opaque.digest(token), **mail)
    link = f"{settings.pages_url}{PAGES[kind]}#token={token}" if kind in PAGES else ""
    return mail | {"email": found["email"], "link": link} if found else None


class Outbox:
    """Sends mails in one process. Without MAIL_URL it sends none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sender: Sender | None = sender_for(settings)
        self.sends = self._sender is not None
        """True if the service sends mail."""
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
        if self.sends:
            mail = {"kind": kind.value, "email": email, "email_key": email_key(email)}
            await database.one(ENQUEUE, user_id=user_id, session_id=session_id, **mail)

    def wake(self) -> None:
        """Make `run` read the table now."""
        self._woken.set()

    async def run(self, database: Database) -> None:
        """Send mails until cancelled."""
        if not self.sends:
            return
        while True:
            self._woken.clear()
            seconds: float | None = DATABASE_PAUSE_SECONDS
            with suppress(DatabaseError), logger.catch(message="unexpected", exclude=DatabaseError):
                seconds = await self._drain(database)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._woken.wait()

    async def _drain(self, database: Database) -> float | None:
        """Send all mails that are due; return the seconds until the next is due, None if no mail waits."""
        while mails := await database.all(statements.CLAIM, first_pause=statements.FIRST_PAUSE):
            async with asyncio.TaskGroup() as group:
                for mail in mails:
                    group.create_task(self._process(database, mail))
        row = await database.one(statements.NEXT_DUE)
        return None if row is None or row["seconds"] is None else max(0.0, float(row["seconds"]))

    async def _process(self, database: Database, mail: Row) -> None:
        """Send one mail, or drop it. After an error it is due again, as `CLAIM` says."""
        log = logger.bind(kind=mail["kind"])
        with suppress(DatabaseError), log.catch(message="unexpected", exclude=DatabaseError):
            ready = await self._prepare(database, dict(mail))
            if ready is None:
                await database.one(statements.FINISH, id=mail["id"], is_dropped=True)
            else:
                await self._send(database, ready)

    async def _prepare(self, database: Database, mail: dict[str, Any]) -> dict[str, Any] | None:
        """Return the mail as `addressed` does; None also for a repeated one, or if the email is no user's."""
        if mail["is_repeated"]:
            return None
        if mail["kind"] not in statements.RECIPIENT:
            return mail | {"link": ""}
        owner = await database.one(FIND_EMAIL, email_key=mail["email_key"])
        owner_id = owner["user_id"] if owner else None
        user_id = mail["user_id"] or owner_id
        if user_id is None or owner_id not in {None, user_id}:
            return None
        return await addressed(database, self._settings, mail | {"user_id": user_id})

    async def _send(self, database: Database, mail: dict[str, Any]) -> None:
        """Make one attempt. A mail that is not accepted is due again, or fails after the last attempt."""
        assert self._sender is not None
        kind, level, event = mail["kind"], "INFO", Event.MAIL_SENT
        try:
            logged = await self._sender.send(Kind(kind), mail["email"], mail["link"])
        except Exception as error:  # noqa: BLE001  # any error means that the mail was not accepted
            logged = {"reason": type(error).__name__}
            if mail["attempts"] < ATTEMPTS:
                logger.warning("MAIL_URL: a mail could not be sent; it is tried again", kind=kind, **logged)
                return
            event, level = Event.MAIL_FAILED, "WARNING"
        await database.one(statements.FINISH, id=mail["id"], is_dropped=False)
        write(event, mail["user_id"], level=level, kind=kind, **logged)
