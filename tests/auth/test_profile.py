"""`GET` and `PATCH /auth/me`: the caller's profile, and a name with the rules of a title."""

import json
from typing import Any

import pytest

from tests.conftest import Postgres
from tests.service import PASSWORD, Account, Service

FAMILY = "👩\u200d👩\u200d👧"
"""One character for a person, five code points."""

NAMES = [
    pytest.param("Ada", "Ada", id="plain"),
    pytest.param("  Ada Lovelace\u00a0", "Ada Lovelace", id="trimmed"),
    pytest.param("x", "x", id="the shortest"),
    pytest.param("é" * 200, "é" * 200, id="the longest"),
    pytest.param(FAMILY * 40, FAMILY * 40, id="the longest in emoji"),
    pytest.param(f"  {'x' * 200}  ", "x" * 200, id="the longest, trimmed"),
    pytest.param("e\u0301", "e\u0301", id="as sent, not composed"),
    pytest.param("<b>Ada</b>' OR 1=1 --", "<b>Ada</b>' OR 1=1 --", id="markup and SQL"),
    pytest.param("عدا \u202b", "عدا \u202b", id="right to left"),
    pytest.param(None, None, id="null"),
]
NO_NAMES = [
    pytest.param("", id="empty"),
    pytest.param(" \u00a0\u3000", id="spaces"),
    pytest.param("x" * 201, id="too long"),
    pytest.param(FAMILY * 40 + "x", id="too long in emoji"),
    pytest.param("Ada\0", id="NUL"),
    pytest.param("A\tda", id="a tab"),
    pytest.param("A\x7fda", id="DEL"),
    pytest.param("A\x85da", id="NEL"),
    pytest.param("A\x9bda", id="CSI"),
    pytest.param("A\x1b[31mda", id="ANSI"),
    pytest.param("A\ud800da", id="a lone surrogate"),
    pytest.param(7, id="a number"),
    pytest.param(["Ada"], id="a list"),
    pytest.param(True, id="a boolean"),
]


def test_the_profile_is_ones_own(ada: Account, bob: Account) -> None:
    assert [account.client.get("/auth/me").json()["id"] for account in (ada, bob)] == [ada.id, bob.id]
    assert set(ada.client.get("/auth/me").json()) == {
        *("id", "email", "email_verified", "pending_email", "name", "created_at")
    }


@pytest.mark.parametrize(("name", "stored"), NAMES)
def test_a_name_is_kept_as_it_is_sent(service: Service, ada: Account, name: Any, stored: Any) -> None:
    response = ada.client.patch("/auth/me", json={"name": name})
    assert (response.status_code, response.json()) == (200, {**ada.tokens["user"], "name": stored})
    assert ada.client.get("/auth/me").json() == response.json()
    assert service.register(name=name).tokens["user"]["name"] == stored


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name_is_refused_and_changes_nothing(service: Service, ada: Account, name: Any) -> None:
    as_json = {"Content-Type": "application/json"}
    data = {"email": "unnamed@example.com", "password": PASSWORD, "name": name}
    for response in (
        ada.client.patch("/auth/me", content=json.dumps({"name": name}), headers=as_json),
        service.client().post("/auth/register", content=json.dumps(data), headers=as_json),
    ):
        assert (response.status_code, response.json()["code"]) == (400, "validation_error")
        assert [error["field"] for error in response.json()["errors"]] == ["name"]
    assert ada.client.get("/auth/me").json() == ada.tokens["user"]


@pytest.mark.parametrize("body", [{}, {"nickname": "Ada"}, {"email": "eve@example.com"}])
def test_nothing_to_change_is_not_valid(ada: Account, body: dict[str, str]) -> None:
    response = ada.client.patch("/auth/me", json=body)
    assert (response.status_code, response.json()["code"]) == (400, "validation_error")


def test_only_the_name_can_be_changed(ada: Account, bob: Account, database: Postgres) -> None:
    row = "SELECT * FROM users WHERE id = $1"
    (before,) = database.sql(row, ada.id)
    sent = {"id": bob.id, "email": "eve@example.com", "issuer": "x", "password_hash": "x"}
    assert ada.client.patch("/auth/me", json={"name": "Eve", **sent}).status_code == 200
    assert database.sql(row, ada.id) == [{**before, "name": "Eve"}]
    assert bob.client.get("/auth/me").json() == bob.tokens["user"]
