"""`POST /auth/logout` and the other ends of a session: each holds at once, on every process."""

from collections.abc import Callable

import pytest

from backend.web.middleware import MAX_BODY_BYTES
from tests.conftest import Postgres
from tests.service import PASSWORD, Account, Service

ROUTES = [
    ("GET", "/auth/me"),
    ("PATCH", "/auth/me"),
    ("POST", "/auth/logout"),
    ("GET", "/tasks"),
    ("POST", "/tasks"),
    ("GET", "/tasks/1"),
    ("PUT", "/tasks/1"),
    ("PATCH", "/tasks/1"),
    ("PATCH", "/tasks/1/complete"),
    ("DELETE", "/tasks/1"),
]
VALID = {"name": "Eve", "title": "Late"}


def test_logout_ends_this_session_and_no_other(service: Service, ada: Account, bob: Account) -> None:
    second = service.client().post("/auth/login", json={"email": ada.email, "password": PASSWORD}).json()
    response = ada.client.post("/auth/logout")
    assert (response.status_code, response.content) == (204, b"")
    assert ada.client.get("/auth/me").status_code == 401
    assert service.client(second["access_token"]).get("/auth/me").status_code == 200
    assert bob.client.get("/auth/me").status_code == 200


def test_what_is_stored_of_the_session_is_gone(ada: Account, database: Postgres) -> None:
    count = (
        "SELECT (SELECT count(*) FROM sessions WHERE user_id = $1) AS sessions, "
        "(SELECT count(*) FROM refresh_tokens WHERE session_id NOT IN (SELECT id FROM sessions)) AS orphans"
    )
    assert database.sql(count, ada.id) == [{"sessions": 1, "orphans": 0}]
    ada.client.post("/auth/logout")
    assert database.sql(count, ada.id) == [{"sessions": 0, "orphans": 0}]


@pytest.mark.parametrize("how", ["logout", "expired", "deleted", "account deleted"])
def test_an_ended_session_is_refused_everywhere(ada: Account, database: Postgres, how: str) -> None:
    """The access token has not expired, and the body, the id and the query do not matter."""
    ends: dict[str, Callable[[], object]] = {
        "logout": lambda: ada.client.post("/auth/logout"),
        "expired": lambda: database.sql("UPDATE sessions SET expires_at = now() WHERE user_id = $1", ada.id),
        "deleted": lambda: database.sql("DELETE FROM sessions WHERE user_id = $1", ada.id),
        "account deleted": lambda: database.sql("DELETE FROM users WHERE id = $1", ada.id),
    }
    assert ada.client.get("/auth/me").status_code == 200
    ends[how]()
    for method, path in ROUTES:
        for body in (VALID, {"title": 7, "name": 7}):
            response = ada.client.request(method, path, json=body, params={"limit": "many"})
            assert (response.status_code, response.json()["code"]) == (401, "token_revoked"), (method, path)
            assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]
    assert database.sql("SELECT FROM tasks WHERE user_id = $1", ada.id) == []


def test_logout_by_an_ended_session_is_401_before_the_body_is_too_large(ada: Account) -> None:
    ada.client.post("/auth/logout")
    response = ada.client.post("/auth/logout", content=iter([b"x" * MAX_BODY_BYTES, b"x"]))
    assert (response.status_code, response.json()["code"]) == (401, "token_revoked")


def test_logout_holds_at_once_on_another_process(
    service: Service, new_service: Callable[..., Service], database: Postgres
) -> None:
    """The other process has used the token before. The test repeats with the processes exchanged."""
    other = new_service(DATABASE_URL=database.url)
    for here, there in ((service, other), (other, service)):
        account = here.register()
        elsewhere = there.client(account.tokens["access_token"])
        assert elsewhere.get("/tasks").status_code == 200
        assert account.client.post("/auth/logout").status_code == 204
        response = elsewhere.get("/tasks")
        assert (response.status_code, response.json()["code"]) == (401, "token_revoked")
