"""The routes under `/api/{user_id}/tasks`, which differ from those under `/tasks` in four answers."""

import re
import time
from typing import Any

import httpx2
import pytest

from tests.service import Account, Service
from tests.tokens import resigned


def every_request(tasks: str, task_id: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Return a request for each of the routes under `tasks`."""
    task = f"{tasks}/{task_id}"
    return [
        ("POST", tasks, {"json": {"title": "New"}}),
        ("GET", tasks, {}),
        ("GET", task, {}),
        ("PUT", task, {"json": {"title": "Put"}}),
        ("PATCH", task, {"json": {"title": "Patched"}}),
        ("PATCH", f"{task}/complete", {}),
        ("DELETE", task, {}),
    ]


# The four differences


@pytest.mark.parametrize(
    ("surface", "invalid", "foreign"),
    [("/tasks", 400, (403, "task_forbidden")), ("/api/{}/tasks", 422, (404, "task_not_found"))],
)
def test_the_surfaces_differ_for_invalid_data_and_foreign_tasks(
    ada: Account, bob: Account, surface: str, invalid: int, foreign: tuple[int, str]
) -> None:
    """R3, R4: 400 and 403; R2: 422 and 404."""
    tasks, own, foreign_task = surface.format(ada.id), ada.create(), bob.create()
    for method, url, body in (
        ("POST", tasks, {"json": {"title": " "}}),
        ("POST", tasks, {}),
        ("PUT", f"{tasks}/{own['id']}", {"json": {}}),
        ("PATCH", f"{tasks}/{own['id']}", {"json": {"completed": "yes"}}),
        ("GET", f"{tasks}?limit=0", {}),
        ("GET", f"{tasks}?cursor=mine", {}),
    ):
        response = ada.client.request(method, url, **body)
        assert (response.status_code, response.json()["code"]) == (invalid, "validation_error"), url
    for method, url, body in every_request(tasks, foreign_task["id"])[2:]:
        response = ada.client.request(method, url, **body)
        assert (response.status_code, response.json()["code"]) == foreign, (method, url)
    assert bob.client.get("/tasks").json() == [foreign_task]


def test_a_foreign_task_cannot_be_told_from_none(ada: Account, bob: Account) -> None:
    """The bodies are equal too. Only the log records the difference."""
    foreign, none = bob.create()["id"], 2**62
    answers = [ada.client.get(f"/api/{ada.id}/tasks/{task_id}") for task_id in (foreign, none)]
    bodies = [answer.json() | {"request_id": ""} for answer in answers]
    assert bodies[0] == bodies[1]
    assert [name.lower() for name in answers[0].headers] == [name.lower() for name in answers[1].headers]


def test_another_users_address_is_403_before_anything_is_looked_at(
    service: Service, ada: Account, bob: Account
) -> None:
    """The task, the body and the query do not matter. The log has the reason `wrong_user`."""
    theirs, task_id = f"/api/{bob.id}/tasks", bob.create()["id"]
    bad = {"content": b"{", "headers": {"Content-Type": "text/plain"}}
    requests = [
        *every_request(theirs, task_id),
        *every_request(theirs, 2**62),
        ("POST", theirs, {"json": {"title": ""}}),
        ("POST", theirs, bad),
        ("PUT", f"{theirs}/{task_id}", bad),
        ("GET", f"{theirs}?limit=x", {}),
        ("GET", f"{theirs}/abc", {}),
        ("DELETE", f"{theirs}/0", {}),
        ("GET", "/api/nobody/tasks", {}),
    ]
    for method, url, options in requests:
        response = ada.client.request(method, url, **options)
        assert (response.status_code, response.json()["code"]) == (403, "wrong_user"), (method, url)
        (line,) = service.lines(event="auth.denied", request_id=response.headers["X-Request-ID"])
        assert (line["reason"], line["user_id"]) == ("wrong_user", ada.id)
    assert [task["id"] for task in bob.client.get("/tasks").json()] == [task_id]


def test_a_dead_token_at_another_users_address_is_401(service: Service, ada: Account, bob: Account) -> None:
    """The token has expired or its session has ended. The response does not show that the user differs."""
    expired = service.client(resigned(ada.tokens["access_token"], exp=int(time.time()) - 1))
    ada.client.post("/auth/logout")
    for client, code in ((expired, "token_expired"), (ada.client, "token_revoked")):
        for method, url, options in every_request(f"/api/{bob.id}/tasks", 1):
            response = client.request(method, url, **options)
            assert (response.status_code, response.json()["code"]) == (401, code), (method, url)


# The same job on both surfaces


def the_job(client: httpx2.Client, tasks: str, foreign_task: int) -> list[tuple[httpx2.Response, str]]:
    """Send valid and invalid requests of every kind on tasks; return the responses with their names."""
    answers: list[tuple[httpx2.Response, str]] = []

    def do(method: str, path: str = "", **options: Any) -> httpx2.Response:
        response = client.request(method, f"{tasks}{path}", **options)
        answers.append((response, f"{method} {path.partition('cursor=')[0]} {options}"))
        return response

    ids = [do("POST", json={"title": title, "description": "ü"}).json()["id"] for title in ("b", "Ä", "c")]
    one = f"/{ids[0]}"
    do("POST", json={"title": ""})
    do("POST", content=b"{", headers={"Content-Type": "application/json"})
    do("POST", content=b"x", headers={"Content-Type": "text/plain"})
    do("POST", content=b" " * 70_000)
    do("POST", json={"title": 7, "completed": "no"})
    do("GET", one)
    do("PUT", one, json={"title": "<b>B</b>", "completed": True})
    do("PUT", one, json={"title": "<b>B</b>", "completed": True})
    do("PATCH", one, json={"description": None})
    do("PATCH", one, json={})
    do("PATCH", f"{one}/complete")
    do("GET", params={"status": "pending", "sort": "title", "order": "desc"})
    page = do("GET", params={"limit": 2})
    do("GET", page.headers["Link"].partition(">")[0].removeprefix(f"<{tasks}"))
    for query in ("limit=0", "limit=x", "status=done", "sort=id", "cursor=no"):
        do("GET", f"?{query}")
    for unknown in ("/abc", "/0", f"/{2**62}", f"/{10**30}", "/1e3", "/", f"{one}/nothing"):
        do("GET", unknown)
    do("OPTIONS", one)
    do("POST", one)
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        do(method, f"/{foreign_task}", json={"title": "Mine now"})
    do("DELETE", one)
    do("DELETE", one)
    return answers


def comparable(response: httpx2.Response, tasks: str, ids: dict[str, str]) -> tuple[int, str, str]:
    """Return status, headers and body, without the values that differ in each request."""
    text = response.text
    headers = dict(response.headers)
    for name in ("date", "x-request-id", "content-length"):
        headers.pop(name, None)
    if "etag" in headers:
        headers["etag"] = re.sub('".+"', '"<tag>"', headers["etag"])
    text = re.sub(r'"request_id":"[^"]*"', '"request_id":""', text)
    text = re.sub(r'"\d{4}-\d\d-\d\dT[\d:.]+Z"', '"<time>"', text)
    text = re.sub(r'"id":(\d+)', lambda match: f'"id":<{ids.setdefault(match[1], str(len(ids)))}>', text)
    shown = re.sub(r"cursor=[\w-]+", "cursor=<cursor>", str(sorted(headers.items()))).replace(
        tasks, "<tasks>"
    )
    shown = re.sub(r"<tasks>/(\d+)", lambda match: f"<tasks>/{ids.get(match[1], match[1])}", shown)
    return response.status_code, shown, text


def expected(of_self_contained: tuple[int, str, str]) -> tuple[int, str, str]:
    """Return the answer that the user-scoped surface has in place of this one."""
    _, headers, body = of_self_contained
    if '"code":"validation_error"' in body:
        return 422, headers, body.replace('"status_code":400', '"status_code":422')
    if '"code":"task_forbidden"' in body:
        concealed = '{"status_code":404,"detail":"Task not found","code":"task_not_found","request_id":""}'
        return 404, headers, concealed
    return of_self_contained


def test_the_same_job_has_the_same_answers_byte_for_byte_but_for_the_differences(
    service: Service, bob: Account
) -> None:
    """Ids, times, cursors and request ids may differ. Each prefix has its own user, who has no tasks yet."""
    foreign = bob.create()["id"]
    answers: list[list[tuple[int, str, str]]] = []
    names: list[list[str]] = []
    for surface in ("/tasks", "/api/{}/tasks"):
        account, ids = service.register(), dict[str, str]()
        job = the_job(account.client, tasks := surface.format(account.id), foreign)
        answers.append([comparable(r, tasks, ids) for r, _ in job])
        answers[-1] = [(s, h, b.replace(account.id, "<user>")) for s, h, b in answers[-1]]
        names.append([re.sub(r"/\d+", "/<id>", name) for _, name in job])
    assert names[0] == names[1]
    for name, one, other in zip(names[0], *answers, strict=True):
        assert other == expected(one), name
    statuses = {status for status, _, _ in answers[0]}
    assert statuses == {200, 201, 204, 400, 403, 404, 405, 413, 415}
    assert {status for status, _, _ in answers[1]} == statuses - {403} | {422}
