"""Delivers one mail: to an SMTP server, or into a folder for developers."""

import asyncio
import os
import sys
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from backend.auth.mail.statements import Kind
from backend.settings import Settings

SEND_SECONDS: Final = 10.0
"""The longest that one attempt may take."""
QUIT_SECONDS: Final = 1.0
_PORTS: Final = {"smtp": 587, "smtps": 465}


def _message(kind: Kind, email: str, link: str, sender: str) -> EmailMessage:
    # Imported with the first mail, because Jinja takes megabytes of memory.
    from backend.auth.mail.messages import compose  # noqa: PLC0415

    return compose(kind, to=email, sender=sender, link=link)


class SMTPSender:
    """Sends through the server that MAIL_URL names: smtps, or smtp with STARTTLS unless `?starttls=off`."""

    def __init__(self, url: str, settings: Settings) -> None:
        parts = urlsplit(url)
        self._sender = settings.mail_from
        self._options: dict[str, Any] = {
            "hostname": parts.hostname,
            "port": parts.port or _PORTS[parts.scheme],
            "username": unquote(parts.username) if parts.username else None,
            "password": unquote(parts.password) if parts.password else None,
            "use_tls": parts.scheme == "smtps",
            "start_tls": parts.scheme == "smtp" and parse_qs(parts.query).get("starttls") != ["off"],
            "timeout": SEND_SECONDS,
        }

    async def send(self, kind: Kind, email: str, link: str) -> dict[str, Any]:
        """Send one mail within `SEND_SECONDS`; raises `SMTPException`, `OSError`, `TimeoutError`."""
        import aiosmtplib  # noqa: PLC0415  # takes megabytes of memory, and few processes send

        message = await asyncio.to_thread(_message, kind, email, link, self._sender)
        client = aiosmtplib.SMTP(**self._options)
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await client.connect()
                await client.send_message(message)
            # A failure of QUIT is no reason to send the mail again, because the server has accepted it.
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit(timeout=QUIT_SECONDS)
        finally:
            client.close()
        return {}


class FolderSender:
    """Writes each mail to a file of its own, mode 0600, whose name is logged."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder, self._sender = folder, settings.mail_from
        is_pretty = settings.log_format == "pretty" or settings.log_format is None
        self._shows_link = is_pretty and sys.stdout.isatty()

    async def send(self, kind: Kind, email: str, link: str) -> dict[str, Any]:
        """Write one mail; raises `OSError`."""
        path = await asyncio.to_thread(self._write, kind, email, link)
        return {"file": str(path)} | ({"link": link} if link and self._shows_link else {})

    def _write(self, kind: Kind, email: str, link: str) -> Path:
        message = _message(kind, email, link, self._sender)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = message["Message-ID"].strip("<>").partition("@")[0]
        path = self._folder / f"{name}-{kind.value}.eml"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(message.as_bytes())
        return path


Sender = SMTPSender | FolderSender
"""Sends one mail; `send` returns fields for the log line, and raises if the mail was not accepted."""


def sender_for(settings: Settings) -> Sender | None:
    """Return the sender for MAIL_URL, or None without one."""
    if settings.mail_url is None:
        return None
    url = settings.mail_url.get_secret_value()
    if url.startswith("file:"):
        return FolderSender(Path(unquote(urlsplit(url).path)), settings)
    return SMTPSender(url, settings)
