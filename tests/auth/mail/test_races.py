"""Concurrent requests about mail: each order of events has one outcome, and no request waits for ever."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.auth.mail.conftest import Mailing, held, waiting
from tests.auth.mail.test_email_change import CONFIRM, asked, me
from tests.auth.mail.test_reset import FORGOT, NEW, RESET, code
from tests.service import PASSWORD, Account
from tests.tasks.test_concurrency import at_once


def lock(account: Account) -> str:
    return f"SELECT id FROM users WHERE id = '{account.id}' FOR UPDATE"  # noqa: S608  # an id of ours


def test_verifying_while_the_password_is_reset_keeps_neither_from_being_done(
    mailing: Mailing, carol: Account
) -> None:
    reset, verify = mailing.reset_token(carol.email), mailing.verify_token(carol.email)
    with ThreadPoolExecutor(2) as pool:
        with held(mailing.database, lock(carol)):
            resetting = pool.submit(mailing.send, RESET, token=reset, new_password=NEW)
            mailing.mailbox.until(lambda: waiting(mailing.database) == 1)
            verifying = pool.submit(mailing.send, "/auth/email/verify", token=verify)
            mailing.mailbox.until(lambda: waiting(mailing.database) == 2)
            # Each waiting request checks for a deadlock once, after a second. A later deadlock is another's.
            mailing.database.sql("SELECT pg_sleep(1.2)")
        assert resetting.result().status_code == 204
        assert code(verifying.result()) == (400, "token_invalid")


def test_a_link_asked_for_while_the_user_is_disabled_is_not_mailed(mailing: Mailing, carol: Account) -> None:
    disabling = "UPDATE users SET disabled_at = now() WHERE id = '{}'"
    with held(mailing.database, lock(carol), disabling.format(carol.id)):
        mailing.ask(FORGOT, carol.email).raise_for_status()
        mailing.mailbox.until(lambda: waiting(mailing.database))
    mailing.settled("reset", carol.email)
    assert mailing.mailbox.to(carol.email) == []
    assert mailing.database.sql("SELECT digest FROM mail_tokens WHERE user_id = $1", carol.id) == []


def test_a_change_asked_for_before_the_user_was_disabled_is_not_mailed(
    mailing: Mailing, carol: Account
) -> None:
    outbox = (
        "INSERT INTO outbox (kind, email, email_key, user_id) VALUES ('change', $1, $1, $2)",
        "late@example.com",
        carol.id,
    )
    pending = "UPDATE users SET disabled_at = now(), pending_email = $1 WHERE id = $2"
    mailing.database.sql(pending, *outbox[1:])
    mailing.database.sql(*outbox)
    mailing.ask(FORGOT, carol.email)  # has the outbox looked at
    mailing.settled("change", "late@example.com")
    assert mailing.mailbox.to("late@example.com") == []


def test_registering_and_confirming_the_same_email_at_once_gives_it_to_one(
    mailing: Mailing, carol: Account
) -> None:
    new, token = asked(mailing, carol)
    registering = partial(mailing.send, "/auth/register", email=new.upper(), password=PASSWORD)
    answers = at_once(registering, partial(mailing.send, CONFIRM, token=token))
    assert [answer.status_code for answer in answers] in ([201, 400], [400, 204])
    statement = "SELECT id FROM users WHERE email_key = $1"
    (owner,) = mailing.database.sql(statement, new)
    assert (owner["id"] == carol.id) == (me(carol)["email"] == new)


def test_a_refresh_while_the_password_is_reset_signs_nobody_in(mailing: Mailing, carol: Account) -> None:
    token = mailing.reset_token(carol.email)
    refreshes = [partial(mailing.send, "/auth/refresh", refresh_token=carol.tokens["refresh_token"])] * 3
    reset, *refreshed = at_once(partial(mailing.send, RESET, token=token, new_password=NEW), *refreshes)
    assert reset.status_code == 204
    for answer in refreshed:
        assert answer.status_code in {200, 401}
        if answer.status_code == 200:
            late = mailing.service.client(answer.json()["access_token"]).get("/auth/me")
            again = mailing.send("/auth/refresh", refresh_token=answer.json()["refresh_token"])
            assert (late.status_code, again.status_code) == (401, 401)


def test_expired_tokens_of_a_user_do_not_pile_up(mailing: Mailing, carol: Account) -> None:
    mailing.reset_token(carol.email)
    mailing.database.sql("UPDATE mail_tokens SET expires_at = now() WHERE user_id = $1", carol.id)
    mailing.forget_repetition()
    mailing.ask(FORGOT, carol.email)
    mailing.mailbox.wait(carol.email, "Reset", number=2)
    statement = "SELECT digest FROM mail_tokens WHERE user_id = $1"
    assert len(mailing.database.sql(statement, carol.id)) == 1
