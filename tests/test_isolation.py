"""No user sees or changes another user's tasks, by any sequence of requests under either prefix."""

from collections.abc import Callable
from itertools import product
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.conftest import Postgres
from tests.database.test_nodes import STAND_IN
from tests.programs import needs_own_server
from tests.service import Account, Service, program_with

FOREIGN, UNKNOWN = (403, "task_forbidden"), (404, "task_not_found")
ATTEMPTS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "", None),
    ("PUT", "", {"title": "Mine now", "completed": True}),
    ("PATCH", "", {"description": None}),
    ("PATCH", "/complete", None),
    ("DELETE", "", None),
]
EACH_ATTEMPT = pytest.mark.parametrize(("method", "suffix", "body"), ATTEMPTS)

users = st.integers(0, 2)
titles = st.sampled_from(["Buy milk", "buy Milk", "Äpfel", "öl"])
others = {"description": st.sampled_from([None, "", "Two litres"]), "completed": st.booleans()}
new_tasks = st.fixed_dictionaries({"title": titles}, optional=others)
changes = st.fixed_dictionaries({}, optional={"title": titles, **others}).filter(bool)
queries = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["all", "pending", "completed"]),
        "sort": st.sampled_from(["created", "title"]),
        "order": st.sampled_from(["asc", "desc"]),
    }
)


class Users(RuleBasedStateMachine):
    """Three users send random requests about existing and deleted tasks; a model predicts the responses."""

    service: ClassVar[Service]
    task_ids: Bundle[int] = Bundle("task_ids")

    def __init__(self) -> None:
        super().__init__()
        self.accounts = [self.service.register() for _ in range(3)]
        self.tasks: dict[int, dict[str, Any]] = {}

    @rule(target=task_ids, user=users, impostor=users, new=new_tasks)
    def create(self, user: int, impostor: int, new: dict[str, Any]) -> int:
        task = self.accounts[user].create(**new, user_id=self.accounts[impostor].id)
        wanted = {"description": None, "completed": False, **new, "user_id": self.accounts[user].id}
        assert task | wanted == task
        assert task["id"] not in self.tasks
        self.tasks[task["id"]] = task
        return int(task["id"])

    @rule(user=users, task_id=task_ids)
    def read(self, user: int, task_id: int) -> None:
        self.attempt(user, task_id, "GET")

    @rule(user=users, task_id=task_ids, method=st.sampled_from(["PUT", "PATCH"]), change=changes)
    def update(self, user: int, task_id: int, method: str, change: dict[str, Any]) -> None:
        self.attempt(user, task_id, method, body=change, change=change)

    @rule(user=users, task_id=task_ids)
    def toggle(self, user: int, task_id: int) -> None:
        was_completed = self.tasks.get(task_id, {}).get("completed")
        self.attempt(user, task_id, "PATCH", suffix="/complete", change={"completed": not was_completed})

    @rule(user=users, task_id=task_ids)
    def delete(self, user: int, task_id: int) -> None:
        self.attempt(user, task_id, "DELETE")

    def attempt(
        self,
        user: int,
        task_id: int,
        method: str,
        *,
        suffix: str = "",
        body: Any = None,
        change: dict[str, Any] | None = None,
    ) -> None:
        """Send the request, and check the response against the task's owner."""
        response = self.accounts[user].client.request(method, f"/tasks/{task_id}{suffix}", json=body)
        task = self.tasks.get(task_id)
        if task is None or task["user_id"] != self.accounts[user].id:
            refusal = UNKNOWN if task is None else FOREIGN
            assert (response.status_code, response.json()["code"]) == refusal
        elif method == "DELETE":
            assert response.status_code == 204
            del self.tasks[task_id]
        else:
            answer = response.json()
            moved = {"updated_at": answer["updated_at"]} if change else {}
            assert (response.status_code, answer) == (200, {**task, **(change or {}), **moved})
            self.tasks[task_id] = answer

    @rule(user=users, query=queries)
    def list_some(self, user: int, query: dict[str, str]) -> None:
        """Compares the tasks as a set, because `test_list` checks the order."""
        found = self.accounts[user].client.get("/tasks", params=query).json()
        wanted = [
            task
            for task in self.own(user)
            if query["status"] == "all" or task["completed"] == (query["status"] == "completed")
        ]
        assert sorted(found, key=lambda task: int(task["id"])) == wanted

    @invariant()
    def everybody_has_their_own_tasks_and_no_other(self) -> None:
        for user, account in enumerate(self.accounts):
            assert account.client.get("/tasks").json() == self.own(user)

    def own(self, user: int) -> list[dict[str, Any]]:
        return [task for _, task in sorted(self.tasks.items()) if task["user_id"] == self.accounts[user].id]


def test_whatever_users_do_each_has_their_own_tasks_and_no_other(service: Service) -> None:
    quick = settings(
        max_examples=12,
        stateful_step_count=30,
        phases=[Phase.generate],  # shrinking would take minutes, and 30 steps can be read
        deadline=None,
        database=None,
    )
    run_state_machine_as_test(type("Users", (Users,), {"service": service}), settings=quick)


@EACH_ATTEMPT
def test_a_foreign_task_is_403_and_stays_as_it_was(
    ada: Account, bob: Account, method: str, suffix: str, body: dict[str, Any] | None
) -> None:
    task = ada.create("Buy milk", description="Two litres")
    response = bob.client.request(method, f"/tasks/{task['id']}{suffix}", json=body)
    assert (response.status_code, response.json()["code"]) == FOREIGN
    assert not {"Buy milk", "Two litres", ada.id, ada.email} & {*response.json().values()}
    assert ada.client.get("/tasks").json() == [task]
    assert bob.client.get("/tasks").json() == []


@EACH_ATTEMPT
def test_a_task_that_is_not_there_is_404(
    ada: Account, method: str, suffix: str, body: dict[str, Any] | None
) -> None:
    deleted = ada.create()["id"]
    assert ada.client.delete(f"/tasks/{deleted}").status_code == 204
    for task_id in (deleted, 2**63 - 1):
        response = ada.client.request(method, f"/tasks/{task_id}{suffix}", json=body)
        assert (response.status_code, response.json()["code"]) == UNKNOWN


def test_no_query_asks_for_another_s_list(ada: Account, bob: Account) -> None:
    task = ada.create()
    for name, value in product(("user_id", "owner", "id"), (ada.id, task["id"], "*")):
        response = bob.client.get("/tasks", params={name: value})
        assert (response.status_code, response.json()) == (200, [])


def test_a_task_is_created_for_whoever_the_token_names(
    ada: Account, bob: Account, database: Postgres
) -> None:
    """The body, the query and the headers cannot name another owner."""
    response = bob.client.post(
        "/tasks",
        params={"user_id": ada.id},
        headers={"X-User-ID": ada.id},
        json={"title": "Buy milk", "user_id": ada.id, "user": ada.id, "owner_id": ada.id},
    )
    assert response.status_code == 201
    owners = database.sql("SELECT user_id FROM tasks WHERE id = $1", response.json()["id"])
    assert owners == [{"user_id": bob.id}]
    assert ada.client.get("/tasks").json() == []


@needs_own_server
@pytest.mark.parametrize(("catalogue", "answer"), [((), 403), (STAND_IN, 404)])
def test_a_foreign_task_that_a_cluster_cannot_tell_from_none_in_time_is_not_found(
    new_service: Callable[..., Service],
    new_database: Callable[[], Postgres],
    catalogue: tuple[str, ...],
    answer: int,
) -> None:
    """The lookup reads the tasks of all users, and a node with some of them may be down."""
    database = new_database()
    for statement in catalogue:
        database.sql(statement)
    program = program_with("backend.tasks.service.LOOK_SECONDS = 0")
    service = new_service(program=program, DATABASE_URL=database.url)
    ada, bob = service.register(), service.register()
    task = ada.create()
    assert bob.client.get(f"/tasks/{task['id']}").status_code == answer
    changed = ada.client.patch(f"/tasks/{task['id']}", json={"title": "x"}, headers={"If-Match": '"0"'})
    assert (changed.status_code, changed.json()["code"]) == (412, "precondition_failed")
    assert ada.client.get(f"/tasks/{task['id']}").json() == task


def test_a_foreign_task_can_be_concealed(new_service: Callable[..., Service]) -> None:
    """OWASP ASVS 8.2.2: the response is that for a missing task, and the log does not tell them apart."""
    service = new_service(CONCEAL_FOREIGN_TASKS="true")
    ada, bob = service.register(), service.register()
    task, unknown = ada.create(), ada.create()
    assert ada.client.delete(f"/tasks/{unknown['id']}").status_code == 204
    for method, suffix, body in ATTEMPTS:
        foreign, none = (
            bob.client.request(method, f"/tasks/{target['id']}{suffix}", json=body)
            for target in (task, unknown)
        )
        assert foreign.status_code == none.status_code == 404
        assert foreign.json() | {"request_id": ""} == none.json() | {"request_id": ""}
    assert service.lines(event="auth.denied") == []
    assert ada.client.get(f"/tasks/{task['id']}").json() == task
