"""`POST /auth/password` and `DELETE /auth/me`: both need the password, and end sessions in a race too."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Event
from typing import Any

import asyncpg
import httpx2
import pytest

from backend.database.url import connect_arguments
from tests.conftest import Postgres
from tests.database.citus import ACTIVITY
from tests.service import PASSWORD, Account, Service

NEW = "a new horse, another battery"
WRONG: dict[str, str] = {
    "another": "a wrong password",
    "empty": "",
    "in other letters": PASSWORD.upper(),
    "too long": "x" * 129,
    "far too long": "x" * 60_000,
    "NUL": f"{PASSWORD}\0",
}


def change(account: Account, *, current: Any = PASSWORD, new: Any = NEW) -> httpx2.Response:
    data = {"current_password": current, "new_password": new}
    return account.client.post("/auth/password", json=data)


def delete(account: Account, password: Any = PASSWORD) -> httpx2.Response:
    return account.client.request("DELETE", "/auth/me", json={"password": password})


def login(service: Service, account: Account, password: str = PASSWORD) -> httpx2.Response:
    return service.client().post("/auth/login", json={"email": account.email, "password": password})


def refresh(service: Service, tokens: dict[str, Any]) -> httpx2.Response:
    return service.client().post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})


def status(service: Service, tokens: dict[str, Any]) -> int:
    return service.client(tokens["access_token"]).get("/tasks").status_code


def refusal(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


# The password


def test_a_new_password_is_answered_with_tokens_and_is_the_only_one_from_then_on(
    service: Service, ada: Account, database: Postgres
) -> None:
    response = change(ada)
    tokens = response.json()
    assert (response.status_code, response.headers["Cache-Control"]) == (200, "no-store")
    assert set(tokens) == set(ada.tokens)
    assert tokens["user"] == ada.tokens["user"]
    assert status(service, tokens) == 200
    assert refusal(login(service, ada)) == (401, "invalid_credentials")
    assert login(service, ada, NEW).status_code == 200
    (row,) = database.sql("SELECT password_hash FROM users WHERE id = $1", ada.id)
    assert row["password_hash"].startswith("$bcrypt-sha256$v=2,t=2b,r=4$")


def test_every_other_session_ends_and_this_one_goes_on(service: Service, ada: Account, bob: Account) -> None:
    """Its older access tokens work until they expire. The response has its new refresh token."""
    others = [login(service, ada).json() for _ in range(2)]
    (mine,) = (each["id"] for each in ada.client.get("/auth/sessions").json() if each["current"])
    tokens = change(ada).json()
    for other in others:
        assert status(service, other) == 401
        assert refusal(refresh(service, other)) == (401, "invalid_refresh_token")
    assert [status(service, each) for each in (tokens, ada.tokens, bob.tokens)] == [200] * 3
    (session,) = ada.client.get("/auth/sessions").json()
    assert (session["id"], session["current"]) == (mine, True)
    renewed = refresh(service, tokens)
    assert (renewed.status_code, status(service, renewed.json())) == (200, 200)


def test_the_old_refresh_token_works_no_more_from_the_first_moment(service: Service, ada: Account) -> None:
    """The grace for two tabs does not apply, because the change must lock out a holder of the old token."""
    tokens = change(ada).json()
    assert refusal(refresh(service, ada.tokens)) == (401, "invalid_refresh_token")
    assert (status(service, tokens), refresh(service, tokens).status_code) == (200, 200)


def test_a_token_that_was_spent_just_before_the_change_has_no_grace_after_it(
    service: Service, ada: Account
) -> None:
    issued = [ada.tokens, *(refresh(service, ada.tokens).json() for _ in range(2))]
    issued.append(refresh(service, issued[-1]).json())
    tokens = change(ada).json()
    for old in issued:
        assert refusal(refresh(service, old)) == (401, "invalid_refresh_token")
    assert [status(service, each) for each in (*issued, tokens)] == [200] * 5
    assert refresh(service, tokens).status_code == 200


def test_the_log_tells_how_many_sessions_a_change_ended(service: Service, ada: Account) -> None:
    for _ in range(3):
        login(service, ada)
    change(ada)
    (line,) = service.lines(event="auth.password_changed", user_id=ada.id)
    assert line["sessions_ended"] == 3
    assert service.lines(event="auth.session_revoked", user_id=ada.id) == []


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_password_is_403_and_changes_nothing(service: Service, ada: Account, case: str) -> None:
    other, task = login(service, ada).json(), ada.create()
    for response in (change(ada, current=WRONG[case]), delete(ada, WRONG[case])):
        assert refusal(response) == (403, "wrong_password")
        (line,) = service.lines(request_id=response.headers["X-Request-ID"], event="auth.denied")
        assert (line["reason"], line["user_id"]) == ("wrong_password", ada.id)
    assert ada.client.get("/tasks").json() == [task]
    assert status(service, other) == 200
    assert refresh(service, ada.tokens).status_code == 200
    assert login(service, ada).status_code == 200


@pytest.mark.parametrize(
    ("new", "kind"),
    [
        pytest.param("short", "string_too_short", id="too short"),
        pytest.param("x7" * 64 + "x", "string_too_long", id="too long"),
        pytest.param("PassWord1", "password_common", id="common"),
        pytest.param("", "string_too_short", id="empty"),
        pytest.param(12345678, "string_type", id="a number"),
        pytest.param(None, "string_type", id="null"),
    ],
)
def test_a_new_password_keeps_the_rules(service: Service, ada: Account, new: Any, kind: str) -> None:
    response = change(ada, new=new)
    assert refusal(response) == (400, "validation_error")
    assert [(each["field"], each["type"]) for each in response.json()["errors"]] == [("new_password", kind)]
    assert login(service, ada).status_code == 200


def test_a_new_password_is_not_the_email(ada: Account) -> None:
    (error,) = change(ada, new=ada.email.upper()).json()["errors"]
    assert (error["field"], error["type"]) == ("new_password", "password_is_email")


@pytest.mark.parametrize("missing", ["current_password", "new_password"])
def test_both_passwords_are_required(ada: Account, missing: str) -> None:
    data = {"current_password": PASSWORD, "new_password": NEW}
    del data[missing]
    response = ada.client.post("/auth/password", json=data)
    assert refusal(response) == (400, "validation_error")
    assert [error["field"] for error in response.json()["errors"]] == [missing]


# The end of an account


def test_a_deleted_account_leaves_nothing_behind(
    service: Service, ada: Account, bob: Account, database: Postgres
) -> None:
    others, kept = login(service, ada).json(), bob.create()
    ada.create()
    response = delete(ada)
    assert (response.status_code, response.content) == (204, b"")
    for tokens in (ada.tokens, others):
        assert refusal(service.client(tokens["access_token"]).get("/tasks")) == (401, "token_revoked")
        assert refusal(refresh(service, tokens)) == (401, "invalid_refresh_token")
    assert refusal(login(service, ada)) == (401, "invalid_credentials")
    assert database.sql("SELECT FROM users WHERE id = $1", ada.id) == []
    select = "SELECT FROM {} WHERE user_id = $1"
    for table in ("sessions", "tasks", "known_addresses"):
        assert database.sql(select.format(table), ada.id) == []
    orphans = "SELECT FROM refresh_tokens WHERE session_id NOT IN (SELECT id FROM sessions)"
    assert database.sql(orphans) == []
    assert bob.client.get("/tasks").json() == [kept]


def test_the_email_of_a_deleted_account_is_free_and_finds_nothing_of_it(
    service: Service, ada: Account
) -> None:
    ada.create()
    assert delete(ada).status_code == 204
    again = service.register(email=ada.email)
    assert again.id != ada.id
    assert again.client.get("/tasks").json() == []
    assert status(service, ada.tokens) == 401


def test_both_hold_at_once_on_another_process(
    service: Service, new_service: Callable[..., Service], database: Postgres
) -> None:
    elsewhere = new_service(DATABASE_URL=database.url)
    for end in (change, delete):
        ada = service.register()
        other = login(service, ada).json()
        assert status(elsewhere, other) == 200
        assert end(ada).is_success
        assert status(elsewhere, other) == 401
        assert login(elsewhere, ada).status_code == 401


# Races


def test_of_several_changes_at_once_one_counts_and_its_password_is_right(
    service: Service, ada: Account, database: Postgres
) -> None:
    """The others are refused, because their current password is no longer right."""
    clients = [ada, *(Account(_signed_in(service, ada), ada.email, ada.tokens) for _ in range(4))]
    passwords = [f"{NEW}, number {number}" for number in range(len(clients))]
    ready = Barrier(len(clients))

    def send(account: Account, new: str) -> httpx2.Response:
        ready.wait(30)
        return change(account, new=new)

    with ThreadPoolExecutor(len(clients)) as threads:
        answers = list(threads.map(send, clients, passwords))
    (won,) = (number for number, answer in enumerate(answers) if answer.is_success)
    assert {refusal(answer) for answer in answers if answer.is_error} <= {
        (403, "wrong_password"),
        (401, "token_revoked"),
    }
    signed_in = [login(service, ada, password).is_success for password in passwords]
    assert signed_in == [number == won for number in range(len(clients))]
    assert not login(service, ada).is_success
    assert status(service, answers[won].json()) == 200
    # The session of the successful change, and that of the sign-in above.
    assert len(database.sql("SELECT FROM sessions WHERE user_id = $1", ada.id)) == 2


@pytest.mark.parametrize("late", [change, delete])
def test_a_password_that_is_changed_meanwhile_is_wrong(
    ada: Account, database: Postgres, threads: ThreadPoolExecutor, late: Callable[[Account], httpx2.Response]
) -> None:
    with held(database, "SELECT FROM users WHERE id = $1", ada.id):
        first = threads.submit(change, ada)
        assert has_stopped(database, first, 1)
        second = threads.submit(late, ada)
        assert has_stopped(database, second, 2)
    assert first.result().status_code == 200
    assert refusal(second.result()) == (403, "wrong_password")


def _signed_in(service: Service, account: Account) -> httpx2.Client:
    return service.client(login(service, account).json()["access_token"])


@contextmanager
def held(database: Postgres, select: str, *values: Any) -> Iterator[None]:
    """Lock the rows of a `SELECT … FOR UPDATE`, so that a request that needs them waits midway."""
    with done_at_the_end(database, f"{select} FOR UPDATE", *values):
        yield


@contextmanager
def done_at_the_end(database: Postgres, statement: str, *values: Any) -> Iterator[None]:
    """Run a statement that returns rows, and commit it at the end of the block."""
    with asyncio.Runner() as runner:
        connection = runner.run(_connect(database))
        try:
            runner.run(connection.execute("BEGIN"))
            assert runner.run(connection.fetch(statement, *values))
            yield
            runner.run(connection.execute("COMMIT"))
        finally:
            runner.run(connection.close())


async def _connect(database: Postgres) -> Any:
    return await asyncpg.connect(**connect_arguments(database.url))


def has_stopped(
    database: Postgres, request: Future[httpx2.Response], waiting: int, seconds: float = 20
) -> bool:
    """Return True if the request waits for a lock, False if it has ended."""
    waiting_now = "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    blocked = f"SELECT FROM {ACTIVITY} {waiting_now}"  # a name of ours
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not request.done():
        if len(database.sql(blocked)) >= waiting:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that wait for each other."""
    with ThreadPoolExecutor(2) as threads:
        yield threads


NEWEST_SESSION = "SELECT FROM sessions WHERE user_id = $1 ORDER BY created_at DESC LIMIT 1"
ADDRESSES = "SELECT FROM known_addresses WHERE user_id = $1"


def late_login(service: Service) -> Callable[[Account], httpx2.Response]:
    return lambda account: login(service, account)


@pytest.mark.parametrize("first", ["the change", "the sign-in"])
def test_a_sign_in_by_the_old_password_does_not_outlive_the_change(
    service: Service, ada: Account, database: Postgres, threads: ThreadPoolExecutor, first: str
) -> None:
    """Each of the two is once stopped midway while the other runs to its end."""
    other = login(service, ada).json()
    rows, before, after = {
        "the change": (NEWEST_SESSION, change, late_login(service)),
        "the sign-in": (ADDRESSES, late_login(service), change),
    }[first]
    with held(database, rows, ada.id):
        early = threads.submit(before, ada)
        assert has_stopped(database, early, 1)
        late = threads.submit(after, ada)
        has_stopped(database, late, 2, seconds=2)
    sign_in, changed = (late, early) if first == "the change" else (early, late)
    assert changed.result().status_code == 200
    assert sign_in.result().status_code in {200, 401}
    if sign_in.result().is_success:
        assert status(service, sign_in.result().json()) == 401
    assert status(service, other) == 401
    assert status(service, changed.result().json()) == 200


TOKENS = "SELECT FROM refresh_tokens WHERE user_id = $1 ORDER BY created_at LIMIT 1"


@pytest.mark.parametrize("first", ["the change", "the refresh"])
def test_a_refresh_that_meets_a_change_gets_nothing_that_outlives_it(
    service: Service, ada: Account, database: Postgres, threads: ThreadPoolExecutor, first: str
) -> None:
    """Each of the two is once stopped midway while the other arrives."""
    login(service, ada)
    rows, before, after = {
        "the change": (NEWEST_SESSION, change, late_refresh(service)),
        "the refresh": (f"{TOKENS} FOR UPDATE OF refresh_tokens", late_refresh(service), change),
    }[first]
    with done_at_the_end(database, f"{rows}{' FOR UPDATE' * ('FOR' not in rows)}", ada.id):
        early = threads.submit(before, ada)
        assert has_stopped(database, early, 1)
        late = threads.submit(after, ada)
        has_stopped(database, late, 2, seconds=2)
    refreshed, changed = (late, early) if first == "the change" else (early, late)
    assert changed.result().status_code == 200
    assert refreshed.result().status_code == (401 if first == "the change" else 200)
    if refreshed.result().is_success:
        assert refusal(refresh(service, refreshed.result().json())) == (401, "invalid_refresh_token")
    assert refusal(refresh(service, ada.tokens)) == (401, "invalid_refresh_token")
    assert refresh(service, changed.result().json()).status_code == 200


def late_refresh(service: Service) -> Callable[[Account], httpx2.Response]:
    return lambda account: refresh(service, account.tokens)


RACE_SECONDS = 1
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
ENDS: dict[str, Callable[[Account], httpx2.Response]] = {
    "a change of the password": lambda ada: change(ada, new=PASSWORD),
    "the end of the session": lambda ada: ada.client.post("/auth/logout"),
    "the end of the others": lambda ada: ada.client.delete("/auth/sessions"),
    "the end of the account": delete,
}


@pytest.mark.parametrize("case", ENDS)
def test_no_refresh_token_issued_before_an_end_works_after_it(
    service: Service, database: Postgres, case: str
) -> None:
    """Two tabs of one session and another session refresh in tight loops, while sessions end one by one."""
    before, until = database.sql(DEADLOCKS), time.monotonic() + RACE_SECONDS
    rounds = 0
    while time.monotonic() < until or rounds < 3:
        ada, rounds = service.register(), rounds + 1
        other = login(service, ada).json()
        own = [] if case == "the end of the others" else [ada.tokens, ada.tokens]
        starts = [*own, other] if case != "the end of the session" else own
        started, answered = Barrier(len(starts) + 1), Event()
        with ThreadPoolExecutor(len(starts)) as loops:
            issued = [loops.submit(refresh_on, service, tokens, started, answered) for tokens in starts]
            started.wait(30)
            assert ENDS[case](ada).is_success
            answered.set()
        for tokens in (tokens for loop in issued for tokens in loop.result()):
            assert refresh(service, tokens).status_code == 401
    assert database.sql(DEADLOCKS) == before


def refresh_on(
    service: Service, tokens: dict[str, Any], started: Barrier, answered: Event
) -> list[dict[str, Any]]:
    """Refresh in a loop until a refusal, which must come once the end has been acknowledged."""
    client, issued = service.client(), [tokens]
    issued.append(client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}).json())
    started.wait(30)
    while True:
        was_answered = answered.is_set()
        last = {"refresh_token": issued[-1]["refresh_token"]}
        response = client.post("/auth/refresh", json=last)
        assert response.status_code in ({401} if was_answered else {200, 401}), response.text
        if response.is_error:
            return issued
        issued.append(response.json())


def test_sessions_that_end_each_other_at_once_do_not_deadlock(service: Service, database: Postgres) -> None:
    """Two sessions end all others at once: one continues, and the other gets 401."""
    before = database.sql(DEADLOCKS)
    for _ in range(10):
        ada = service.register()
        clients = [ada.client, *(_signed_in(service, ada) for _ in range(3))]
        ready = Barrier(len(clients))

        def end(client: httpx2.Client, ready: Barrier = ready) -> int:
            ready.wait(30)
            return client.delete("/auth/sessions").status_code

        with ThreadPoolExecutor(len(clients)) as threads:
            answers = list(threads.map(end, clients))
        assert sorted(answers) == [204, 401, 401, 401]
        alive = [client.get("/tasks").status_code == 200 for client in clients]
        assert alive == [answer == 204 for answer in answers]
    assert database.sql(DEADLOCKS) == before


LATE: dict[str, Callable[[Service, Account], httpx2.Response]] = {
    "sign in": login,
    "refresh": lambda service, ada: refresh(service, ada.tokens),
    "create a task": lambda _, ada: ada.client.post("/tasks", json={"title": "Late"}),
    "read": lambda _, ada: ada.client.get("/auth/me"),
    "change the password": lambda _, ada: change(ada),
    "delete": lambda _, ada: delete(ada),
}


@pytest.mark.parametrize("case", LATE)
def test_what_comes_while_an_account_is_deleted_is_done_before_or_401(
    service: Service, ada: Account, database: Postgres, threads: ThreadPoolExecutor, case: str
) -> None:
    ada.create()
    database.sql("DELETE FROM known_addresses WHERE user_id = $1", ada.id)  # a sign-in from elsewhere
    with held(database, "SELECT FROM tasks WHERE user_id = $1", ada.id):
        deleted = threads.submit(delete, ada)
        assert has_stopped(database, deleted, 1)
        late = threads.submit(LATE[case], service, ada)
        has_stopped(database, late, 2, seconds=2)
    assert deleted.result().status_code == 204
    assert late.result().status_code in {200, 201, 401}, late.result().text
    assert database.sql("SELECT FROM users WHERE id = $1", ada.id) == []
    assert database.sql("SELECT FROM tasks WHERE user_id = $1", ada.id) == []


OVERTAKEN: dict[str, Callable[[Account, str], httpx2.Response]] = {
    "edit a task": lambda ada, task: ada.client.patch(task, json={"title": "Late"}),
    "flip a task": lambda ada, task: ada.client.patch(f"{task}/complete"),
    "delete a task": lambda ada, task: ada.client.delete(task),
    "create a task": lambda ada, _: ada.client.post("/tasks", json={"title": "Late"}),
    "change the name": lambda ada, _: ada.client.patch("/auth/me", json={"name": "Late"}),
    "delete the account": lambda ada, _: delete(ada),
}


@pytest.mark.parametrize("case", OVERTAKEN)
def test_what_waits_for_the_deletion_of_its_account_is_401(
    ada: Account, database: Postgres, threads: ThreadPoolExecutor, case: str
) -> None:
    """It gets neither 404 nor a wrong password, because the caller is gone by the time of the response."""
    task = f"/tasks/{ada.create()['id']}"
    with done_at_the_end(database, "DELETE FROM users WHERE id = $1 RETURNING id", ada.id):
        late = threads.submit(OVERTAKEN[case], ada, task)
        assert has_stopped(database, late, 1)
    assert refusal(late.result()) == (401, "token_revoked")
