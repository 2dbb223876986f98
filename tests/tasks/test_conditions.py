"""`ETag`, `If-Match` and `If-None-Match` on tasks and lists."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx2
import pytest

from backend.database.url import connect_arguments
from tests.conftest import Postgres
from tests.programs import needs_own_server
from tests.service import START_SECONDS, Account, Service
from tests.tasks.test_concurrency import at_once

SURFACES = pytest.mark.parametrize("surface", ["/tasks", "/api/{user_id}/tasks"])
CHANGES: list[tuple[str, str, dict[str, Any]]] = [
    ("PUT", "", {"json": {"title": "Put"}}),
    ("PATCH", "", {"json": {"title": "Patched"}}),
    ("PATCH", "/complete", {}),
    ("DELETE", "", {}),
]
RACERS = 30


def place(surface: str, account: Account) -> str:
    return surface.format(user_id=account.id)


@SURFACES
def test_every_answer_with_one_task_carries_the_same_strong_etag_until_it_changes(
    ada: Account, surface: str
) -> None:
    created = ada.client.post(place(surface, ada), json={"title": "Buy milk"})
    url, tag = created.headers["Location"], created.headers["ETag"]
    assert tag.startswith('"')
    assert ada.client.get(url).headers["ETag"] == tag
    for method in ("PUT", "PATCH"):
        assert ada.client.request(method, url, json={"title": " Buy milk"}).headers["ETag"] == tag
    tags = [tag]
    for method, path, body in CHANGES[:3]:
        tags.append(ada.client.request(method, url + path, **body).headers["ETag"])
        assert ada.client.get(url).headers["ETag"] == tags[-1]
    assert len(set(tags)) == len(tags)


@SURFACES
def test_a_task_that_the_client_has_is_304(ada: Account, surface: str) -> None:
    created = ada.client.post(place(surface, ada), json={"title": "Buy milk"})
    url, tag = created.headers["Location"], created.headers["ETag"]
    for known in ("*", tag, f"W/{tag}", f'"other" , {tag}', f', W/"a,b",{tag},'):
        answer = ada.client.get(url, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", tag)
        assert "Content-Type" not in answer.headers
        assert answer.headers["Cache-Control"] == "no-store"
    for other in ('"other"', tag[1:-1], f"*, {tag}", f"{tag} {tag}", tag[:-1]):
        assert ada.client.get(url, headers={"If-None-Match": other}).status_code == 200


@SURFACES
@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_a_change_happens_only_to_the_task_that_the_client_saw(
    ada: Account, surface: str, method: str, path: str, body: dict[str, Any]
) -> None:
    created = ada.client.post(place(surface, ada), json={"title": "Buy milk"})
    url, tag = created.headers["Location"], created.headers["ETag"]
    number, _, moment = tag.strip('"').partition("-")
    others = ['"other"', f"W/{tag}", tag[1:-1], f'"0{number}-{moment}"', f'"{number}-0{moment}"', f"*, {tag}"]
    for other in [*others, f'"{int(number) + 1}-{moment}"', ""]:
        answer = ada.client.request(method, url + path, headers={"If-Match": other}, **body)
        assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed"), other
        assert ada.client.get(url).json() == created.json()
    good = f'"other", {tag}' if method != "PATCH" else "*"
    assert ada.client.request(method, url + path, headers={"If-Match": good}, **body).is_success


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_whose_task_it_is_and_who_asks_are_answered_before_a_condition(  # noqa: PLR0917  # by name
    service: Service, ada: Account, bob: Account, method: str, path: str, body: dict[str, Any]
) -> None:
    task, gone = bob.create(), service.register()
    gone.client.post("/auth/logout")
    for account, number, status in ((ada, task["id"], 403), (ada, 2**63 - 1, 404), (gone, task["id"], 401)):
        url = f"/tasks/{number}{path}"
        answer = account.client.request(method, url, headers={"If-Match": '"other"'}, **body)
        assert answer.status_code == status


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1970, 1, 1, microsecond=1, tzinfo=UTC),
        datetime(2026, 11, 29, tzinfo=UTC),
        datetime(2026, 11, 29, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2286, 11, 20, 17, 46, 40, 7, tzinfo=UTC),
        datetime(9999, 12, 30, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
)
def test_the_statement_knows_the_etag_of_any_moment(
    ada: Account, database: Postgres, moment: datetime
) -> None:
    """The answer's tag is made in Python, and compared in SQL."""
    task = ada.create()
    database.sql("UPDATE tasks SET updated_at = $2 WHERE id = $1", task["id"], moment)
    url = f"/tasks/{task['id']}"
    tag = ada.client.get(url).headers["ETag"]
    assert ada.client.patch(url, headers={"If-Match": tag}, json={"title": "New"}).is_success


def test_of_many_changes_of_what_all_saw_one_happens(ada: Account) -> None:
    created = ada.client.post("/tasks", json={"title": "Buy milk"})
    url, seen = created.headers["Location"], {"If-Match": created.headers["ETag"]}
    answers = at_once(
        *(lambda n=n: ada.client.put(url, json={"title": f"T{n}"}, headers=seen) for n in range(RACERS))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * (RACERS - 1)
    (won,) = (answer.json() for answer in answers if answer.is_success)
    assert ada.client.get(url).json() == won


NEXT_ID = "SELECT nextval(pg_get_serial_sequence('tasks', 'id'))"
LOCK_TASKS = "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"
INSERT_TASK = """
INSERT INTO tasks (id, user_id, title, title_key) OVERRIDING SYSTEM VALUE VALUES ($1, $2, 'New', 'new')
"""


async def queue(database: Postgres, length: int) -> None:
    """Wait until so many statements wait for the table of tasks."""
    connection = await asyncpg.connect(**connect_arguments(database.url))
    waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'tasks'::regclass AND NOT granted"
    while await connection.fetchval(waiting) < length:  # noqa: ASYNC110  # PostgreSQL sends no word of it
        await asyncio.sleep(0.02)
    await connection.close()


@needs_own_server
def test_without_a_condition_a_task_that_is_created_meanwhile_is_404_and_never_412(
    ada: Account, database: Postgres
) -> None:
    """PostgreSQL's lock queue runs the creation between the two statements of the request."""
    # Prepares the first of the two on the connection that the service takes for the next request.
    assert ada.client.get(ada.client.post("/tasks", json={"title": "Old"}).headers["Location"]).is_success
    ((number,),) = (row.values() for row in database.sql(NEXT_ID))

    async def create(connection: asyncpg.Connection) -> None:
        async with connection.transaction():
            await connection.execute(LOCK_TASKS)
            await connection.execute(INSERT_TASK, number, ada.id)

    async def read_while_it_is_created() -> httpx2.Response:
        first, second = [await asyncpg.connect(**connect_arguments(database.url)) for _ in range(2)]
        async with first.transaction():
            await first.execute(LOCK_TASKS)
            reading = asyncio.create_task(asyncio.to_thread(ada.client.get, f"/tasks/{number}"))
            await asyncio.wait_for(queue(database, 1), START_SECONDS)
            creating = asyncio.create_task(create(second))
            await asyncio.wait_for(queue(database, 2), START_SECONDS)
        await creating
        await first.close()
        await second.close()
        return await reading

    assert asyncio.run(read_while_it_is_created()).json()["code"] == "task_not_found"
    assert ada.client.get(f"/tasks/{number}").is_success


@SURFACES
def test_a_list_is_304_until_something_on_the_page_changes(ada: Account, surface: str) -> None:
    tasks = place(surface, ada)
    url = ada.client.post(tasks, json={"title": "Buy milk"}).headers["Location"]
    tag = ada.client.get(tasks).headers["ETag"]
    assert tag.startswith('W/"')
    for change in (("POST", tasks), ("PATCH", f"{url}/complete"), ("DELETE", url)):
        answer = ada.client.get(tasks, headers={"If-None-Match": tag})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", tag)
        body = {"title": "Another"} if change[0] == "POST" else None
        assert ada.client.request(*change, json=body).is_success
        answer = ada.client.get(tasks, headers={"If-None-Match": tag})
        assert (answer.status_code, answer.headers["ETag"] == tag) == (200, False)
        tag = answer.headers["ETag"]
    assert ada.client.get(f"{tasks}?order=desc").headers["ETag"] != tag
