"""Tasks of a user who signed in at a real Better Auth."""

import pytest

from tests.better_auth.server import ExternalUser
from tests.service import Service
from tests.tasks.test_user_scoped import every_request
from tests.tokens import shared_token


def test_an_external_user_does_everything_with_their_tasks(federated: Service, eve: ExternalUser) -> None:
    """With the token of a real Better Auth."""
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
