"""`Idempotency-Key`: a request to create a task creates one task, however often it is sent."""

import pytest

from tests.conftest import Postgres
from tests.service import Account, Service
from tests.tasks.test_concurrency import at_once
from tests.tasks.test_conditions import RACERS, SURFACES, place

KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
MILK = {"title": "Buy milk"}


@SURFACES
def test_a_key_sent_again_is_answered_with_the_task_as_it_is_now(
    service: Service, ada: Account, surface: str
) -> None:
    tasks = place(surface, ada)
    created = ada.client.post(tasks, json=MILK, headers=KEY)
    assert created.status_code == 201
    changed = ada.client.patch(created.headers["Location"], json={"title": "Buy bread"})
    again = ada.client.post(tasks, json={"title": " Buy milk", "completed": False}, headers=KEY)
    assert (again.status_code, again.json()) == (200, changed.json())
    assert again.headers["Location"] == created.headers["Location"]
    assert again.headers["ETag"] == changed.headers["ETag"]
    assert len(ada.client.get(tasks).json()) == 1
    assert len(service.lines(event="task.created", user_id=ada.id)) == 1


@SURFACES
def test_a_key_with_another_body_is_409(ada: Account, surface: str) -> None:
    tasks = place(surface, ada)
    assert ada.client.post(tasks, json=MILK, headers=KEY).status_code == 201
    answer = ada.client.post(tasks, json={**MILK, "completed": True}, headers=KEY)
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_key_reused")
    assert len(ada.client.get(tasks).json()) == 1


def test_a_key_is_one_users_and_gone_with_its_task(ada: Account, bob: Account) -> None:
    first = ada.client.post("/tasks", json=MILK, headers=KEY)
    assert bob.client.post("/tasks", json={"title": "Other"}, headers=KEY).status_code == 201
    ada.client.delete(first.headers["Location"])
    assert ada.client.post("/tasks", json={"title": "Other"}, headers=KEY).status_code == 201


def test_of_many_at_once_one_creates(ada: Account) -> None:
    answers = at_once(*[lambda: ada.client.post("/tasks", json=MILK, headers=KEY)] * RACERS)
    assert sorted(answer.status_code for answer in answers) == [200] * (RACERS - 1) + [201]
    assert len({answer.text for answer in answers}) == len(ada.client.get("/tasks").json()) == 1


def test_keys_are_unique_for_each_user_by_an_index_of_tasks_with_a_key_alone(database: Postgres) -> None:
    (index,) = database.sql("""
        SELECT indexdef AS text FROM pg_indexes
        WHERE tablename = 'tasks' AND indexdef LIKE '%idempotency_key%'""")
    assert index["text"].startswith("CREATE UNIQUE INDEX")
    assert index["text"].endswith("(user_id, idempotency_key) WHERE (idempotency_key IS NOT NULL)")


@SURFACES
@pytest.mark.parametrize("key", [b"", b"a b", b"x" * 256, "ü".encode(), b"a\tb"])
def test_a_key_that_is_none_is_a_validation_error(ada: Account, surface: str, key: bytes) -> None:
    answer = ada.client.post(place(surface, ada), json=MILK, headers={b"Idempotency-Key": key})
    assert answer.status_code == (422 if surface.startswith("/api") else 400)
    assert [problem["field"] for problem in answer.json()["errors"]] == ["Idempotency-Key"]
    assert ada.client.get("/tasks").json() == []
