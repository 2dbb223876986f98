"""`POST /auth/login`: the right password signs in; a failure does not tell which part was wrong."""

from typing import Any

import pytest

from tests.conftest import Postgres
from tests.service import PASSWORD, Account, Service


def login(service: Service, email: Any, password: Any) -> Any:
    return service.client().post("/auth/login", json={"email": email, "password": password})


def test_the_right_password_signs_in(service: Service, ada: Account) -> None:
    response = login(service, ada.email, PASSWORD)
    assert (response.status_code, response.headers["Cache-Control"]) == (200, "no-store")
    tokens = response.json()
    assert set(tokens) == set(ada.tokens)
    assert tokens["user"] == ada.tokens["user"]
    assert service.client(tokens["access_token"]).get("/auth/me").json() == tokens["user"]


def test_each_sign_in_is_a_session_of_its_own(service: Service, ada: Account, database: Postgres) -> None:
    client = service.client(headers={"User-Agent": "A browser"})
    response = client.post("/auth/login", json={"email": ada.email, "password": PASSWORD})
    tokens = response.json()
    for name in ("access_token", "refresh_token"):
        assert tokens[name] != ada.tokens[name]
    rows = database.sql("SELECT * FROM sessions WHERE user_id = $1 ORDER BY created_at", ada.id)
    assert [(row["user_agent"], row["ip"]) for row in rows][1] == ("A browser", "127.0.0.1")
    assert len(rows) == 2
    lifetime = rows[1]["expires_at"] - rows[1]["created_at"]
    assert lifetime.days == 14  # SESSION_IDLE_DAYS, as long as the session is not refreshed


def test_an_unknown_email_and_a_wrong_password_get_the_same_answer(service: Service, ada: Account) -> None:
    answers = [
        login(service, "nobody@example.com", "a wrong password"),
        login(service, ada.email, "a wrong password"),
        login(service, ada.email, ""),
        login(service, ada.email, PASSWORD.upper()),
        login(service, ada.email, "x" * 129),
        login(service, ada.email, "x" * 60_000),
        login(service, "nobody@example.com", "x" * 60_000),
    ]
    bodies = [answer.json() for answer in answers]
    assert len({body.pop("request_id") for body in bodies}) == len(answers)
    assert bodies == [
        {
            "status_code": 401,
            "detail": "The email or the password is wrong",
            "code": "invalid_credentials",
        }
    ] * len(answers)
    varying = {"date", "x-request-id"}
    headers = [{k: v for k, v in answer.headers.items() if k not in varying} for answer in answers]
    assert headers == [headers[0]] * len(answers)
    assert (answers[0].status_code, headers[0]["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    ("email", "password", "field"),
    [
        ("no email", PASSWORD, "email"),
        (None, PASSWORD, "email"),
        ("ada@example.com", None, "password"),
        ("ada@example.com", 12345678, "password"),
        ("ada@example.com", [PASSWORD], "password"),
    ],
)
def test_what_is_no_pair_of_texts_is_not_valid(
    service: Service, email: Any, password: Any, field: str
) -> None:
    response = login(service, email, password)
    assert (response.status_code, response.json()["code"]) == (400, "validation_error")
    assert [error["field"] for error in response.json()["errors"]] == [field]


def test_a_failed_sign_in_makes_no_session(service: Service, ada: Account, database: Postgres) -> None:
    count = "SELECT count(*) FROM sessions WHERE user_id = $1"
    before = database.sql(count, ada.id)
    assert login(service, ada.email, "a wrong password").status_code == 401
    assert database.sql(count, ada.id) == before
