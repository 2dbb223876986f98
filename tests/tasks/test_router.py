"""The routes of `/tasks`, each for what it does when all is well."""

from tests.service import Account


def test_a_created_task_is_where_location_says(ada: Account) -> None:
    response = ada.client.post("/tasks", json={"title": "  Buy milk ", "description": "Two litres"})
    assert response.status_code == 201
    task = response.json()
    assert ada.client.get(response.headers["Location"]).json() == task
    assert (task["title"], task["description"], task["completed"]) == ("Buy milk", "Two litres", False)
