"""Concurrent requests on one task: no write is lost or undone, and no timestamp turns back."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

import httpx2

from tests.conftest import Postgres
from tests.service import Account

Request = Callable[[], httpx2.Response]


def at_once(*requests: Request) -> list[httpx2.Response]:
    """Send all requests at the same moment, each from a thread of its own."""
    ready = Barrier(len(requests))

    def send(request: Request) -> httpx2.Response:
        ready.wait(30)
        return request()

    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(send, requests))


def putting(account: Account, task: dict[str, Any], **fields: Any) -> Request:
    return lambda: account.client.put(f"/tasks/{task['id']}", json=fields)


def toggling(account: Account, task: dict[str, Any]) -> Request:
    return lambda: account.client.patch(f"/tasks/{task['id']}/complete")


def deleting(account: Account, task: dict[str, Any]) -> Request:
    return lambda: account.client.delete(f"/tasks/{task['id']}")


def stored(account: Account, task: dict[str, Any]) -> dict[str, Any]:
    response = account.client.get(f"/tasks/{task['id']}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_updates_of_different_fields_undo_nothing(ada: Account) -> None:
    task = ada.create()
    for number in range(20):
        fields = {"title": f"Title {number}", "description": f"Text {number}", "completed": number % 2 == 0}
        answers = at_once(*(putting(ada, task, **{name: value}) for name, value in fields.items()))
        assert [answer.status_code for answer in answers] == [200] * 3
        found = stored(ada, task)
        assert found | fields == found
        # Each response shows the task after its own write, so the last one must equal the stored task.
        assert max((answer.json() for answer in answers), key=moment) == found


def test_every_toggle_counts(ada: Account) -> None:
    """Each of an odd number of toggles flips the task, so one more than the rest return it completed."""
    task = ada.create()
    answers = at_once(*[toggling(ada, task)] * 25)
    assert [answer.status_code for answer in answers] == [200] * 25
    in_turn = [answer.json()["completed"] for answer in sorted(answers, key=lambda a: moment(a.json()))]
    assert in_turn == [True, False] * 12 + [True]
    assert stored(ada, task)["completed"] is True


def test_the_last_write_wins(ada: Account) -> None:
    task = ada.create()
    answers = at_once(*(putting(ada, task, title=f"Title {number}") for number in range(20)))
    written = sorted((answer.json() for answer in answers), key=moment)
    assert {answer["title"] for answer in written} == {f"Title {number}" for number in range(20)}
    assert len({moment(answer) for answer in written}) == len(written)
    assert stored(ada, task) == written[-1]


def test_updated_at_only_moves_forward(ada: Account, database: Postgres) -> None:
    """It does so even if the last change came from a machine whose clock is ahead."""
    task = ada.create()
    ahead = datetime.now(UTC) + timedelta(hours=1)
    database.sql("UPDATE tasks SET updated_at = $2 WHERE id = $1", task["id"], ahead)
    moments = [ahead]
    for number in range(10):
        request = toggling(ada, task) if number % 2 else putting(ada, task, title=f"Title {number}")
        moments.append(moment(request().json()))
    assert moments == sorted(set(moments))
    assert stored(ada, task)["created_at"] == task["created_at"]


def test_a_task_is_deleted_once(ada: Account) -> None:
    task = ada.create()
    answers = at_once(*[deleting(ada, task)] * 8)
    assert sorted(answer.status_code for answer in answers) == [204, *[404] * 7]


def test_nothing_brings_a_deleted_task_back(ada: Account) -> None:
    for number in range(8):
        task = ada.create()
        changes = [putting(ada, task, title=f"Title {number}"), toggling(ada, task)] * 2
        deleted, *answers = at_once(deleting(ada, task), *changes)
        assert deleted.status_code == 204
        assert {answer.status_code for answer in answers} <= {200, 404}
        assert ada.client.get("/tasks").json() == []


def moment(task: dict[str, Any]) -> datetime:
    """Return `updated_at` as a moment, because texts with fewer digits do not compare in order."""
    return datetime.fromisoformat(task["updated_at"])
