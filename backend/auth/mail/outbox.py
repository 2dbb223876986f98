"""The outbox: sends each mail until the server accepts it, by any number of processes at once.

A process looks once at its start for mails that a dead one left. Then it waits for a request of its own or
for the next retry: an idle service sends no query.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from loguru import logger

from backend.auth.accounts.statements import FIND_EMAIL
from backend.auth.mail import outbox_statements as statements
from backend.auth.mail.errors import MailUnavailableError
from backend.auth.mail.outbox_statements import NEW_TOKEN
from backend.auth.mail.sender import Sender, sender_for
from backend.auth.mail.statements import ENQUEUE, Kind
from backend.auth.schemas import email_key
from backend.auth.tokens import opaque
from backend.database import Database, DatabaseError, Row, Transaction
from backend.settings import Settings
from backend.telemetry.events import Event

PAUSES_SECONDS: Final = (5, 30, 120, 600)
"""Between the attempts to send a mail; after the last one it has failed."""
DATABASE_PAUSE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Ready:
    """A mail for the address of the account, which may differ in letters from the one that was asked with."""

    user_id: str | None
    email: str
    link: str | None = None


class Outbox:
    """Sends the mails of one process; `sender` is None where the service sends no mail."""

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
        """Raise `MailUnavailableError` where the service sends no mail."""
        if self._sender is None:
            raise MailUnavailableError(reason="mail_unavailable")

    def wake(self) -> None:
        """Have the outbox looked at now."""
        self._woken.set()

    async def run(self, database: Database) -> None:
        """Send mails until cancelled."""
        if self._sender is None:
            return
        while True:
            self._woken.clear()
            try:
                seconds = await self._drain(database, self._sender)
            except DatabaseError:
                seconds = DATABASE_PAUSE_SECONDS
            except Exception as error:  # noqa: BLE001  # or no mail is sent until the next start
                logger.opt(exception=error).error("unexpected")
                seconds = DATABASE_PAUSE_SECONDS
            try:
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _drain(self, database: Database, sender: Sender) -> float | None:
        """Send all that is due; return the seconds until the next mail is due, None where none waits."""
        while mails := await database.all(statements.CLAIM):
            async with asyncio.TaskGroup() as group:
                for mail in mails:
                    group.create_task(self._process(database, sender, mail))
        row = await database.one(statements.NEXT_DUE)
        return None if row is None or row["seconds"] is None else max(0.0, float(row["seconds"]))

    async def _process(self, database: Database, sender: Sender, mail: Row) -> None:
        """Send one mail, or drop or postpone it; never raises for what the server says."""
        try:
            ready = await self._prepare(database, mail)
            if ready is None:
                await database.one(statements.DROP, id=mail["id"])
                return
            where = await self._send(database, sender, mail, ready)
            if where is not None:
                await database.one(statements.FINISH, id=mail["id"])
                _log(Event.MAIL_SENT, ready.user_id, kind=mail["kind"], **where)
        except DatabaseError:
            return  # due again after `LEASE`
        except Exception as error:  # noqa: BLE001  # a defect must not keep other mails from being sent
            logger.opt(exception=error).error("unexpected", kind=mail["kind"])

    async def _prepare(self, database: Database, mail: Row) -> _Ready | None:
        """Return what to send and to whom, or None where nobody waits for this mail."""
        kind, key = Kind(mail["kind"]), mail["email_key"]
        asked = {"email_key": key, "created_at": mail["created_at"]}
        if await database.one(statements.IS_REPEATED, kind=kind.value, id=mail["id"], **asked):
            return None
        if kind is not Kind.EMAIL_TAKEN and kind not in NEW_TOKEN:
            return _Ready(mail["user_id"], mail["email"])
        user_id = await self._find_user(database, mail)
        if user_id is None:
            return None
        if kind is Kind.EMAIL_TAKEN:
            account = await database.one(statements.HAS_ACCOUNT, user_id=user_id, email_key=key)
            return _Ready(user_id, account["email"]) if account else None
        return await self._with_link(database, kind, user_id, mail)

    async def _find_user(self, database: Database, mail: Row) -> str | None:
        """Return the user whom a mail concerns; for a change of email None where another has it already."""
        owner = await database.one(FIND_EMAIL, email_key=mail["email_key"])
        user_id: str | None = owner["user_id"] if owner else None
        if mail["kind"] == Kind.CHANGE:
            return mail["user_id"] if user_id in (None, mail["user_id"]) else None
        return user_id

    async def _with_link(self, database: Database, kind: Kind, user_id: str, mail: Row) -> _Ready | None:
        token = opaque.new_token()
        values = {name: mail[name] for name in ("email", "email_key", "session_id", "created_at")}
        made = await database.one(NEW_TOKEN[kind], user_id=user_id, digest=opaque.digest(token), **values)
        link = f"{self._app_url}{PAGES[kind]}#token={token}"
        return _Ready(user_id, made["email"], link) if made else None

    async def _send(
        self, database: Database, sender: Sender, mail: Row, ready: _Ready
    ) -> dict[str, Any] | None:
        """Return what the log tells of the mail, or None when it is postponed or has failed."""
        try:
            return await sender.send(Kind(mail["kind"]), ready.email, ready.link)
        except Exception as error:  # noqa: BLE001  # whatever the server or its library does, the mail is kept
            reason = type(error).__name__
        if mail["attempts"] > len(PAUSES_SECONDS):
            await database.one(statements.FINISH, id=mail["id"])
            _log(Event.MAIL_FAILED, ready.user_id, kind=mail["kind"], reason=reason, level="WARNING")
        else:
            pause = PAUSES_SECONDS[mail["attempts"] - 1]
            words = "MAIL_URL: a mail could not be sent; the next attempt is in {} s"
            logger.warning(words, pause, kind=mail["kind"], reason=reason)
            await database.one(statements.POSTPONE, id=mail["id"], seconds=pause)
        return None


PAGES: Final = {Kind.RESET: "/reset-password", Kind.VERIFY: "/verify-email", Kind.CHANGE: "/confirm-email"}


def _log(event: Event, user_id: str | None, *, level: str = "INFO", **fields: Any) -> None:
    """Write the line of an event that belongs to no request."""
    unknown = dict.fromkeys(("request_id", "ip", "method", "route", "status", "duration_ms"))
    logger.bind(**unknown, user_id=user_id, **fields).log(level, event.value)
