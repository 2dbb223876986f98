"""A forgotten password: one answer for every email, a link that works once, and the end of all sessions."""

from collections.abc import Callable
from functools import partial

import pytest

from tests.auth.mail.conftest import Mailing, new_email
from tests.service import JWT_SECRET, PASSWORD, Account, command
from tests.tasks.test_concurrency import at_once

NEW = "another correct horse battery"
FORGOT, RESET = "/auth/password/forgot", "/auth/password/reset"


def code(response: object) -> tuple[int, str]:
    """Return the status and the code of an error."""
    return response.status_code, response.json()["code"]  # type: ignore[attr-defined]  # of httpx2


def test_the_answer_is_the_same_for_every_email_and_each_costs_one_row(
    mailing: Mailing, carol: Account
) -> None:
    unknown = new_email()
    known, other = (mailing.ask(FORGOT, email) for email in (carol.email, unknown))
    assert (known.status_code, known.content) == (other.status_code, other.content) == (202, b"")
    assert known.headers.keys() == other.headers.keys()
    for email in (carol.email, unknown):
        assert len(mailing.database.sql("SELECT id FROM outbox WHERE email = $1", email)) == 1
    mailing.mailbox.wait(carol.email, "Reset")
    mailing.settled("reset", unknown)
    assert mailing.mailbox.to(unknown) == []


def test_a_reset_sets_the_password_ends_every_session_and_signs_nobody_in(
    mailing: Mailing, carol: Account
) -> None:
    answer = mailing.send(RESET, token=mailing.reset_token(carol.email), new_password=NEW)
    assert (answer.status_code, answer.content) == (204, b"")
    assert carol.client.get("/auth/me").status_code == 401
    refresh = mailing.send("/auth/refresh", refresh_token=carol.tokens["refresh_token"])
    assert refresh.status_code == 401
    assert mailing.send("/auth/login", email=carol.email, password=PASSWORD).status_code == 401
    signed_in = mailing.send("/auth/login", email=carol.email, password=NEW)
    assert signed_in.status_code == 200
    assert signed_in.json()["user"]["email_verified"] is True
    assert mailing.mailbox.wait(carol.email, "was changed").recipients == [carol.email]
    assert len(mailing.service.lines(event="auth.password_reset", user_id=carol.id)) == 1


def test_a_token_works_once_and_of_many_at_once_one_wins(mailing: Mailing, carol: Account) -> None:
    token = mailing.reset_token(carol.email)
    uses = [partial(mailing.send, RESET, token=token, new_password=f"{NEW} {n}") for n in range(8)]
    answers = [answer.status_code for answer in at_once(*uses)]
    assert sorted(answers) == [204] + [400] * 7
    winner = answers.index(204)
    signed_in = mailing.send("/auth/login", email=carol.email, password=f"{NEW} {winner}")
    assert signed_in.status_code == 200
    assert code(mailing.send(RESET, token=token, new_password=NEW)) == (400, "token_invalid")


@pytest.mark.parametrize("password", ["short", "password123", "x" * 129])
def test_a_new_password_that_is_refused_does_not_spend_the_token(
    mailing: Mailing, carol: Account, password: str
) -> None:
    token = mailing.reset_token(carol.email)
    refused = mailing.send(RESET, token=token, new_password=password)
    assert code(refused) == (400, "validation_error")
    assert [error["field"] for error in refused.json()["errors"]] == ["new_password"]
    assert mailing.send(RESET, token=token, new_password=NEW).status_code == 204


def test_the_new_password_is_not_the_email(mailing: Mailing, carol: Account) -> None:
    token = mailing.reset_token(carol.email)
    refused = mailing.send(RESET, token=token, new_password=carol.email.upper())
    assert code(refused) == (400, "validation_error")


@pytest.mark.parametrize("token", ["", "x", "é" * 43, "A" * 43, "A" * 9000])
def test_an_unknown_token_is_invalid(mailing: Mailing, token: str) -> None:
    assert code(mailing.send(RESET, token=token, new_password=NEW)) == (400, "token_invalid")


def test_a_token_expires_after_30_minutes(mailing: Mailing, carol: Account) -> None:
    token = mailing.reset_token(carol.email)
    (row,) = mailing.database.sql(
        "SELECT extract(epoch FROM expires_at - created_at)::int AS life, digest FROM mail_tokens"
        " WHERE user_id = $1",
        carol.id,
    )
    assert (row["life"], len(row["digest"]), token.encode() in row["digest"]) == (1800, 32, False)
    mailing.database.sql("UPDATE mail_tokens SET expires_at = now() WHERE user_id = $1", carol.id)
    assert code(mailing.send(RESET, token=token, new_password=NEW)) == (400, "token_invalid")


def test_a_token_is_for_one_purpose(mailing: Mailing, carol: Account) -> None:
    reset, verify = mailing.reset_token(carol.email), mailing.verify_token(carol.email)
    assert code(mailing.send("/auth/email/verify", token=reset)) == (400, "token_invalid")
    assert code(mailing.send("/auth/email/confirm", token=reset)) == (400, "token_invalid")
    assert code(mailing.send(RESET, token=verify, new_password=NEW)) == (400, "token_invalid")
    assert mailing.send(RESET, token=reset, new_password=NEW).status_code == 204


def test_a_token_is_for_one_address(mailing: Mailing, carol: Account) -> None:
    token, verify, moved = mailing.reset_token(carol.email), mailing.verify_token(carol.email), new_email()
    mailing.database.sql("UPDATE users SET email = $1, email_key = $1 WHERE id = $2", moved, carol.id)
    assert code(mailing.send(RESET, token=token, new_password=NEW)) == (400, "token_invalid")
    assert code(mailing.send("/auth/email/verify", token=verify)) == (400, "token_invalid")


def _reset(mailing: Mailing, account: Account) -> None:
    mailing.forget_repetition()
    assert mailing.ask(FORGOT, account.email).status_code == 202
    token = mailing.mailbox.wait(account.email, "Reset", number=2).token
    assert mailing.send(RESET, token=token, new_password=NEW).status_code == 204


def _change_password(_: Mailing, account: Account) -> None:
    body = {"current_password": PASSWORD, "new_password": NEW}
    assert account.client.post("/auth/password", json=body).status_code == 200


@pytest.mark.parametrize("change", [_reset, _change_password])
def test_a_new_password_voids_every_other_mail_token_and_a_pending_change(
    mailing: Mailing, carol: Account, change: object
) -> None:
    reset, verify = mailing.reset_token(carol.email), mailing.verify_token(carol.email)
    new = new_email()
    carol.client.post("/auth/email", json={"new_email": new, "password": PASSWORD}).raise_for_status()
    confirm = mailing.mailbox.wait(new, "Confirm").token
    assert callable(change)
    change(mailing, carol)
    assert code(mailing.send(RESET, token=reset, new_password=NEW)) == (400, "token_invalid")
    assert code(mailing.send("/auth/email/verify", token=verify)) == (400, "token_invalid")
    assert code(mailing.send("/auth/email/confirm", token=confirm)) == (400, "token_invalid")
    (user,) = mailing.database.sql("SELECT pending_email FROM users WHERE id = $1", carol.id)
    assert user["pending_email"] is None


def _disable_and_enable(mailing: Mailing, account: Account) -> None:
    for change in ("disable", "enable"):
        settings = {"DATABASE_URL": mailing.database.url, "JWT_SECRET": JWT_SECRET}
        assert command("users", change, account.email, **settings).returncode == 0


@pytest.mark.parametrize("change", [_reset, _change_password, _disable_and_enable])
@pytest.mark.parametrize("kind", ["reset", "verify"])
def test_a_link_that_still_waits_to_be_mailed_is_void_as_well(
    mailing: Mailing, carol: Account, kind: str, change: Callable[[Mailing, Account], None]
) -> None:
    if change is _reset:
        mailing.reset_token(carol.email)
        mailing.forget_repetition()
    waits = (
        "INSERT INTO outbox (kind, email, email_key, due_at) VALUES ($1, $2, $2, now() + interval '1 hour')"
    )
    mailing.database.sql(waits, kind, carol.email)
    change(mailing, carol)
    tokens = {mail.text() for mail in mailing.mailbox.to(carol.email) if "token=" in mail.text()}
    mailing.forget_repetition()
    mailing.database.sql("UPDATE outbox SET due_at = now() WHERE email = $1 AND done_at IS NULL", carol.email)
    mailing.ask(FORGOT, new_email())  # has the outbox looked at
    mailing.settled(kind, carol.email)
    assert {mail.text() for mail in mailing.mailbox.to(carol.email) if "token=" in mail.text()} == tokens


def test_a_change_of_password_tells_the_owner(mailing: Mailing, carol: Account) -> None:
    _change_password(mailing, carol)
    notice = mailing.mailbox.wait(carol.email, "Your password was changed")
    assert "token=" not in notice.text()


@pytest.mark.parametrize(
    "asked_with", ["STRASSE{}@example.com", "stra\N{LATIN SMALL LETTER SHARP S}e{}@example.com"]
)
def test_the_mail_goes_to_the_account_s_own_address_never_to_one_that_merely_folds_to_it(
    mailing: Mailing, asked_with: str
) -> None:
    """Another person may own an address that case-folds to the same letters."""
    number = new_email().partition("@")[0]
    email = f"strasse{number}@example.com"
    mailing.service.register(email=email)
    mailing.ask(FORGOT, asked_with.format(number)).raise_for_status()
    waiting = "SELECT id FROM outbox WHERE done_at IS NULL"
    mailing.mailbox.until(lambda: not mailing.database.sql(waiting))
    assert [mail.recipients for mail in mailing.mailbox.accepted if number in str(mail.recipients)] in (
        [[email]],
        [],
    )
