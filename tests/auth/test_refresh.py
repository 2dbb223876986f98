"""`POST /auth/refresh`: a token is good for three uses in ten seconds; a later use ends the session."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import httpx2
import pytest

from tests.conftest import Postgres
from tests.service import PASSWORD, Account, Service, program_with
from tests.waiting import until

TABS = 50
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


def refresh(service: Service, refresh_token: Any, **headers: str) -> httpx2.Response:
    """Refresh as a client that sends no access token."""
    client = service.client(headers=headers)
    return client.post("/auth/refresh", json={"refresh_token": refresh_token})


def renew(service: Service, refresh_token: str) -> dict[str, Any]:
    response = refresh(service, refresh_token)
    assert response.status_code == 200, response.text
    tokens: dict[str, Any] = response.json()
    return tokens


def works(service: Service, access_token: str) -> bool:
    response = service.client(access_token).get("/tasks")
    assert response.is_success or response.json()["code"] == "token_revoked"
    return response.is_success


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def let_pass(database: Postgres, token: str, seconds: float) -> None:
    """Backdate the use of a spent token by so many seconds."""
    earlier = "(spent_at AT TIME ZONE 'UTC' - $2::interval) AT TIME ZONE 'UTC'"  # as Citus takes it
    change = f"UPDATE refresh_tokens SET spent_at = {earlier} WHERE digest = $1 RETURNING 1"  # noqa: S608
    assert database.sql(change, digest(token), timedelta(seconds=seconds))


def session_of(database: Postgres, account: Account) -> dict[str, Any]:
    (row,) = database.sql("SELECT * FROM sessions WHERE user_id = $1", account.id)
    return row


def set_times(database: Postgres, account: Account, *, created_at: datetime, expires_at: datetime) -> None:
    change = "UPDATE sessions SET created_at = $2, expires_at = $3 WHERE user_id = $1"
    database.sql(change, account.id, created_at, expires_at)


# Rotation


def test_a_refresh_token_gets_new_tokens_for_the_same_session(
    service: Service, ada: Account, database: Postgres
) -> None:
    before = session_of(database, ada)
    response = refresh(service, ada.tokens["refresh_token"], **{"User-Agent": "Another browser"})
    tokens = response.json()
    assert (response.status_code, response.headers["Cache-Control"]) == (200, "no-store")
    assert set(tokens) == set(ada.tokens)
    for name in ("access_token", "refresh_token"):
        assert tokens[name] != ada.tokens[name]
    for name in ("token_type", "expires_in", "user"):
        assert tokens[name] == ada.tokens[name]
    assert works(service, tokens["access_token"])
    after = session_of(database, ada)
    assert (after["id"], after["created_at"]) == (before["id"], before["created_at"])
    assert after["last_used_at"] > before["last_used_at"]
    assert after["user_agent"] == "Another browser"


def test_older_access_tokens_go_on(service: Service, ada: Account) -> None:
    token = ada.tokens["refresh_token"]
    for _ in range(3):
        token = renew(service, token)["refresh_token"]
    assert works(service, ada.tokens["access_token"])


def test_the_same_token_three_times_within_ten_seconds_is_good_three_times(
    service: Service, ada: Account, database: Postgres
) -> None:
    pairs = [renew(service, ada.tokens["refresh_token"])]
    for _ in range(2):
        let_pass(database, ada.tokens["refresh_token"], 4)
        pairs.append(renew(service, ada.tokens["refresh_token"]))
    for tokens in pairs:
        assert works(service, tokens["access_token"])
        assert works(service, renew(service, tokens["refresh_token"])["access_token"])


def test_a_second_use_does_not_start_the_ten_seconds_anew(
    service: Service, ada: Account, database: Postgres
) -> None:
    for _ in range(2):
        renew(service, ada.tokens["refresh_token"])
        let_pass(database, ada.tokens["refresh_token"], 6)
    assert refresh(service, ada.tokens["refresh_token"]).status_code == 401


def test_each_use_but_the_first_is_logged_as_a_warning(service: Service, ada: Account) -> None:
    for _ in range(3):
        renew(service, ada.tokens["refresh_token"])
    lines = service.lines(event="auth.refreshed", user_id=ada.id)
    assert [(line["level"], line.get("within_grace")) for line in lines] == [
        ("INFO", None),
        ("WARNING", True),
        ("WARNING", True),
    ]


def test_a_fourth_use_within_ten_seconds_is_refused_and_changes_nothing(
    service: Service, ada: Account, database: Postgres
) -> None:
    pairs = [renew(service, ada.tokens["refresh_token"]) for _ in range(3)]
    before = session_of(database, ada)
    response = refresh(service, ada.tokens["refresh_token"], **{"User-Agent": "A fourth"})
    assert (response.status_code, response.json()["code"]) == (401, "invalid_refresh_token")
    assert session_of(database, ada) == before
    assert service.lines(event="auth.refresh_reused", user_id=ada.id) == []
    for tokens in pairs:
        assert works(service, tokens["access_token"])
        assert works(service, renew(service, tokens["refresh_token"])["access_token"])


def test_of_fifty_uses_at_once_three_get_working_pairs(
    service: Service, ada: Account, database: Postgres
) -> None:
    ready, session_id = Barrier(TABS), session_of(database, ada)["id"]

    def tab(_: int) -> httpx2.Response:
        client = service.client()
        ready.wait(60)
        return client.post("/auth/refresh", json={"refresh_token": ada.tokens["refresh_token"]})

    with ThreadPoolExecutor(TABS) as threads:
        answers = list(threads.map(tab, range(TABS)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [401] * (TABS - 3)
    pairs = [answer.json() for answer in answers if answer.is_success]
    for name in ("access_token", "refresh_token"):
        assert len({tokens[name] for tokens in pairs}) == len(pairs)
    for tokens in pairs:
        assert works(service, tokens["access_token"])
        assert works(service, renew(service, tokens["refresh_token"])["access_token"])
    assert session_of(database, ada)["id"] == session_id


# Reuse


def test_a_token_used_again_later_ends_the_whole_session(
    service: Service, ada: Account, database: Postgres
) -> None:
    """All later tokens of the session end too, used or not. The 401 does not roll that back."""
    login = {"email": ada.email, "password": PASSWORD}
    elsewhere = service.client().post("/auth/login", json=login).json()
    tokens = [ada.tokens]
    tokens += (renew(service, ada.tokens["refresh_token"]) for _ in range(2))
    tokens.append(renew(service, tokens[-1]["refresh_token"]))
    session_id = ada.client.get("/auth/sessions").json()[0]["id"]
    let_pass(database, ada.tokens["refresh_token"], 11)
    response = refresh(service, ada.tokens["refresh_token"])
    assert (response.status_code, response.json()["code"]) == (401, "invalid_refresh_token")
    for each in tokens:
        assert not works(service, each["access_token"])
        assert refresh(service, each["refresh_token"]).status_code == 401
    assert works(service, elsewhere["access_token"])
    assert works(service, renew(service, elsewhere["refresh_token"])["access_token"])
    (line,) = service.lines(event="auth.refresh_reused", user_id=ada.id)
    assert (line["session_id"], line["level"]) == (session_id, "WARNING")
    assert line["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize("first", ["the thief", "the owner"])
def test_a_stolen_token_is_worth_nothing_once_both_have_used_it(
    service: Service, ada: Account, database: Postgres, first: str
) -> None:
    """RFC 9700 section 4.14.2: the server cannot tell which of the two clients stole the token."""
    stolen = ada.tokens["refresh_token"]
    agents = ["thief", "owner"] if first == "the thief" else ["owner", "thief"]
    won = refresh(service, stolen, **{"User-Agent": agents[0]}).json()
    for _ in range(2):
        won = renew(service, won["refresh_token"])
    let_pass(database, stolen, 60)
    assert works(service, won["access_token"])
    assert refresh(service, stolen, **{"User-Agent": agents[1]}).status_code == 401
    assert not works(service, won["access_token"])
    assert not works(service, ada.tokens["access_token"])
    assert refresh(service, won["refresh_token"]).status_code == 401
    assert database.sql("SELECT FROM sessions WHERE user_id = $1", ada.id) == []


# Invalid refresh tokens

UNKNOWN: dict[str, Callable[[Account], str]] = {
    "never given out": lambda _: "x" * 43,
    "empty": lambda _: "",
    "cut short": lambda ada: str(ada.tokens["refresh_token"][:-1]),
    "with a space": lambda ada: f"{ada.tokens['refresh_token']} ",
    "with NUL": lambda ada: f"{ada.tokens['refresh_token']}\0",
    "beyond ASCII": lambda _: "é\u2028👩",
    "very long": lambda _: "x" * 60_000,
    "an access token": lambda ada: str(ada.tokens["access_token"]),
    "its own digest": lambda ada: digest(ada.tokens["refresh_token"]).hex(),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_token_is_refused_and_ends_nothing(service: Service, ada: Account, case: str) -> None:
    response = refresh(service, UNKNOWN[case](ada))
    assert (response.status_code, response.json()["code"]) == (401, "invalid_refresh_token")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert works(service, renew(service, ada.tokens["refresh_token"])["access_token"])


@pytest.mark.parametrize("value", [None, 7, ["x"], {}])
def test_what_is_no_text_is_not_valid(service: Service, value: Any) -> None:
    response = refresh(service, value)
    assert (response.status_code, response.json()["code"]) == (400, "validation_error")
    assert [error["field"] for error in response.json()["errors"]] == ["refresh_token"]


def test_an_expired_or_ended_session_cannot_be_refreshed(
    service: Service, ada: Account, bob: Account, database: Postgres
) -> None:
    now = datetime.now(UTC)
    set_times(database, ada, created_at=now - MINUTE, expires_at=now)
    bob.client.post("/auth/logout")
    for account in (ada, bob):
        response = refresh(service, account.tokens["refresh_token"])
        assert (response.status_code, response.json()["code"]) == (401, "invalid_refresh_token")
        assert not works(service, account.tokens["access_token"])


# The lifetime of a session


def is_about(moment: datetime, expected: datetime) -> bool:
    return abs(moment - expected) < MINUTE


@pytest.mark.parametrize(
    ("age_days", "left_days"),
    [
        pytest.param(0, 14, id="new"),
        pytest.param(10, 14, id="of middle age"),
        pytest.param(16, 14, id="as idle as it may be until its end"),
        pytest.param(20, 10, id="old"),
        pytest.param(29, 1, id="on its last day"),
    ],
)
def test_a_refresh_lengthens_a_session_up_to_its_end(
    service: Service, ada: Account, database: Postgres, age_days: int, left_days: int
) -> None:
    """`SESSION_IDLE_DAYS` from now, but never past `SESSION_DAYS` from the sign-in."""
    now = datetime.now(UTC)
    assert is_about(session_of(database, ada)["expires_at"], now + 14 * DAY)
    set_times(database, ada, created_at=now - age_days * DAY, expires_at=now + MINUTE)
    renew(service, ada.tokens["refresh_token"])
    assert is_about(session_of(database, ada)["expires_at"], now + left_days * DAY)


def test_the_settings_say_how_long(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    database = new_database()
    service = new_service(DATABASE_URL=database.url, SESSION_DAYS="3", SESSION_IDLE_DAYS="5")
    ada, now = service.register(), datetime.now(UTC)
    assert is_about(session_of(database, ada)["expires_at"], now + 3 * DAY)
    set_times(database, ada, created_at=now - 2 * DAY, expires_at=now + MINUTE)
    renew(service, ada.tokens["refresh_token"])
    assert is_about(session_of(database, ada)["expires_at"], now + 1 * DAY)


def expire(database: Postgres, account: Account, number: int) -> list[bytes]:
    """Add sessions that have expired; return the digests of their refresh tokens."""
    make = (
        "WITH made AS (INSERT INTO sessions (user_id, id, expires_at) SELECT $1, gen_random_uuid(), $2 "
        "FROM generate_series(1, $3) RETURNING user_id, id) INSERT INTO refresh_tokens "
        "(user_id, digest, session_id) SELECT user_id, uuid_send(id), id FROM made RETURNING digest"
    )
    rows = database.sql(make, account.id, datetime(2001, 2, 3, tzinfo=UTC), number)
    return [row["digest"] for row in rows]


def test_the_expired_sessions_of_a_user_go_when_they_sign_in(
    service: Service, ada: Account, database: Postgres
) -> None:
    """Their refresh tokens go too. Live sessions stay."""
    made = expire(database, ada, 15)
    answer = service.client().post("/auth/login", json={"email": ada.email, "password": PASSWORD})
    assert answer.is_success, answer.text
    assert len(database.sql("SELECT FROM sessions WHERE user_id = $1", ada.id)) == 2
    assert database.sql("SELECT FROM refresh_tokens WHERE digest = ANY($1)", made) == []
    assert works(service, ada.tokens["access_token"])


def test_the_expired_sessions_of_all_users_are_swept_after_a_sign_in(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    """The sweep includes users who never return. It runs hourly, but at once in this test."""
    database = new_database()
    program = program_with("backend.auth.sessions.sweep.SWEEP_SECONDS = 0")
    service = new_service(program=program, DATABASE_URL=database.url)
    users = [service.register() for _ in range(3)]
    for user in users[1:]:
        expire(database, user, 150)
    login = {"email": users[0].email, "password": PASSWORD}
    service.client().post("/auth/login", json=login).raise_for_status()
    left = "SELECT FROM sessions WHERE expires_at < now()"
    until(lambda: not database.sql(left))
    assert all(works(service, user.tokens["access_token"]) for user in users)


def test_a_refresh_token_of_before_the_migration_that_names_no_user_still_refreshes(
    service: Service, ada: Account, database: Postgres
) -> None:
    older = "x" * 43
    database.sql("UPDATE refresh_tokens SET digest = $2 WHERE user_id = $1", ada.id, digest(older))
    renewed = renew(service, older)
    assert renewed["user"]["id"] == ada.id
    assert renew(service, renewed["refresh_token"])["user"]["id"] == ada.id
    assert refresh(service, "y" * 43).json()["code"] == "invalid_refresh_token"


def test_a_refresh_token_with_another_users_id_is_none(service: Service, ada: Account, bob: Account) -> None:
    token = bob.id + ada.tokens["refresh_token"][-43:]
    assert refresh(service, token).json()["code"] == "invalid_refresh_token"
    assert works(service, ada.tokens["access_token"])
    assert works(service, bob.tokens["access_token"])


# Storage of the token


def test_tokens_spent_longer_ago_than_a_session_may_be_idle_are_pruned(
    service: Service, ada: Account, database: Postgres
) -> None:
    """Later tokens stay, because a client may still send one and its reuse must end the session."""
    chain = [ada.tokens["refresh_token"]]
    for _ in range(3):
        chain.append(renew(service, chain[-1])["refresh_token"])
    for token, days in zip(chain, (15, 14, 13), strict=False):
        let_pass(database, token, (days * DAY).total_seconds())
    newest = renew(service, chain[-1])
    kept = "SELECT digest FROM refresh_tokens WHERE user_id = $1"
    digests = {row["digest"] for row in database.sql(kept, ada.id)}
    assert digests == {digest(token) for token in (*chain[2:], newest["refresh_token"])}
    assert refresh(service, chain[0]).status_code == 401
    assert works(service, newest["access_token"])
    assert refresh(service, chain[2]).status_code == 401
    assert not works(service, newest["access_token"])


def test_a_refresh_token_is_known_by_its_sha256_alone(
    service: Service, ada: Account, database: Postgres
) -> None:
    """No column of any table has the token, before or after its use."""
    tokens = [ada.tokens["refresh_token"], renew(service, ada.tokens["refresh_token"])["refresh_token"]]
    rows = database.sql("SELECT digest FROM refresh_tokens WHERE user_id = $1", ada.id)
    assert {row["digest"] for row in rows} == {digest(token) for token in tokens}
    names = "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'"
    select = "SELECT t::text FROM {} t"
    for table in database.sql(names):
        text = str(database.sql(select.format(table["name"])))
        for token in tokens:
            assert token[:-43] == ada.id  # 256 bits in base64url follow
            assert token[-43:] not in text
            assert token.encode().hex() not in text
