"""Lists of tasks: filters, sorts, and pages that hold each lasting task once while others come and go."""

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from backend.tasks.models import tasks
from tests.conftest import Postgres
from tests.service import Account

COMBINATIONS = list(product(("all", "pending", "completed"), ("created", "title"), ("asc", "desc")))
EVERY_COMBINATION = pytest.mark.parametrize(("status", "sort", "order"), COMBINATIONS)
NEXT = re.compile(r'<(/tasks\?[^<>" ]+)>; rel="next"')
NEXT_CURSOR = re.compile(r"[?&]cursor=([A-Za-z0-9_-]+)")

TITLES = [
    *("pear", "Apple", "apple", "APPLE", "Zebra", "zebra", "_", "9", "10", "apple pie", "apple-pie"),
    *("Äpfel", "äpfel", "ÄPFEL", "a\u0308pfel", "Öl", "zoo", "éclair", "Éclair", "eclair"),
    *("Straße", "STRASSE", "strasse", "STRASSF", "straß", "strast", "\ufb01n", "FIN", "fin", "Fio"),
    *("ΣΑΣ", "σας", "σασ", "Яблоко", "яблоко", "ёлка", "İstanbul", "istanbul", "I", "ı", "i", "K", "\u212a"),
    *("\uff5e", "😀", "𐐀", "𐐨", "日本"),
]
"""Pairs that differ by case alone, letters that fold to several, and characters past UTF-16's first plane."""


def listed(account: Account, **query: Any) -> list[dict[str, Any]]:
    response = account.client.get("/tasks", params=query)
    assert response.status_code == 200, response.text
    page: list[dict[str, Any]] = response.json()
    return page


def walk(account: Account, **query: Any) -> Iterator[list[dict[str, Any]]]:
    """Yield all pages, following `Link`."""
    response = account.client.get("/tasks", params=query)
    while True:
        assert response.status_code == 200, response.text
        yield response.json()
        if "Link" not in response.headers:
            return
        link = NEXT.fullmatch(response.headers["Link"])
        assert link, response.headers["Link"]
        response = account.client.get(link[1])


def cursor_after_one(account: Account, **query: Any) -> str:
    response = account.client.get("/tasks", params={"limit": 1, **query})
    cursor = NEXT_CURSOR.search(response.headers["Link"])
    assert cursor, response.headers["Link"]
    return cursor[1]


def insert(database: Postgres, account: Account, titles: list[str]) -> list[int]:
    """Insert tasks in one statement, so that all have the same `created_at`; every third is completed."""
    rows = database.sql(
        "INSERT INTO tasks (user_id, title, title_key, completed)"
        " SELECT $1, title, key, number % 3 = 0"
        " FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS row (title, key, number) RETURNING id",
        account.id,
        titles,
        [title.casefold() for title in titles],
    )
    return [row["id"] for row in rows]


def in_order(found: list[dict[str, Any]], status: str, sort: str, order: str) -> list[dict[str, Any]]:
    """Filter and sort as the contract has it; Python compares text by code point."""

    def key(task: dict[str, Any]) -> tuple[str, int]:
        return (task["title"].casefold() if sort == "title" else task["created_at"], task["id"])

    wanted = (task for task in found if status == "all" or task["completed"] == (status == "completed"))
    return sorted(wanted, key=key, reverse=order == "desc")


@EVERY_COMBINATION
def test_a_list_of_nothing_is_an_empty_array(ada: Account, status: str, sort: str, order: str) -> None:
    response = ada.client.get("/tasks", params={"status": status, "sort": sort, "order": order})
    assert (response.status_code, response.json()) == (200, [])
    assert "Link" not in response.headers


def test_by_default_all_tasks_come_in_the_order_of_their_creation(ada: Account) -> None:
    created = [ada.create(title, completed=title == "a") for title in "cab"]
    assert listed(ada) == created
    assert listed(ada, status="all", sort="created", order="asc", limit=1000) == created


@EVERY_COMBINATION
def test_status_sort_and_order_combine(
    ada: Account, database: Postgres, status: str, sort: str, order: str
) -> None:
    """Ties are sorted by `id` in the same direction: titles that differ by case, times of one statement."""
    insert(database, ada, TITLES[::2])
    insert(database, ada, TITLES[1::2])
    everything = listed(ada)
    assert sorted(task["title"] for task in everything) == sorted(TITLES)
    expected = in_order(everything, status, sort, order)
    assert listed(ada, status=status, sort=sort, order=order) == expected


def test_titles_that_were_sent_or_changed_sort_without_regard_to_case(ada: Account) -> None:
    """Unicode case folding applies beyond ASCII."""
    for number, title in enumerate(TITLES):
        if number % 2:
            ada.create(title)
        else:
            ada.client.put(f"/tasks/{ada.create('Buy milk')['id']}", json={"title": title})
    for order in ("asc", "desc"):
        found = listed(ada, sort="title", order=order)
        assert len(found) == len(TITLES)
        assert found == in_order(found, "all", "title", order)


def test_tasks_move_as_they_are_renamed_and_completed(ada: Account) -> None:
    first, second = (ada.create(title)["id"] for title in ("Äpfel", "öl"))
    assert [task["id"] for task in listed(ada, sort="title")] == [first, second]
    ada.client.put(f"/tasks/{first}", json={"title": "ÜBUNG"})
    ada.client.put(f"/tasks/{second}", json={"completed": True})
    assert [task["id"] for task in listed(ada, sort="title")] == [second, first]
    assert [task["id"] for task in listed(ada, sort="title", status="pending")] == [first]
    ada.client.patch(f"/tasks/{first}/complete")
    assert [task["id"] for task in listed(ada, sort="title", status="completed")] == [second, first]


@pytest.mark.usefixtures("service")
def test_title_order_does_not_depend_on_the_locale_of_the_database(database: Postgres) -> None:
    """The sorted column and each index on it have their own collation."""
    indexes = [str(index.name) for index in tasks.indexes if "title_key" in index.columns]
    rows = database.sql(
        "SELECT relname, collname FROM pg_attribute"
        " JOIN pg_class ON pg_class.oid = attrelid JOIN pg_collation ON pg_collation.oid = attcollation"
        " WHERE attname = 'title_key'"
    )
    assert len(indexes) == 2
    assert {row["relname"]: row["collname"] for row in rows} == dict.fromkeys(["tasks", *indexes], "C")


@EVERY_COMBINATION
def test_a_walk_meets_each_task_that_stays_exactly_once(
    ada: Account, database: Postgres, status: str, sort: str, order: str
) -> None:
    """Between pages other tasks are created and deleted, including the one at the cursor."""
    both = insert(database, ada, [f"{'Äa'[n % 2]}{n // 7} {n % 3}" for n in range(36)])
    staying = in_order([task for task in listed(ada) if task["id"] in both[::2]], status, sort, order)
    met, pages, under_cursor = [], 0, 0
    for page in walk(ada, status=status, sort=sort, order=order, limit=3):
        met += [task["id"] for task in page]
        pages += 1
        if pages > 10:  # or the new ones at the end would never end
            continue
        under_cursor += page[-1]["id"] in both[1::2]
        leaving = [task["id"] for task in page if task["id"] in both[1::2]]
        unmet = (task_id for task_id in both[1::2] if task_id not in met)
        for task_id in [*leaving, *([next(unmet, 0)] if pages % 2 else [])]:
            ada.client.delete(f"/tasks/{task_id}")
        for title in ("!", "ä2", "\U0010fffd"):
            ada.create(title, completed=status == "completed")
    assert under_cursor
    assert len(met) == len(set(met))
    assert [task_id for task_id in met if task_id in both[::2]] == [task["id"] for task in staying]


@EVERY_COMBINATION
def test_only_a_page_that_others_follow_has_a_link(
    ada: Account, database: Postgres, status: str, sort: str, order: str
) -> None:
    insert(database, ada, TITLES[:12])
    query = {"status": status, "sort": sort, "order": order}
    everything = listed(ada, **query)
    assert len(everything) > 3
    for limit in (1, 3, len(everything) - 1, len(everything), len(everything) + 1):
        pages = list(walk(ada, **query, limit=limit))
        assert [task for page in pages for task in page] == everything
        assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
        assert 1 <= len(pages[-1]) <= limit


def test_a_page_has_at_most_a_thousand_tasks_which_is_the_default(ada: Account, database: Postgres) -> None:
    inserted = insert(database, ada, ["Buy milk"] * 2001)
    for query in ({}, {"limit": 1000}):
        pages = [[task["id"] for task in page] for page in walk(ada, **query)]
        assert pages == [inserted[:1000], inserted[1000:2000], inserted[2000:]]


def test_a_link_keeps_what_was_asked(ada: Account) -> None:
    for title in "abc":
        ada.create(title, completed=True)
    asked: dict[str, str | int] = {"status": "completed", "sort": "title", "order": "desc", "limit": 1}
    link = NEXT.fullmatch(ada.client.get("/tasks", params=asked).headers["Link"])
    assert link
    *kept, cursor = link[1].removeprefix("/tasks?").split("&")
    assert sorted(kept) == ["limit=1", "order=desc", "sort=title", "status=completed"]
    assert cursor.startswith("cursor=")


def test_a_cursor_goes_on_with_another_limit_or_status(ada: Account) -> None:
    created = [ada.create(title, completed=title != "c") for title in "abcd"]
    cursor = cursor_after_one(ada)
    assert listed(ada, cursor=cursor, limit=2) == created[1:3]
    assert listed(ada, cursor="", limit=1) == created[:1]  # as generated clients send an absent one
    assert listed(ada, cursor=cursor, status="completed") == [created[1], created[3]]


@pytest.mark.parametrize("cursor", ["x", "=", "0" * 40, "ä", "\x00", "%", "_-" * 4000, "AAAA AAAA", "null"])
def test_a_cursor_that_is_not_ours_is_a_validation_error(ada: Account, cursor: str) -> None:
    refuses(ada, "cursor", cursor=cursor)


def test_a_cursor_is_for_one_user_sort_and_order(ada: Account, bob: Account) -> None:
    for account in (ada, bob):
        for title in "abc":
            account.create(title)
    for sort, order in product(("created", "title"), ("asc", "desc")):
        cursor = cursor_after_one(ada, sort=sort, order=order)
        assert len(listed(ada, sort=sort, order=order, cursor=cursor)) == 2
        refuses(bob, "cursor", sort=sort, order=order, cursor=cursor)
        for other in product(("created", "title"), ("asc", "desc")):
            if other != (sort, order):
                refuses(ada, "cursor", sort=other[0], order=other[1], cursor=cursor)


@pytest.mark.parametrize("sort", ["created", "title"])
def test_a_cursor_that_was_touched_is_refused(ada: Account, sort: str) -> None:
    for title in ("Äpfel", "öl"):
        ada.create(title)
    cursor = cursor_after_one(ada, sort=sort)
    for place in (*range(0, len(cursor), 3), len(cursor) - 1):
        letter = "A" if cursor[place] != "A" else "B"
        refuses(ada, "cursor", sort=sort, cursor=cursor[:place] + letter + cursor[place + 1 :])
    refuses(ada, "cursor", sort=sort, cursor=cursor[:-4])
    refuses(ada, "cursor", sort=sort, cursor=cursor + "AAAA")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("status", ["", "done", "Pending", "all,pending", "true"]),
        ("sort", ["", "id", "Title", "title_key", "created_at; DROP TABLE tasks"]),
        ("order", ["", "up", "ASC", "asc, id"]),
        ("limit", ["", "0", "1001", "-1", "+1", "1.0", "1e2", "0x10", " 1", "٣", "ten", "9" * 5000]),
    ],
)
def test_a_query_outside_the_contract_is_a_validation_error(
    ada: Account, field: str, values: list[str]
) -> None:
    for value in values:
        refuses(ada, field, **{field: value})


def refuses(account: Account, field: str, **query: str) -> None:
    """Assert that the query is refused, for this field alone."""
    response = account.client.get("/tasks", params=query)
    body = response.json()
    assert (response.status_code, body["code"]) == (400, "validation_error"), (query, response.text)
    assert [error["field"] for error in body["errors"]] == [field]
