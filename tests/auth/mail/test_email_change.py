"""A change of email: the new address confirms it, the old one gets a notice, a taken one gets no mail."""

from functools import partial

import httpx2
import pytest

from tests.auth.mail.conftest import Mailing, new_email
from tests.auth.mail.test_reset import FORGOT, NEW, RESET, code
from tests.service import PASSWORD, Account
from tests.tasks.test_concurrency import at_once

CHANGE, CONFIRM = "/auth/email", "/auth/email/confirm"


def ask(account: Account, email: str, password: str = PASSWORD) -> httpx2.Response:
    return account.client.post(CHANGE, json={"new_email": email, "password": password})


def me(account: Account) -> dict[str, object]:
    user: dict[str, object] = account.client.get("/auth/me").raise_for_status().json()
    return user


def asked(mailing: Mailing, account: Account) -> tuple[str, str]:
    """Ask for a change, and return the new address and the token."""
    new = new_email()
    answer = ask(account, new)
    assert (answer.status_code, answer.content) == (202, b"")
    return new, mailing.mailbox.wait(new, "Confirm").token


def test_a_change_waits_until_the_new_address_confirms_it(mailing: Mailing, carol: Account) -> None:
    new, token = asked(mailing, carol)
    assert (me(carol)["email"], me(carol)["pending_email"]) == (carol.email, new)
    notice = mailing.mailbox.wait(carol.email, "was asked for")
    assert (new in str(notice.message), "token=" in notice.text()) == (False, False)
    answer = mailing.send(CONFIRM, token=token)
    assert (answer.status_code, answer.content) == (204, b"")
    user = me(carol)
    assert (user["email"], user["pending_email"], user["email_verified"]) == (new, None, True)
    assert new not in str(mailing.mailbox.wait(carol.email, "Your email was changed").message)
    assert mailing.send("/auth/login", email=new, password=PASSWORD).status_code == 200
    assert mailing.send("/auth/login", email=carol.email, password=PASSWORD).status_code == 401
    assert len(mailing.service.lines(event="auth.email_changed", user_id=carol.id)) == 1


def test_every_other_session_and_all_refresh_tokens_end(mailing: Mailing, carol: Account) -> None:
    other = mailing.send("/auth/login", email=carol.email, password=PASSWORD).json()
    _, token = asked(mailing, carol)
    mailing.send(CONFIRM, token=token).raise_for_status()
    assert mailing.service.client(other["access_token"]).get("/auth/me").status_code == 401
    for tokens in (other, carol.tokens):
        refresh = mailing.send("/auth/refresh", refresh_token=tokens["refresh_token"])
        assert refresh.status_code == 401
    assert carol.client.get("/auth/me").status_code == 200


def test_a_token_confirms_once_and_of_many_at_once_one_wins(mailing: Mailing, carol: Account) -> None:
    _, token = asked(mailing, carol)
    answers = at_once(*[partial(mailing.send, CONFIRM, token=token)] * 8)
    assert sorted(answer.status_code for answer in answers) == [204] + [400] * 7


def test_a_change_of_email_voids_every_other_mail_token(mailing: Mailing, carol: Account) -> None:
    reset, verify = mailing.reset_token(carol.email), mailing.verify_token(carol.email)
    _, token = asked(mailing, carol)
    mailing.send(CONFIRM, token=token).raise_for_status()
    assert code(mailing.send(RESET, token=reset, new_password=NEW)) == (400, "token_invalid")
    assert code(mailing.send("/auth/email/verify", token=verify)) == (400, "token_invalid")


def test_a_taken_email_gets_the_same_answer_and_no_mail(mailing: Mailing, carol: Account) -> None:
    taken = mailing.register()
    answer = ask(carol, taken.email.upper())
    assert (answer.status_code, answer.content) == (202, b"")
    mailing.mailbox.wait(carol.email, "was asked for")
    (row,) = mailing.database.sql(
        "SELECT email_key FROM outbox WHERE user_id = $1 AND kind = 'change'", carol.id
    )
    statement = "SELECT id FROM outbox WHERE email_key = $1 AND done_at IS NULL"
    mailing.mailbox.until(lambda: not mailing.database.sql(statement, row["email_key"]))
    assert [mail for mail in mailing.mailbox.accepted if taken.email in str(mail.recipients).lower()] == []


def test_an_email_that_was_taken_meanwhile_is_not_taken_twice(mailing: Mailing, carol: Account) -> None:
    new, token = asked(mailing, carol)
    mailing.service.register(email=new)
    assert code(mailing.send(CONFIRM, token=token)) == (400, "token_invalid")
    assert me(carol)["email"] == carol.email


def test_two_users_who_want_one_email_get_it_once(mailing: Mailing, carol: Account) -> None:
    other = mailing.register()
    new, first = asked(mailing, carol)
    mailing.forget_repetition()
    ask(other, new).raise_for_status()
    second = mailing.mailbox.wait(new, "Confirm", number=2).token
    answers = at_once(*(partial(mailing.send, CONFIRM, token=token) for token in (first, second)))
    assert sorted(answer.status_code for answer in answers) == [204, 400]


def test_a_mail_for_an_address_that_is_no_longer_wanted_is_not_sent(mailing: Mailing, carol: Account) -> None:
    new, _ = asked(mailing, carol)
    earlier = new_email()
    row = "INSERT INTO outbox (kind, email, email_key, user_id) VALUES ('change', $1, $1, $2)"
    mailing.database.sql(row, earlier, carol.id)
    mailing.ask(FORGOT, new_email())  # has the outbox looked at
    mailing.settled("change", earlier)
    assert (len(mailing.mailbox.to(earlier)), len(mailing.mailbox.to(new))) == (0, 1)


def test_a_change_that_is_dropped_is_void(mailing: Mailing, carol: Account) -> None:
    _, token = asked(mailing, carol)
    for _ in range(2):
        dropped = carol.client.delete(CHANGE)
        assert (dropped.status_code, dropped.content) == (204, b"")
    assert me(carol)["pending_email"] is None
    assert code(mailing.send(CONFIRM, token=token)) == (400, "token_invalid")


def test_a_second_change_voids_the_first(mailing: Mailing, carol: Account) -> None:
    _, first = asked(mailing, carol)
    new, second = asked(mailing, carol)
    assert code(mailing.send(CONFIRM, token=first)) == (400, "token_invalid")
    assert mailing.send(CONFIRM, token=second).status_code == 204
    assert me(carol)["email"] == new


def test_a_change_that_is_asked_for_again_within_a_minute_goes_by_its_first_link(
    mailing: Mailing, carol: Account
) -> None:
    """Its second mail would be a repeated one, which is not sent."""
    new, token = asked(mailing, carol)
    asked(mailing, carol)
    ask(carol, new).raise_for_status()
    mailing.settled("change", new)
    assert len(mailing.mailbox.to(new)) == 1
    assert mailing.send(CONFIRM, token=token).status_code == 204
    assert me(carol)["email"] == new


def test_the_old_email_gets_no_reset_any_more(mailing: Mailing, carol: Account) -> None:
    _, token = asked(mailing, carol)
    mailing.send(CONFIRM, token=token).raise_for_status()
    mailing.ask(FORGOT, carol.email)
    mailing.settled("reset", carol.email)
    assert mailing.mailbox.to(carol.email, "Reset") == []


def test_the_old_email_is_free_for_another_user(mailing: Mailing, carol: Account) -> None:
    new, token = asked(mailing, carol)
    assert code(mailing.send("/auth/register", email=carol.email, password=PASSWORD)) == (400, "email_taken")
    mailing.send(CONFIRM, token=token).raise_for_status()
    assert code(mailing.send("/auth/register", email=new, password=PASSWORD)) == (400, "email_taken")
    assert mailing.send("/auth/register", email=carol.email, password=PASSWORD).status_code == 201


@pytest.mark.parametrize("password", ["wrong", "x" * 600])
def test_a_change_needs_the_password(carol: Account, password: str) -> None:
    assert code(ask(carol, new_email(), password)) == (403, "wrong_password")
    assert me(carol)["pending_email"] is None


def test_a_change_needs_a_token(mailing: Mailing) -> None:
    client = mailing.service.client()
    assert client.post(CHANGE, json={}).status_code == 401
    assert client.delete(CHANGE).status_code == 401
