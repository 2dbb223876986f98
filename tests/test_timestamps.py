"""Each timestamp in an answer has six digits of a second and ends with `Z`."""

import re
from datetime import UTC, datetime
from typing import Any

import httpx2

from tests.conftest import Postgres
from tests.service import Account, Service

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
LIKE_ONE = '2026-11-20T09:30:00Z", "created_at":"2026-11-20T09:30:00Z'


def timestamps(response: httpx2.Response) -> list[str]:
    found: list[str] = []

    def collect(value: Any, name: str = "") -> None:
        if isinstance(value, dict):
            for key in value:
                collect(value[key], key)
        elif isinstance(value, list):
            for each in value:
                collect(each)
        elif name.endswith("_at"):
            found.append(value)

    collect(response.json())
    return found


def test_a_timestamp_has_six_digits_of_a_second_also_where_they_are_zeros(
    service: Service, ada: Account, database: Postgres
) -> None:
    tasks = [ada.create(LIKE_ONE) for _ in range(3)]
    whole = datetime(2026, 11, 20, 9, 30, 7, tzinfo=UTC)
    database.sql("UPDATE tasks SET created_at = $2, updated_at = $2 WHERE id = $1", tasks[1]["id"], whole)
    database.sql("UPDATE users SET created_at = $2 WHERE id = $1", ada.id, whole)
    database.sql("UPDATE sessions SET created_at = $2, last_used_at = $2 WHERE user_id = $1", ada.id, whole)
    token = {"refresh_token": ada.tokens["refresh_token"]}
    answers = [
        ada.client.get("/tasks"),
        ada.client.get(f"/tasks/{tasks[1]['id']}"),
        ada.client.patch(f"/tasks/{tasks[1]['id']}", json={"title": LIKE_ONE}),
        ada.client.get(f"/api/{ada.id}/tasks"),
        ada.client.get("/auth/me"),
        ada.client.get("/auth/sessions"),
        service.client().post("/auth/refresh", json=token),
    ]
    for answer in answers:
        assert answer.status_code == 200
        found = timestamps(answer)
        assert "2026-11-20T09:30:07.000000Z" in found
        assert all(TIMESTAMP.fullmatch(moment) for moment in found), found
    assert {task["title"] for task in answers[0].json()} == {LIKE_ONE}
