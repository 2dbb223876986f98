"""`/auth/sessions`: lists and ends the sessions of the caller, who has at most a hundred."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier, Thread
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.conftest import Postgres
from tests.service import JWT_SECRET, PASSWORD, Account, Service, running
from tests.test_statements import WARM_UP, Proxy

SIGN_INS = 20


def sign_in(service: Service, account: Account, user_agent: str | None = None) -> httpx2.Client:
    """Sign in once more, with a client that speaks for the new session."""
    headers = {"User-Agent": user_agent} if user_agent else {}
    client = service.client(headers=headers)
    response = client.post("/auth/login", json={"email": account.email, "password": PASSWORD})
    assert response.status_code == 200, response.text
    client.headers["Authorization"] = f"Bearer {response.json()['access_token']}"
    return client


def sessions(client: httpx2.Client) -> list[dict[str, Any]]:
    response = client.get("/auth/sessions")
    assert response.status_code == 200, response.text
    listed: list[dict[str, Any]] = response.json()
    return listed


def current(client: httpx2.Client) -> str:
    (session,) = (session for session in sessions(client) if session["current"])
    return str(session["id"])


def is_over(client: httpx2.Client) -> bool:
    response = client.get("/tasks")
    assert response.is_success or response.json()["code"] == "token_revoked"
    return response.is_error


# The list


def test_the_list_tells_where_one_is_signed_in(service: Service, ada: Account, bob: Account) -> None:
    before = datetime.now(UTC)
    clients = {name: sign_in(service, ada, name) for name in ("A browser", "A telephone")}
    response = clients["A browser"].get("/auth/sessions")
    assert response.headers["Cache-Control"] == "no-store"
    newest, middle, oldest = response.json()
    assert (newest["user_agent"], middle["user_agent"]) == ("A telephone", "A browser")
    assert [session["current"] for session in (newest, middle, oldest)] == [False, True, False]
    for session in (newest, middle):
        names = {"id", "created_at", "last_used_at", "expires_at", "user_agent", "ip", "current"}
        assert set(session) == names
        assert session["ip"] == "127.0.0.1"
        assert all(session[name].endswith("Z") for name in ("created_at", "last_used_at", "expires_at"))
        created = datetime.fromisoformat(session["created_at"])
        assert before - timedelta(seconds=1) < created < before + timedelta(minutes=1)
        assert datetime.fromisoformat(session["expires_at"]) == created + timedelta(days=14)
        assert session["last_used_at"] == session["created_at"]
    assert newest["id"] == current(clients["A telephone"])
    assert current(bob.client) not in {session["id"] for session in response.json()}


def test_a_refresh_is_a_use(service: Service, ada: Account) -> None:
    sign_in(service, ada)
    refreshing = {"refresh_token": ada.tokens["refresh_token"]}
    service.client().post("/auth/refresh", json=refreshing, headers={"User-Agent": "Now here"})
    first = sessions(ada.client)[0]
    assert (first["current"], first["user_agent"]) == (True, "Now here")
    assert first["last_used_at"] > first["created_at"]


def test_a_very_long_user_agent_is_cut_and_one_that_is_missing_is_null(
    service: Service, ada: Account
) -> None:
    del (client := service.client()).headers["User-Agent"]
    request = client.build_request("POST", "/auth/login", json={"email": ada.email, "password": PASSWORD})
    request.headers.pop("User-Agent", None)
    assert client.send(request).status_code == 200
    sign_in(service, ada, "x" * 5000)
    assert [session["user_agent"] for session in sessions(ada.client)][:2] == ["x" * 400, None]


def test_an_expired_session_is_not_listed_and_not_there_to_be_ended(
    service: Service, ada: Account, database: Postgres
) -> None:
    session_id = current(sign_in(service, ada))
    database.sql("UPDATE sessions SET expires_at = now() WHERE id = $1::text::uuid", session_id)
    assert [session["current"] for session in sessions(ada.client)] == [True]
    assert ada.client.delete(f"/auth/sessions/{session_id}").status_code == 404


# Ending sessions


def test_one_session_is_ended_and_no_other(service: Service, ada: Account) -> None:
    telephone, tablet = sign_in(service, ada), sign_in(service, ada)
    ended = current(telephone)
    response = ada.client.delete(f"/auth/sessions/{ended}")
    assert (response.status_code, response.content) == (204, b"")
    assert [is_over(client) for client in (ada.client, telephone, tablet)] == [False, True, False]
    assert ended not in {session["id"] for session in sessions(ada.client)}
    again = ada.client.delete(f"/auth/sessions/{ended}")
    assert (again.status_code, again.json()["code"]) == (404, "session_not_found")


def test_ones_own_session_can_be_ended_by_name(service: Service, ada: Account) -> None:
    other = sign_in(service, ada)
    assert ada.client.delete(f"/auth/sessions/{current(ada.client)}").status_code == 204
    assert (is_over(ada.client), is_over(other)) == (True, False)


def test_all_other_sessions_are_ended_and_this_one_goes_on(
    service: Service, ada: Account, bob: Account
) -> None:
    others = [sign_in(service, ada) for _ in range(3)]
    response = ada.client.delete("/auth/sessions")
    assert (response.status_code, response.content) == (204, b"")
    assert [is_over(client) for client in others] == [True] * 3
    assert [session["current"] for session in sessions(ada.client)] == [True]
    assert not is_over(bob.client)
    refreshed = service.client().post("/auth/refresh", json={"refresh_token": ada.tokens["refresh_token"]})
    assert refreshed.status_code == 200
    assert ada.client.delete("/auth/sessions").status_code == 204


def test_many_ended_at_once_are_one_line_with_their_number(service: Service, ada: Account) -> None:
    for _ in range(3):
        sign_in(service, ada)
    ada.client.delete("/auth/sessions")
    (line,) = service.lines(event="auth.session_revoked", user_id=ada.id)
    assert (line["count"], line["level"]) == (3, "INFO")
    ada.client.delete("/auth/sessions")
    assert len(service.lines(event="auth.session_revoked", user_id=ada.id)) == 1


@pytest.mark.parametrize("case", ["unknown", "no-id", "1", "somebody else's", "an ended session's"])
def test_a_session_that_is_not_ones_own_is_404_and_goes_on(
    service: Service, ada: Account, bob: Account, case: str
) -> None:
    ended = current(other := sign_in(service, bob))
    other.post("/auth/logout")
    named = {"unknown": str(uuid4()), "somebody else's": current(ada.client), "an ended session's": ended}
    response = bob.client.delete(f"/auth/sessions/{named.get(case, case)}")
    assert (response.status_code, response.json()["code"]) == (404, "session_not_found")
    assert not is_over(ada.client)
    assert not is_over(bob.client)


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("DELETE", "/{}")])
def test_an_ended_session_ends_no_other(service: Service, ada: Account, method: str, path: str) -> None:
    other = sign_in(service, ada)
    target = current(other)
    ada.client.post("/auth/logout")
    response = ada.client.request(method, f"/auth/sessions{path.format(target)}")
    assert (response.status_code, response.json()["code"]) == (401, "token_revoked")
    assert not is_over(other)


def test_it_holds_at_once_on_another_process(
    service: Service, new_service: Callable[..., Service], database: Postgres
) -> None:
    """The other process has just used the token. The refresh token is refused too."""
    elsewhere = new_service(DATABASE_URL=database.url)
    for path in ("/auth/sessions", "/auth/sessions/{}"):
        ada = service.register()
        tokens = service.client().post("/auth/login", json={"email": ada.email, "password": PASSWORD}).json()
        other = elsewhere.client(tokens["access_token"])
        assert not is_over(other)
        assert ada.client.delete(path.format(current(other))).status_code == 204
        assert is_over(other)
        refreshing = {"refresh_token": tokens["refresh_token"]}
        assert elsewhere.client().post("/auth/refresh", json=refreshing).status_code == 401


# The limit


def add_sessions(database: Postgres, account: Account, number: int) -> list[str]:
    """Add so many sessions to the account, each last used a minute before the one listed before it."""
    add = (
        "INSERT INTO sessions (id, user_id, expires_at, last_used_at) SELECT gen_random_uuid(), $1, "
        "now() + interval '1 day', now() - interval '1 hour' - n * interval '1 minute' "
        "FROM generate_series(1, $2) n RETURNING id"
    )
    return [str(row["id"]) for row in database.sql(add, account.id, number)]


def test_one_session_beyond_a_hundred_ends_the_one_used_longest_ago(
    service: Service, ada: Account, database: Postgres
) -> None:
    """The session begun longest ago may stay, because a refresh counts as a use."""
    added = add_sessions(database, ada, 99)
    sign_in(service, ada)
    assert {session["id"] for session in sessions(ada.client)}.issuperset(added[:-1])
    assert added[-1] not in {session["id"] for session in sessions(ada.client)}
    assert len(sessions(ada.client)) == 100
    database.sql("UPDATE sessions SET last_used_at = now() WHERE id = $1::text::uuid", added[-2])
    newest = sign_in(service, ada)
    left = {session["id"] for session in sessions(newest)}
    assert (len(left), added[-2] in left, added[-3] in left) == (100, True, False)
    lines = service.lines(event="auth.session_revoked", user_id=ada.id)
    assert [line["count"] for line in lines] == [1, 1]


def test_the_sessions_of_others_and_expired_ones_do_not_count(
    service: Service, ada: Account, bob: Account, database: Postgres
) -> None:
    add_sessions(database, bob, 99)
    oldest = add_sessions(database, ada, 130)[-1]  # more of them expired than a sign-in sweeps
    expire = (
        "UPDATE sessions SET expires_at = now() WHERE user_id = $1 AND last_used_at > now() - $2::interval"
    )
    database.sql(expire, ada.id, timedelta(minutes=100))
    newest = sign_in(service, ada)
    assert oldest in {session["id"] for session in sessions(newest)}
    assert len(sessions(bob.client)) == 100


def test_a_hundred_is_the_most_also_of_many_sign_ins_at_once(
    service: Service, ada: Account, database: Postgres
) -> None:
    add_sessions(database, ada, 95)
    ready = Barrier(SIGN_INS)

    def come(_: int) -> int:
        client = service.client()
        ready.wait(60)
        return client.post("/auth/login", json={"email": ada.email, "password": PASSWORD}).status_code

    with ThreadPoolExecutor(SIGN_INS) as threads:
        assert list(threads.map(come, range(SIGN_INS))) == [200] * SIGN_INS
    assert len(database.sql("SELECT FROM sessions WHERE user_id = $1", ada.id)) == 100


# The number of statements


@pytest.fixture
def proxy(new_database: Callable[[], Postgres]) -> Iterator[Proxy]:
    """A proxy before a database of its own that counts what is sent to it."""
    proxy = Proxy(new_database())
    thread = Thread(target=proxy.serve)
    thread.start()
    yield proxy
    proxy.close()
    thread.join(10)


def test_a_request_that_succeeds_is_one_statement_and_one_round_trip(proxy: Proxy, tmp_path: Path) -> None:
    """The check of the session is part of it; a refresh checks no session but its own.

    A sign-in reads the email's owner and their account, and begins the session.
    """
    settings = {"DATABASE_URL": proxy.url, "JWT_SECRET": JWT_SECRET, "DATABASE_POOL_SIZE": "1"}
    with running(tmp_path / "log", **settings) as service:
        for _ in range(WARM_UP + 1):
            ada = service.register()
            target, refreshing = (
                current(sign_in(service, ada)),
                {"refresh_token": ada.tokens["refresh_token"]},
            )
            requests: list[tuple[str, str, Any]] = [
                ("GET", "/auth/sessions", None),
                ("DELETE", f"/auth/sessions/{target}", None),
                ("DELETE", "/auth/sessions", None),
                ("POST", "/auth/refresh", refreshing),
                ("POST", "/auth/login", {"email": ada.email, "password": PASSWORD}),
            ]
            costs = []
            for method, path, body in requests:
                proxy.forget()
                assert ada.client.request(method, path, json=body).is_success
                costs.append((len(proxy.sent), proxy.round_trips))
        assert costs == [(1, 1)] * 4 + [(3, 3)]
