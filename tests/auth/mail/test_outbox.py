"""The outbox: an accepted mail is sent in spite of crashes and bad mail servers; the log has no secret."""

import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tests.auth.mail.conftest import Mailing, new_email, running_mailing
from tests.auth.mail.smtp import LOGIN, LOGIN_SECRET, Mailbox, smtp_server, tls
from tests.auth.mail.test_reset import FORGOT, code
from tests.certificates import make_certificates
from tests.conftest import Postgres
from tests.programs import needs_own_server
from tests.service import Service, free_port, program_with
from tests.tasks.test_concurrency import at_once

AT_ONCE = program_with(
    "backend.auth.mail.outbox_statements.FIRST_PAUSE *= 0", "backend.auth.mail.sender.SEND_SECONDS = 1.0"
)
A_SECOND = program_with("backend.auth.mail.outbox_statements.FIRST_PAUSE /= 15")
SIGN_IN = f"{LOGIN.replace('@', '%40')}:p%40ss%2Fword%3A1"

Run = Callable[..., Mailing]


@pytest.fixture(scope="module")
def shared_hasty(
    new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mailing]:
    """A service that retries at once and limits each attempt to one second."""
    with running_mailing(new_database(), tmp_path_factory.mktemp("hasty"), program=AT_ONCE) as mailing:
        yield mailing


@pytest.fixture
def hasty(shared_hasty: Mailing) -> Iterator[Mailing]:
    """The shared service. After each test its mail server is reset."""
    shared_hasty.mailbox.behave()
    yield shared_hasty
    shared_hasty.mailbox.behave()


def asks(mailing: Mailing) -> str:
    """Request a reset for a new account; return its email."""
    account = mailing.register()
    mailing.ask(FORGOT, account.email).raise_for_status()
    return account.email


def mail_lines(mailing: Mailing, event: str) -> list[dict[str, object]]:
    """Wait for the log lines of an event, and return them."""
    mailing.mailbox.until(lambda: mailing.service.lines(event=event))
    return mailing.service.lines(event=event)


def test_one_mail_per_kind_and_address_in_a_minute(mailing: Mailing) -> None:
    email = mailing.register().email
    answers = at_once(*[partial(mailing.ask, FORGOT, email)] * 5)
    assert {(answer.status_code, answer.content) for answer in answers} == {(202, b"")}
    mailing.settled("reset", email)
    assert len(mailing.mailbox.to(email)) == 1
    mailing.ask("/auth/email/verification", email)
    mailing.mailbox.wait(email, "Verify")
    mailing.forget_repetition()
    mailing.ask(FORGOT, email)
    mailing.mailbox.wait(email, "Reset", number=2)


def test_a_mail_that_was_dropped_holds_up_no_later_one(mailing: Mailing) -> None:
    email = asks(mailing)
    mailing.mailbox.wait(email)
    mailing.ask(FORGOT, email)
    mailing.settled("reset", email)
    sent = "UPDATE outbox SET created_at = now() - interval '61 seconds' WHERE email = $1 AND NOT is_dropped"
    mailing.database.sql(sent, email)
    mailing.ask(FORGOT, email)
    mailing.mailbox.wait(email, "Reset", number=2)


def test_a_repeated_mail_is_dropped_also_after_the_process_that_had_it_died(mailing: Mailing) -> None:
    email = asks(mailing)
    mailing.mailbox.wait(email)
    claimed = "INSERT INTO outbox (kind, email, email_key, attempts) VALUES ('reset', $1, $1, 1)"
    mailing.database.sql(claimed, email)
    asks(mailing)
    mailing.settled("reset", email)
    assert len(mailing.mailbox.to(email)) == 1


def test_a_finished_mail_is_forgotten_after_an_hour(mailing: Mailing) -> None:
    old, recent = asks(mailing), asks(mailing)
    for email in (old, recent):
        mailing.settled("reset", email)
    mailing.database.sql("UPDATE outbox SET done_at = done_at - interval '61 minutes' WHERE email = $1", old)
    mailing.settled("reset", asks(mailing))
    kept = mailing.database.sql("SELECT email FROM outbox WHERE email IN ($1, $2)", old, recent)
    assert [row["email"] for row in kept] == [recent]


def test_one_client_address_asks_for_so_many_mails_an_hour(new_mailing: Run) -> None:
    limited = new_mailing(RATE_LIMIT_ENABLED="true", RATE_LIMIT_MAIL="3/hour")
    answers = [limited.ask(FORGOT, new_email()) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert code(answers[-1]) == (429, "rate_limited")
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert limited.ask("/auth/email/verification", new_email()).status_code == 429


def test_a_kill_loses_no_accepted_mail(new_mailing: Run, new_service: Callable[..., Service]) -> None:
    first = new_mailing()
    first.mailbox.delay_seconds = 3
    emails = [asks(first) for _ in range(3)]
    first.mailbox.until(lambda: first.mailbox.attempts)
    first.service.stop(signal.SIGKILL)
    first.mailbox.delay_seconds = 0
    # A claim lasts for 15 seconds: let it pass.
    first.database.sql("UPDATE outbox SET due_at = now() WHERE done_at IS NULL")
    new_service(DATABASE_URL=first.database.url, MAIL_URL=first.mailbox.url)
    for email in emails:
        first.mailbox.wait(email, "Reset")


def test_a_server_that_refuses_is_tried_five_times_and_then_the_mail_has_failed(hasty: Mailing) -> None:
    hasty.mailbox.refusal = "451 no room for a secret reason"
    refused = {"reason": "SMTPDataError", "kind": "reset", "level": "WARNING"}
    email = asks(hasty)
    hasty.mailbox.until(lambda: hasty.service.lines(event="mail.failed", **refused))
    assert hasty.mailbox.attempts == 5
    postponed = [one for one in hasty.service.lines(**refused) if "MAIL_URL" in one["event"]]
    assert len(postponed) == 4
    log = hasty.service.log.read_text()
    assert ("secret reason" in log, email in log) == (False, False)
    hasty.mailbox.refusal = None
    hasty.forget_repetition()
    hasty.ask(FORGOT, email)
    hasty.mailbox.wait(email)


def test_each_pause_between_attempts_is_longer_than_the_one_before(new_mailing: Run) -> None:
    failing = new_mailing()
    failing.mailbox.refusal = "451 later"
    tried = "INSERT INTO outbox (kind, email, email_key, attempts) VALUES ('email_changed', $1, $1, $2)"
    for attempts in range(4):
        failing.database.sql(tried, new_email(), attempts)
    asks(failing)
    failing.mailbox.until(lambda: failing.mailbox.attempts == 5)
    after = "SELECT extract(epoch FROM due_at - now())::int AS pause FROM outbox"
    waiting = failing.database.sql(f"{after} WHERE kind = 'email_changed' ORDER BY attempts")
    pauses = [row["pause"] for row in waiting]
    assert 0 < pauses[0] <= 15
    assert all(later > pause for pause, later in pairwise(pauses)), pauses


def test_a_server_that_recovers_gets_the_mail_once(new_mailing: Run) -> None:
    failing = new_mailing(program=A_SECOND)
    failing.mailbox.refusal = "451 later"
    email = asks(failing)
    failing.mailbox.until(lambda: failing.mailbox.attempts)
    failing.mailbox.refusal = None
    failing.mailbox.wait(email)
    failing.settled("reset", email)
    assert len(failing.mailbox.to(email)) == 1


def test_a_server_that_is_down_costs_a_route_nothing_and_gets_the_mail_later(new_mailing: Run) -> None:
    port = free_port()
    down = new_mailing(MAIL_URL=f"smtp://127.0.0.1:{port}?starttls=off", program=A_SECOND)
    email = asks(down)
    with smtp_server(port=port) as mailbox:
        mailbox.wait(email)


def test_a_line_that_drops_after_the_data_has_the_mail_sent_again(new_mailing: Run) -> None:
    dropping = new_mailing(program=A_SECOND)
    dropping.mailbox.is_dropping = True
    email = asks(dropping)
    dropping.mailbox.wait(email)
    dropping.mailbox.is_dropping = False
    dropping.mailbox.wait(email, number=2)
    tokens = {mail.token for mail in dropping.mailbox.to(email)}
    assert len(tokens) == 2


def test_a_server_that_accepts_and_never_says_goodbye_gets_the_mail_once(hasty: Mailing) -> None:
    hasty.mailbox.hangs_at_quit = True
    email = asks(hasty)
    hasty.settled("reset", email)
    assert len(hasty.mailbox.to(email)) == 1


def test_a_slow_server_is_given_up_after_a_time(hasty: Mailing) -> None:
    hasty.mailbox.delay_seconds = 3
    asks(hasty)
    failures = partial(hasty.service.lines, event="mail.failed")
    hasty.mailbox.until(lambda: any("Timeout" in line["reason"] for line in failures()))
    assert hasty.service.client().get("/health").status_code == 200


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    return make_certificates(tmp_path)


@pytest.fixture(params=["smtp", "smtps"])
def encrypted(request: pytest.FixtureRequest, certificates: Path) -> Iterator[tuple[str, Mailbox]]:
    """A server that requires encryption and a sign-in, and its MAIL_URL."""
    context = tls(certificates)
    served = smtp_server(starttls=context) if request.param == "smtp" else smtp_server(smtps=context)
    with served as mailbox:
        yield f"{request.param}://{SIGN_IN}@localhost:{mailbox.port}", mailbox


def test_mail_goes_encrypted_and_signed_in(
    new_mailing: Run, encrypted: tuple[str, Mailbox], certificates: Path
) -> None:
    url, mailbox = encrypted
    mailing = new_mailing(MAIL_URL=url, SSL_CERT_FILE=str(certificates / "authority.pem"))
    email = asks(mailing)
    mailbox.wait(email)
    assert LOGIN_SECRET not in mailing.service.log.read_text()


def test_a_certificate_of_nobody_we_trust_gets_neither_password_nor_mail(
    new_mailing: Run, encrypted: tuple[str, Mailbox]
) -> None:
    url, mailbox = encrypted
    mailing = new_mailing(MAIL_URL=url, program=AT_ONCE)
    asks(mailing)
    mail_lines(mailing, "mail.failed")
    assert mailbox.attempts == 0


def test_a_server_without_starttls_gets_no_mail_in_clear(new_mailing: Run) -> None:
    with smtp_server() as mailbox:
        mailing = new_mailing(MAIL_URL=f"smtp://localhost:{mailbox.port}", program=AT_ONCE)
        asks(mailing)
        mail_lines(mailing, "mail.failed")
    assert mailbox.attempts == 0


def test_a_mail_is_text_and_html_with_one_link_to_app_url_whatever_the_host(new_mailing: Run) -> None:
    mailing = new_mailing(APP_URL="https://app.example.com/base", MAIL_FROM="Tasks <tasks@example.com>")
    account = mailing.service.register(email=new_email(), name="Mallory http://evil.example")
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    mailing.service.client(headers=headers).post(FORGOT, json={"email": account.email}).raise_for_status()
    mail = mailing.mailbox.wait(account.email)
    link = f"https://app.example.com/base/reset-password#token={mail.token}"
    assert link in mail.text()
    assert f'href="{link}"' in mail.text("html")
    assert ("evil" in str(mail.message), "Mallory" in str(mail.message)) == (False, False)
    assert (mail.message["To"], mail.message["From"]) == (account.email, "Tasks <tasks@example.com>")


@pytest.mark.parametrize("email", ["jürgen@example.com", "o'brien+tag{x}@example.com", "a=?b@example.com"])
def test_an_unusual_email_gets_its_mail(mailing: Mailing, email: str) -> None:
    mailing.service.register(email=email)
    mailing.ask(FORGOT, email).raise_for_status()
    assert mailing.mailbox.wait(email).recipients == [email]


@pytest.mark.parametrize("separator", ["\r\n", "\n", "\r", "\u2028", "\x85"])
def test_no_email_adds_a_header_or_a_recipient(mailing: Mailing, separator: str) -> None:
    email = f"ada@example.com{separator}Bcc: mallory@example.com"
    assert code(mailing.ask(FORGOT, email)) == (400, "validation_error")
    assert code(mailing.ask(FORGOT, f"a{separator}Bcc: b@example.com")) == (400, "validation_error")


def test_the_log_holds_no_token_and_no_email(mailing: Mailing) -> None:
    email = asks(mailing)
    token = mailing.mailbox.wait(email).token
    mailing.send("/auth/password/reset", token=token, new_password="short")
    mailing.mailbox.until(lambda: mailing.service.lines(event="mail.sent", kind="reset"))
    log = mailing.service.log.read_text()
    assert [word for word in (email, token, "#token") if word in log] == []


def test_without_smtp_each_mail_is_a_private_file_that_the_log_names(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres], tmp_path: Path
) -> None:
    folder = tmp_path / "mail"
    service = new_service(DATABASE_URL=new_database().url, MAIL_URL=f"file:{folder}")
    account = service.register(email="jürgen@example.com")
    service.client().post(FORGOT, json={"email": account.email}).raise_for_status()
    Mailbox(0).until(lambda: service.lines(event="mail.sent"))
    (line,) = service.lines(event="mail.sent")
    (file,) = folder.iterdir()
    assert (line["file"], line["kind"], file.suffix) == (str(file), "reset", ".eml")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "reset-password#token=" not in service.log.read_text()


@needs_own_server
def test_an_idle_service_sends_no_query_for_mail(new_mailing: Run) -> None:
    mailing = new_mailing(DATABASE_IDLE_SECONDS="1")
    mailing.mailbox.wait(asks(mailing))
    name = mailing.database.url.partition("?")[0].rpartition("/")[2]
    outside = Postgres(mailing.database.url.replace(f"/{name}?", "/postgres?"))
    statement = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'"
    mailing.mailbox.until(lambda: not outside.sql(statement, name))
    (before,) = outside.sql("SELECT sessions FROM pg_stat_database WHERE datname = $1", name)
    time.sleep(2)
    (after,) = outside.sql("SELECT sessions FROM pg_stat_database WHERE datname = $1", name)
    assert after == before


def test_an_outbox_that_could_not_be_read_is_looked_at_again(
    new_database: Callable[[], Postgres], new_service: Callable[..., Service]
) -> None:
    database = new_database()
    database.sql("ALTER TABLE outbox RENAME TO away")
    with smtp_server() as mailbox:
        service = new_service(DATABASE_URL=database.url, MAIL_URL=mailbox.url)
        mailbox.until(lambda: service.lines(event="unexpected"))
        database.sql("ALTER TABLE away RENAME TO outbox")
        asks(mailing := Mailing(service, database, mailbox))
        mailing.mailbox.until(lambda: mailbox.accepted)


def test_several_processes_share_the_work_and_send_each_mail_once(new_mailing: Run) -> None:
    mailing = new_mailing(WORKERS="2")
    emails = [asks(mailing) for _ in range(10)]
    for email in emails:
        mailing.mailbox.wait(email)
        mailing.settled("reset", email)
    assert len(mailing.mailbox.accepted) == len(emails)
