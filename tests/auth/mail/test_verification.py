"""Verification of an email, and the effects of EMAIL_VERIFICATION=required."""

from collections.abc import Callable

import pytest

from backend.settings import SettingsError, load_settings
from tests.auth.mail.conftest import Mailing, new_email
from tests.auth.mail.test_reset import FORGOT, NEW, RESET, code
from tests.conftest import Postgres
from tests.service import JWT_SECRET, PASSWORD, Account, Service
from tests.tokens import SHARED_SECRET, shared_token

ASK, VERIFY = "/auth/email/verification", "/auth/email/verify"


def verified(account: Account) -> object:
    return account.client.get("/auth/me").json()["email_verified"]


def test_a_link_verifies_and_the_same_link_says_so_again(mailing: Mailing, carol: Account) -> None:
    assert (carol.tokens["user"]["email_verified"], verified(carol)) == (False, False)
    token = mailing.verify_token(carol.email)
    for _ in range(2):
        answer = mailing.send(VERIFY, token=token)
        assert (answer.status_code, answer.content) == (204, b"")
    assert verified(carol) is True
    assert len(mailing.service.lines(event="auth.email_verified", user_id=carol.id)) == 1


def test_the_link_lives_for_24_hours(mailing: Mailing, carol: Account) -> None:
    token = mailing.verify_token(carol.email)
    (row,) = mailing.database.sql(
        "SELECT extract(epoch FROM expires_at - created_at)::int AS life FROM mail_tokens WHERE user_id = $1",
        carol.id,
    )
    assert row["life"] == 24 * 3600
    mailing.database.sql("UPDATE mail_tokens SET expires_at = now() WHERE user_id = $1", carol.id)
    assert code(mailing.send(VERIFY, token=token)) == (400, "token_invalid")
    assert verified(carol) is False


def test_only_an_address_that_waits_to_be_verified_gets_a_mail(mailing: Mailing, carol: Account) -> None:
    mailing.send(VERIFY, token=mailing.verify_token(carol.email)).raise_for_status()
    mailing.forget_repetition()
    for email in (carol.email, unknown := new_email()):
        answer = mailing.ask(ASK, email)
        assert (answer.status_code, answer.content) == (202, b"")
        mailing.settled("verify", email)
    assert len(mailing.mailbox.to(carol.email, "Verify")) == 1
    assert mailing.mailbox.to(unknown) == []


def test_a_reset_verifies_the_address_that_it_was_mailed_to(mailing: Mailing, carol: Account) -> None:
    mailing.send(RESET, token=mailing.reset_token(carol.email), new_password=NEW).raise_for_status()
    (user,) = mailing.database.sql("SELECT email_verified FROM users WHERE id = $1", carol.id)
    assert user["email_verified"] is True


@pytest.fixture
def strict(new_mailing: Callable[..., Mailing]) -> Mailing:
    """A service whose users verify their email before they sign in."""
    return new_mailing(EMAIL_VERIFICATION="required")


def test_required_verification_comes_before_the_first_sign_in(strict: Mailing) -> None:
    email = new_email()
    answer = strict.send("/auth/register", email=email, password=PASSWORD)
    assert (answer.status_code, answer.content) == (202, b"")
    login = strict.send("/auth/login", email=email, password=PASSWORD)
    assert code(login) == (403, "email_unverified")
    assert code(strict.send("/auth/login", email=email, password=NEW)) == (401, "invalid_credentials")
    form = {"username": email, "password": PASSWORD}
    grant = strict.service.client().post("/auth/token", data=form)
    assert (grant.status_code, grant.json()["code"]) == (403, "email_unverified")
    strict.send(VERIFY, token=strict.mailbox.wait(email, "Verify").token).raise_for_status()
    assert strict.send("/auth/login", email=email, password=PASSWORD).status_code == 200


def test_required_verification_answers_for_a_taken_email_as_for_a_new_one_and_tells_its_owner(
    strict: Mailing,
) -> None:
    email = new_email()
    first = strict.send("/auth/register", email=email, password=PASSWORD)
    strict.mailbox.wait(email, "Verify")
    second = strict.send("/auth/register", email=email.upper(), password=NEW, name="Mallory")
    assert (first.status_code, first.content) == (second.status_code, second.content) == (202, b"")
    assert first.headers.keys() == second.headers.keys()
    told = strict.mailbox.wait(email, "already have an account")
    assert "Mallory" not in str(told.message)
    assert "token=" not in told.text()
    assert len(strict.database.sql("SELECT id FROM users")) == 1
    assert code(strict.send("/auth/login", email=email, password=NEW)) == (401, "invalid_credentials")


def test_a_reset_lets_in_who_never_verified(strict: Mailing) -> None:
    email = new_email()
    strict.send("/auth/register", email=email, password=PASSWORD).raise_for_status()
    strict.send(RESET, token=strict.reset_token(email), new_password=NEW).raise_for_status()
    assert strict.send("/auth/login", email=email, password=NEW).status_code == 200


def test_required_verification_needs_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://localhost/tasks")
    monkeypatch.setenv("JWT_SECRET", JWT_SECRET)
    monkeypatch.setenv("EMAIL_VERIFICATION", "required")
    with pytest.raises(SettingsError, match="EMAIL_VERIFICATION: required needs MAIL_URL"):
        load_settings()


def test_without_mail_url_the_routes_that_would_send_say_so(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    database = new_database()
    service = new_service(DATABASE_URL=database.url, MAIL_URL="")
    asker = service.register()
    for email in (asker.email, "nobody@example.com"):
        change = asker.client.post("/auth/email", json={"new_email": email, "password": PASSWORD})
        asked = [service.client().post(path, json={"email": email}) for path in (FORGOT, ASK)]
        for answer in (*asked, change):
            assert code(answer) == (503, "mail_unavailable")
    assert database.sql("SELECT id FROM outbox") == []
    asker.client.post("/auth/logout")
    change = asker.client.post("/auth/email", json={"new_email": asker.email, "password": PASSWORD})
    assert code(change) == (401, "token_revoked")


def test_a_disabled_user_is_told_so_at_sign_in_after_the_right_password_alone(
    mailing: Mailing, carol: Account
) -> None:
    mailing.database.sql("UPDATE users SET disabled_at = now() WHERE id = $1", carol.id)
    mailing.database.sql("DELETE FROM sessions WHERE user_id = $1", carol.id)
    refused = carol.client.get("/tasks")
    assert refused.status_code == 401
    (line,) = mailing.service.lines(event="auth.denied", request_id=refused.headers["X-Request-ID"])
    assert line["reason"] == "revoked"
    login = {"email": carol.email, "password": PASSWORD}
    assert code(mailing.send("/auth/login", **login)) == (403, "account_disabled")
    assert code(mailing.send("/auth/login", **login | {"password": NEW})) == (401, "invalid_credentials")
    assert mailing.send("/auth/refresh", refresh_token=carol.tokens["refresh_token"]).status_code == 401
    mailing.ask(FORGOT, carol.email)
    mailing.settled("reset", carol.email)
    assert mailing.mailbox.to(carol.email) == []


def test_a_disabled_external_user_is_refused_at_once(new_mailing: Callable[..., Mailing]) -> None:
    trusting = new_mailing(BETTER_AUTH_SECRET=SHARED_SECRET)
    client = trusting.service.client(shared_token("external-1", email="who@example.com"))
    assert client.get("/tasks").status_code == 200
    trusting.database.sql("UPDATE users SET disabled_at = now() WHERE id = 'external-1'")
    for path in ("/tasks", "/api/external-1/tasks", "/auth/me"):
        refused = client.get(path)
        assert refused.status_code == 401
        (line,) = trusting.service.lines(event="auth.denied", request_id=refused.headers["X-Request-ID"])
        assert line["reason"] == "revoked"
    assert client.post("/tasks", json={"title": "No"}).status_code == 401
    trusting.database.sql("UPDATE users SET disabled_at = NULL WHERE id = 'external-1'")
    assert client.get("/tasks").json() == []
