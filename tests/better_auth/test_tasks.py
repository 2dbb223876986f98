"""The task routes for users of a Better Auth server, whose ids may be any text."""

import re
from urllib.parse import quote

import pytest

from tests.better_auth.server import ExternalUser
from tests.service import Service
from tests.tasks.test_user_scoped import every_request
from tests.tokens import shared_token

ODD_IDS = [
    "auth0|5f7c8ec7c33c6c004bbafe82",
    "eve@example.org",
    "a b",
    "a+b",
    "ü",
    "💡",
    "a?b#c",
    "100%",
    "%2e",
    "a%2Fb",
    "a%252Fb",
    "a/b",
    "/",
    "https://id.example/u/1?x=%2F",
    "a;b=c&d",
    "'; DROP TABLE users --",
    "tasks",
    "...",
    "~\\^`{}[]<>",
    "two\nlines",
]


def url_of(user_id: str) -> str:
    return f"/api/{quote(user_id, safe='')}/tasks"


def test_an_external_user_does_everything_with_their_tasks(federated: Service, eve: ExternalUser) -> None:
    """The token comes from a real Better Auth."""
    client, tasks = federated.client(eve.token()), f"/api/{eve.id}/tasks"
    created = client.post(tasks, json={"title": " Buy milk ", "description": "Two litres"})
    task = created.json()
    assert (created.status_code, created.headers["Location"]) == (201, f"{tasks}/{task['id']}")
    assert (task["user_id"], task["title"], task["completed"]) == (eve.id, "Buy milk", False)
    one = created.headers["Location"]
    assert client.get(tasks).json() == [task]
    assert client.get(one).json() == task
    assert client.put(one, json={"title": "Buy oat milk"}).json()["title"] == "Buy oat milk"
    assert client.patch(one, json={"description": None}).json()["description"] is None
    assert client.patch(f"{one}/complete").json()["completed"] is True
    assert client.get(tasks, params={"status": "pending"}).json() == []
    assert client.delete(one).status_code == 204
    assert client.get(one).status_code == 404


@pytest.mark.parametrize("surface", ["/tasks", "/api/{}/tasks"])
@pytest.mark.parametrize("kind", ["ours", "jwks", "secret"])
def test_both_surfaces_take_every_trusted_token(
    federated: Service, eve: ExternalUser, surface: str, kind: str
) -> None:
    local = federated.register()
    user_id, token = {
        "ours": (local.id, local.tokens["access_token"]),
        "jwks": (eve.id, eve.token()),
        "secret": (eve.id, shared_token(eve.id)),
    }[kind]
    client, tasks = federated.client(token), surface.format(user_id)
    task = client.post(tasks, json={"title": "Mine"}).json()
    for method, url, options in every_request(tasks, task["id"]):
        response = client.request(method, url, **options)
        assert response.is_success, (method, url, response.text)


@pytest.mark.parametrize("user_id", ODD_IDS)
def test_a_user_id_is_any_text_percent_encoded(federated: Service, user_id: str) -> None:
    """`Location` and `Link` name the user as the request did, and can be followed as they are."""
    client, tasks = federated.client(shared_token(user_id)), url_of(user_id)
    created = [client.post(tasks, json={"title": title}) for title in "abc"]
    assert [response.status_code for response in created] == [201] * 3
    assert {response.json()["user_id"] for response in created} == {user_id}
    assert client.get(created[0].headers["Location"]).json() == created[0].json()
    page = client.get(tasks, params={"limit": 2})
    following = re.fullmatch(r'<([^>]*)>; rel="next"', page.headers["Link"])
    assert following
    assert client.get(following[1]).json() == [created[2].json()]


def test_a_user_id_that_is_only_like_the_tokens_is_another(federated: Service) -> None:
    user_id = "kUuJQkCXGKvYwTNlJXEnHVR5dLQJTGQP"
    client = federated.client(shared_token(user_id))
    for other in (user_id.swapcase(), f"{user_id} ", f"{user_id}x", user_id[:-1], f"{user_id}\0"):
        assert client.get(url_of(other)).json()["code"] == "wrong_user", other


def test_a_slash_that_is_not_encoded_ends_a_segment(federated: Service) -> None:
    client = federated.client(shared_token("c/d"))
    assert client.get("/api/c/d/tasks").json()["code"] == "not_found"
    task = client.post("/api/c%2fd/tasks", json={"title": "Buy milk"}).json()
    assert client.get(f"/api/c%2Fd%2Ftasks/{task['id']}").json()["code"] == "not_found"
    assert client.get(f"/tasks%2F{task['id']}").json()["code"] == "not_found"
    assert client.get(f"/tasks/{task['id']}").json() == task
