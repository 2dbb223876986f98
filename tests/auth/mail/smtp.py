"""A real SMTP server of the tests, on loopback, that takes mail or misbehaves."""

import asyncio
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.service import free_port

WAIT_SECONDS = 20
LOGIN, LOGIN_SECRET = "relay@example.com", "p@ss/word:1"
_TOKEN = re.compile(r"#token=([\w-]{43})")


@dataclass
class Received:
    """A received mail, with its envelope and its message."""

    recipients: list[str]
    message: EmailMessage
    is_encrypted: bool

    @property
    def subject(self) -> str:
        """The subject of the mail, which shows its kind."""
        return str(self.message["Subject"])

    def text(self, subtype: str = "plain") -> str:
        """Return one of its two bodies."""
        body = self.message.get_body((subtype,))
        assert body is not None
        return str(body.get_content())

    @property
    def token(self) -> str:
        """The token of its link."""
        (token,) = _TOKEN.findall(self.text())
        return str(token)


@dataclass
class Mailbox:
    """The mails that the server has accepted, and its settings."""

    port: int
    accepted: list[Received] = field(default_factory=list)
    attempts: int = 0
    refusal: str | None = None
    """The reply that refuses each mail; None accepts it."""
    delay_seconds: float = 0.0
    is_dropping: bool = False
    """If set, the server accepts a mail's data but drops the connection before its reply."""
    hangs_at_quit: bool = False

    def behave(self) -> None:
        """Restore normal operation, and count attempts from 0."""
        self.attempts, self.refusal, self.delay_seconds = 0, None, 0.0
        self.is_dropping = self.hangs_at_quit = False

    @property
    def url(self) -> str:
        """The MAIL_URL without encryption."""
        return f"smtp://127.0.0.1:{self.port}?starttls=off"

    def to(self, email: str, subject: str = "") -> list[Received]:
        """Return the mails to one address."""
        return [mail for mail in self.accepted if email in mail.recipients and subject in mail.subject]

    def wait(self, email: str, subject: str = "", *, number: int = 1) -> Received:
        """Wait for the mail with this number, from 1, to one address, and return it."""
        self.until(lambda: len(self.to(email, subject)) >= number)
        return self.to(email, subject)[number - 1]

    def until(self, is_so: Any) -> None:
        """Wait until `is_so()`."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_so():
            assert time.monotonic() < deadline, [(m.recipients, m.subject) for m in self.accepted]
            time.sleep(0.02)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802  # aiosmtpd's name
        """Accept or refuse a mail."""
        self.attempts += 1
        await asyncio.sleep(self.delay_seconds)
        if self.refusal is not None:
            return self.refusal
        message = message_from_bytes(envelope.original_content or b"", policy=policy.SMTP)
        assert isinstance(message, EmailMessage)
        self.accepted.append(Received(envelope.rcpt_tos, message, session.ssl is not None))
        if self.is_dropping:
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
        return "250 OK"

    async def handle_QUIT(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802, ARG002  # aiosmtpd's name and arguments
        """Reply to QUIT, or delay the reply for long."""
        if self.hangs_at_quit:
            await asyncio.sleep(4)
        return "221 Bye"


def _authenticate(*arguments: Any) -> AuthResult:
    data = arguments[-1]
    assert isinstance(data, LoginPassword)
    return AuthResult(success=(data.login, data.password) == (LOGIN.encode(), LOGIN_SECRET.encode()))


def tls(directory: Path) -> ssl.SSLContext:
    """Return a context with the certificate of `make_certificates`, for the name localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    return context


class _WithTLS(Controller):
    """Offers STARTTLS, requires it and a sign-in."""

    def __init__(self, handler: Mailbox, context: ssl.SSLContext, **options: Any) -> None:
        self._context = context
        super().__init__(handler, **options)

    def factory(self) -> SMTP:
        """Return the protocol of one connection."""
        return SMTP(
            self.handler,
            tls_context=self._context,
            require_starttls=True,
            auth_required=True,
            authenticator=_authenticate,
            enable_SMTPUTF8=True,
        )


@contextmanager
def smtp_server(
    *, port: int | None = None, starttls: ssl.SSLContext | None = None, smtps: ssl.SSLContext | None = None
) -> Iterator[Mailbox]:
    """Run a server for the length of the block: plain, with STARTTLS and a sign-in, or within TLS."""
    mailbox = Mailbox(port or free_port())
    options: dict[str, Any] = {"hostname": "127.0.0.1", "port": mailbox.port}
    controller: Controller
    if starttls is not None:
        controller = _WithTLS(mailbox, starttls, **options)
    elif smtps is not None:
        # aiosmtpd offers sign-in within TLS that it did not begin only with this setting.
        controller = Controller(
            mailbox,
            ssl_context=smtps,
            auth_required=True,
            auth_require_tls=False,
            authenticator=_authenticate,
            **options,
        )
    else:
        controller = Controller(mailbox, enable_SMTPUTF8=True, **options)
    controller.start()
    try:
        yield mailbox
    finally:
        asyncio.run_coroutine_threadsafe(_until_left_alone(), controller.loop).result()
        controller.stop()


async def _until_left_alone() -> None:
    """Wait a moment for connections to end: aiosmtpd's `stop` leaves their sockets open."""
    for _ in range(100):
        await asyncio.sleep(0.02)
        if len(asyncio.all_tasks()) == 1:
            break
    await asyncio.sleep(0.05)
