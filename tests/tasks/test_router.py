"""The routes under `/tasks` with valid requests: what each stores, changes and returns."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conftest import Postgres
from tests.service import Account

LONG_AGO = "2001-02-03T04:05:06.789012Z"
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
EITHER_METHOD = pytest.mark.parametrize("method", ["PUT", "PATCH"])
PAYLOADS = [
    "'; DROP TABLE tasks; --",
    "Robert'); DELETE FROM users WHERE ('1' = '1",
    "$1 %s %(title)s {title} :title ? \\x00 \\' \\\\",
    "<script>alert('x')</script><img src=x onerror=\"alert(1)\">",
    "&lt;b&gt; &amp;amp; &#39; </textarea>",
    '"]}, {"id": 1, "user_id": "somebody"',
    "e\u0301 is not \u00e9, \ufb01 is not fi",
    "👩\u200d👩\u200d👧 \u202eright to left\u202c a\u2028b \U0010fffd!",
]
CHANGES = [
    {"title": "Buy bread"},
    {"title": "buy milk"},
    {"description": "Three litres"},
    {"description": ""},
    {"description": None},
    {"completed": True},
    {"title": "Buy milk", "description": "Two litres", "completed": True},
]
NO_CHANGES = [
    {"title": "Buy milk"},
    {"title": "  Buy milk "},
    {"description": "Two litres"},
    {"completed": False},
    {"title": "Buy milk", "description": "Two litres", "completed": False},
]


@pytest.fixture
def task(ada: Account, database: Postgres) -> dict[str, Any]:
    """A task of Ada's with an old `updated_at`."""
    task = ada.create("Buy milk", description="Two litres")
    then = datetime.fromisoformat(LONG_AGO)
    database.sql("UPDATE tasks SET created_at = $2, updated_at = $2 WHERE id = $1", task["id"], then)
    return task | {"created_at": LONG_AGO, "updated_at": LONG_AGO}


def read(account: Account, task: dict[str, Any]) -> dict[str, Any]:
    response = account.client.get(f"/tasks/{task['id']}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def change(account: Account, method: str, task: dict[str, Any], **fields: Any) -> dict[str, Any]:
    response = account.client.request(method, f"/tasks/{task['id']}", json=fields)
    assert response.status_code == 200, response.text
    changed: dict[str, Any] = response.json()
    return changed


def test_a_created_task_is_where_location_says(ada: Account) -> None:
    response = ada.client.post("/tasks", json={"title": "  Buy milk ", "description": "Two litres"})
    assert response.status_code == 201
    task = response.json()
    assert response.headers["Location"] == f"/tasks/{task['id']}"
    assert ada.client.get(response.headers["Location"]).json() == task
    assert (task["title"], task["description"], task["completed"]) == ("Buy milk", "Two litres", False)


def test_a_new_task_has_every_field_with_its_type_and_no_other(ada: Account) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    task = ada.create("Buy milk", description="Two litres", completed=True)
    assert {name: type(value) for name, value in task.items()} == {
        "id": int,
        "user_id": str,
        "title": str,
        "description": str,
        "completed": bool,
        "created_at": str,
        "updated_at": str,
    }
    assert task["user_id"] == ada.id
    assert task["completed"] is True
    assert task["updated_at"] == task["created_at"]
    assert UTC_TIME.fullmatch(task["created_at"])
    assert before < datetime.fromisoformat(task["created_at"]) < before + timedelta(minutes=1)


def test_what_is_not_sent_has_a_default(ada: Account) -> None:
    task = ada.create("Buy milk")
    assert (task["description"], task["completed"]) == (None, False)
    assert ada.create("Buy milk", description=None)["description"] is None


def test_every_route_answers_with_the_same_task(ada: Account) -> None:
    task = ada.create("Buy milk")
    assert read(ada, task) == task
    assert ada.client.get("/tasks").json() == [task]
    changed = change(ada, "PUT", task, completed=True)
    assert changed == task | {"completed": True, "updated_at": changed["updated_at"]}
    toggled = ada.client.patch(f"/tasks/{task['id']}/complete")
    assert toggled.status_code == 200
    assert toggled.json() == task | {"updated_at": toggled.json()["updated_at"]}
    assert read(ada, task) == toggled.json()


@pytest.mark.parametrize("fields", CHANGES, ids=str)
@EITHER_METHOD
def test_only_what_is_sent_changes(
    ada: Account, task: dict[str, Any], method: str, fields: dict[str, Any]
) -> None:
    """`created_at` never changes, `updated_at` moves on every real change."""
    changed = change(ada, method, task, **fields)
    assert changed == task | fields | {"updated_at": changed["updated_at"]}
    assert datetime.fromisoformat(changed["updated_at"]) > datetime.now(UTC) - timedelta(minutes=1)
    assert read(ada, task) == changed


@pytest.mark.parametrize("fields", NO_CHANGES, ids=str)
@EITHER_METHOD
def test_a_change_to_what_is_there_already_is_none(
    ada: Account, task: dict[str, Any], method: str, fields: dict[str, Any]
) -> None:
    """The same PUT again leaves `updated_at`."""
    assert change(ada, method, task, **fields) == task
    assert read(ada, task) == task


@EITHER_METHOD
def test_clearing_a_description_that_is_not_there_is_no_change(
    ada: Account, database: Postgres, task: dict[str, Any], method: str
) -> None:
    database.sql("UPDATE tasks SET description = NULL WHERE id = $1", task["id"])
    assert change(ada, method, task, description=None) == task | {"description": None}


def test_toggling_flips_and_flips_back(ada: Account, task: dict[str, Any]) -> None:
    moments = [LONG_AGO]
    for completed in (True, False, True):
        response = ada.client.patch(f"/tasks/{task['id']}/complete")
        assert response.status_code == 200
        toggled = response.json()
        assert toggled == task | {"completed": completed, "updated_at": toggled["updated_at"]}
        assert read(ada, task) == toggled
        moments.append(toggled["updated_at"])
    assert moments == sorted(set(moments))


def test_a_toggle_takes_no_notice_of_a_body(ada: Account, task: dict[str, Any]) -> None:
    response = ada.client.patch(f"/tasks/{task['id']}/complete", json={"completed": False, "title": "x"})
    assert (response.status_code, response.json()["completed"]) == (200, True)
    assert response.json()["title"] == task["title"]


def test_a_deleted_task_is_gone(ada: Account, task: dict[str, Any]) -> None:
    other = ada.create("Buy bread")
    response = ada.client.delete(f"/tasks/{task['id']}")
    assert (response.status_code, response.content) == (204, b"")
    for answer in (
        ada.client.get(f"/tasks/{task['id']}"),
        ada.client.put(f"/tasks/{task['id']}", json={"title": "Back again"}),
        ada.client.patch(f"/tasks/{task['id']}/complete"),
        ada.client.delete(f"/tasks/{task['id']}"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")
    assert ada.client.get("/tasks").json() == [other]


def test_an_id_is_never_given_twice(ada: Account) -> None:
    first = ada.create()["id"]
    ada.client.delete(f"/tasks/{first}")
    assert ada.create()["id"] > first


@pytest.mark.parametrize("text", PAYLOADS)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_text_comes_back_exactly_as_it_was_sent(ada: Account, method: str, text: str) -> None:
    """SQL and HTML are plain text, in JSON that no browser executes."""
    fields = {"title": text, "description": f" \t{text}\r\n"}
    if method == "POST":
        response = ada.client.post("/tasks", json=fields)
    else:
        response = ada.client.request(method, f"/tasks/{ada.create()['id']}", json=fields)
    assert response.is_success, response.text
    assert response.json() | fields == response.json()
    stored = ada.client.get(f"/tasks/{response.json()['id']}")
    assert stored.json() == response.json()
    assert ada.client.get("/tasks").json() == [response.json()]
    assert stored.headers["Content-Type"] == "application/json"
    assert stored.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_title_is_trimmed_at_its_ends_alone(ada: Account, method: str) -> None:
    path = "/tasks" if method == "POST" else f"/tasks/{ada.create()['id']}"
    response = ada.client.request(method, path, json={"title": " \u00a0\u3000Buy   milk \u2003"})
    assert response.json()["title"] == "Buy   milk"


@pytest.mark.parametrize(("field", "length"), [("title", 200), ("description", 1000)])
def test_lengths_count_code_points(ada: Account, field: str, length: int) -> None:
    text = "👩\u200de\u0301" * (length // 4)
    task = ada.create(**{"title": "Buy milk", field: text})
    assert (len(task[field]), task[field]) == (length, text)
    refused = ada.client.patch(f"/tasks/{task['id']}", json={field: text + "x"})
    assert refused.status_code == 400
    assert read(ada, task) == task


def test_unknown_fields_set_nothing(ada: Account, bob: Account, database: Postgres) -> None:
    foreign = {
        "id": 1,
        "user_id": bob.id,
        "created_at": LONG_AGO,
        "updated_at": LONG_AGO,
        "title_key": "aardvark",
        "is_admin": True,
    }
    task = ada.create("Buy milk", **foreign)
    assert task["user_id"] == ada.id
    assert task["created_at"] == task["updated_at"] != LONG_AGO
    assert read(ada, task) == task
    for method in ("PUT", "PATCH"):
        assert change(ada, method, task, title="Buy milk", **foreign) == task
        alone = ada.client.request(method, f"/tasks/{task['id']}", json=foreign)
        assert (alone.status_code, alone.json()["code"]) == (400, "validation_error")
    (row,) = database.sql("SELECT title_key FROM tasks WHERE user_id = $1", ada.id)
    assert row == {"title_key": "buy milk"}
    assert bob.client.get("/tasks").json() == []
