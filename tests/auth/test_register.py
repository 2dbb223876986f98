"""`POST /auth/register` creates an account, and stores a hash of its password alone."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import Postgres
from tests.service import PASSWORD, Account, Service

TOKENS = {"access_token", "token_type", "expires_in", "refresh_token", "user"}


def register(service: Service, email: str, **fields: Any) -> Any:
    return service.client().post("/auth/register", json={"email": email, "password": PASSWORD, **fields})


def test_registering_signs_in_at_once(service: Service) -> None:
    response = register(service, "new@example.com", name="New")
    assert (response.status_code, response.headers["Cache-Control"]) == (201, "no-store")
    tokens = response.json()
    assert (set(tokens), tokens["token_type"], tokens["expires_in"]) == (TOKENS, "bearer", 15 * 60)
    assert set(tokens["user"]) == {*("id", "email", "email_verified", "pending_email", "name", "created_at")}
    assert tokens["user"]["created_at"].endswith("Z")
    profile = service.client(tokens["access_token"]).get("/auth/me")
    assert profile.json() == tokens["user"]


def test_the_database_holds_a_bcrypt_hash_and_a_digest_only(service: Service, database: Postgres) -> None:
    account = service.register()
    (user,) = database.sql("SELECT * FROM users WHERE id = $1", account.id)
    assert user["password_hash"].startswith("$bcrypt-sha256$v=2,t=2b,r=4$")
    assert PASSWORD not in str(user)
    (token,) = database.sql("SELECT * FROM refresh_tokens WHERE user_id = $1", account.id)
    assert len(token["digest"]) == 256 / 8
    assert account.tokens["refresh_token"].encode() not in token["digest"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param("same@example.com", "same@example.com", id="the same"),
        pytest.param("Letter.Case@example.com", "lETTER.cASE@EXAMPLE.COM", id="ASCII"),
        pytest.param("jürgen@example.com", "JÜRGEN@example.com", id="Latin"),
        pytest.param("ju\u0308rger@example.com", "J\u00dcRGER@example.com", id="decomposed"),
        pytest.param("σοφός@example.com", "ΣΟΦΌΣ@example.com", id="Greek, a final sigma"),
        pytest.param("straße@example.com", "STRASSE@example.com", id="sharp s"),
        # Upper case is two code points, which NFC composes only when they are lower case again.
        pytest.param("\u0390@example.com", "\u0390@example.com".upper(), id="Greek, two marks"),
        pytest.param("ivan@bücher.example.com", "ivan@XN--BCHER-KVA.example.com", id="a domain in punycode"),
    ],
)
def test_an_email_is_taken_in_every_letter_case(service: Service, first: str, second: str) -> None:
    assert register(service, first).status_code == 201
    response = register(service, second)
    assert (response.status_code, response.json()["code"]) == (400, "email_taken")
    login = service.client().post("/auth/login", json={"email": second, "password": PASSWORD})
    assert login.status_code == 200


def test_an_email_is_stored_normalised(service: Service) -> None:
    """The domain is lowercased and the whole is in NFC. The local part keeps its case."""
    response = register(service, "Zoe\u0308@EXAMPLE.com")
    assert response.json()["user"]["email"] == "Zo\u00eb@example.com"


@pytest.mark.parametrize("space", [" ", "\t", "\r\n", "\u00a0", "\u3000"])
def test_white_space_at_both_ends_of_an_email_goes_first_wherever_it_is_taken(
    service: Service, space: str
) -> None:
    """A phone's keyboard may append it."""
    email = f"trimmed{ord(space[0])}@example.com"
    sent = f"{space}{email}{space}"
    assert register(service, sent).json()["user"]["email"] == email
    response = register(service, email)
    assert (response.status_code, response.json()["code"]) == (400, "email_taken")
    data = {"email": sent, "password": PASSWORD}
    assert service.client().post("/auth/login", json=data).json()["user"]["email"] == email
    form = {"username": sent, "password": PASSWORD}
    assert service.client().post("/auth/token", data=form).json()["user"]["email"] == email


def test_an_email_is_as_long_as_it_may_be_without_the_white_space_around_it(service: Service) -> None:
    longest = f"{'a' * 64}@{'b' * 59}.{'c' * 61}.{'d' * 63}.com"
    assert len(longest) == 254
    assert register(service, f" {longest}\n").status_code == 201
    response = register(service, longest.replace("@b", "@bb"))
    assert [error["type"] for error in response.json()["errors"]] == ["string_too_long"]


def test_of_many_who_take_one_email_at_once_one_gets_it(service: Service) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: register(service, "race@example.com"), range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [400] * 7
    assert {answer.json()["code"] for answer in answers if answer.is_error} == {"email_taken"}


@pytest.mark.parametrize(
    "email",
    [
        "",
        "ada",
        "ada@",
        "@example.com",
        "a@b",
        "a b@example.com",
        " \t\n",
        "ada @example.com",
        "ada@ example.com",
        "Ada <ada@example.com>",
        "a\0da@example.com",
        "ada@exam\u2028ple.com",
        "ada@-example.com",
        "ada@127.0.0.1",
        "a@b@example.com",
        f"ada@{'a.' * 130}com",
        "\ud800@example.com",
        None,
        7,
        ["ada@example.com"],
    ],
)
def test_what_is_no_email_is_refused(service: Service, email: Any) -> None:
    response = service.client().post(
        "/auth/register",
        # Escaped, because a lone surrogate has no UTF-8.
        content=json.dumps({"email": email, "password": PASSWORD}),
        headers={"Content-Type": "application/json"},
    )
    body = response.json()
    assert (response.status_code, body["code"]) == (400, "validation_error")
    assert [error["field"] for error in body["errors"]] == ["email"]
    if isinstance(email, str) and len(email) > 3:
        assert email not in response.text


@pytest.mark.parametrize("missing", ["email", "password"])
def test_what_is_missing_is_named(service: Service, missing: str) -> None:
    data = {"email": "missing@example.com", "password": PASSWORD}
    del data[missing]
    response = service.client().post("/auth/register", json=data)
    assert response.status_code == 400
    assert [(error["field"], error["type"]) for error in response.json()["errors"]] == [(missing, "missing")]


def test_unknown_fields_set_nothing(ada: Account, service: Service, database: Postgres) -> None:
    response = register(
        service, "sly@example.com", id=ada.id, issuer="elsewhere", created_at="2000-01-01", password_hash="x"
    )
    user = response.json()["user"]
    assert (response.status_code, user["id"] != ada.id, user["created_at"] > "2020") == (201, True, True)
    (row,) = database.sql("SELECT issuer, password_hash FROM users WHERE id = $1", user["id"])
    assert (row["issuer"], row["password_hash"] != "x") == ("local", True)
