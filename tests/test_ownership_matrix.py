"""Authorization: each operation of the served OpenAPI document, with each kind of valid or invalid token.

The tests take the operations from the document, so that a new route without a guard fails them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx2
import pytest

from backend.app import create_app
from backend.settings import Settings
from tests.better_auth.jwks import new_key
from tests.better_auth.server import BetterAuth, ExternalUser
from tests.service import JWT_SECRET, Account, Service
from tests.tokens import claims_for, resigned, shared_token

PUBLIC = {
    "POST /auth/register",
    "POST /auth/login",
    "POST /auth/token",
    "POST /auth/refresh",
    "POST /auth/password/forgot",
    "POST /auth/password/reset",
    "POST /auth/email/verification",
    "POST /auth/email/verify",
    "POST /auth/email/confirm",
    "GET /health",
    "GET /health/ready",
    "GET /metrics",
}
"""The operations without authentication. All other operations must require it."""
UNDOCUMENTED = {
    *("/openapi.json", "/docs", "/redoc", "/", "/docs/assets/{name}"),
    *("/reset-password", "/verify-email", "/confirm-email", "/pages/page.css", "/pages/page.js"),
    *("/client/tasks-api.js", "/client/tasks-api.d.ts"),
}
"""Static pages and their assets, the same for every client."""
EXTERNAL_ACCOUNT = {"GET /auth/me"}
"""The operations under `/auth` that an external user may call."""


class Operation(NamedTuple):
    """A method and a path of the OpenAPI document, and a body that it takes."""

    name: str
    method: str
    path: str
    body: Any

    @property
    def is_user_scoped(self) -> bool:
        return "{user_id}" in self.path

    def send(self, client: httpx2.Client, ids: dict[str, str]) -> httpx2.Response:
        """Send it with these path parameters. Each kind of parameter needs a value here."""
        return client.request(self.method, self.path.format(**ids), json=self.body)


def example(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """Return a minimal value that fits `schema`."""
    if "$ref" in schema:
        return example(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    if schema.get("type") == "object":
        names = schema.get("required") or list(schema["properties"])[: schema.get("minProperties", 0)]
        return {name: example(schema["properties"][name], document) for name in names}
    if "anyOf" in schema:
        return example(schema["anyOf"][0], document)
    if schema.get("format") == "email":
        return "somebody.new@example.com"
    return {"string": "x" * max(12, schema.get("minLength", 0)), "boolean": True, "integer": 1}[
        schema["type"]
    ]


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    """Return every operation of an OpenAPI document that is not public."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            name = f"{method.upper()} {path}"
            if name not in PUBLIC:
                content = operation.get("requestBody", {}).get("content", {}).get("application/json")
                body = content and example(content["schema"], document)
                yield Operation(name, method.upper(), path, body)


@pytest.fixture(scope="module")
def document(federated: Service) -> dict[str, Any]:
    answer: dict[str, Any] = federated.client().get("/openapi.json").json()
    return answer


@pytest.fixture(scope="module")
def guarded(document: dict[str, Any]) -> list[Operation]:
    return list(operations(document))


@dataclass
class Victim:
    """An account with a task and a session, and all stored data about it."""

    account: Account

    @property
    def ids(self) -> dict[str, str]:
        (task,) = self.account.client.get("/tasks").json()
        (session,) = self.account.client.get("/auth/sessions").json()
        return {"user_id": self.account.id, "task_id": str(task["id"]), "session_id": session["id"]}

    def everything(self) -> list[Any]:
        return [self.account.client.get(path).json() for path in ("/tasks", "/auth/me", "/auth/sessions")]


@pytest.fixture
def victim(federated: Service) -> Victim:
    account = federated.register(name="Ada the victim")
    account.create("The victim's task")
    return Victim(account)


def answer_of(response: httpx2.Response) -> tuple[int, str | None]:
    """Return the status, and of an error the code."""
    return response.status_code, response.json()["code"] if response.is_error else None


def test_the_public_operations_are_known_and_every_other_says_that_it_takes_a_token(
    document: dict[str, Any], guarded: list[Operation]
) -> None:
    names = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert names >= PUBLIC
    for operation in guarded:
        described = document["paths"][operation.path][operation.method.lower()]
        assert described["security"][:2] == [{"Bearer": []}, {"Password": []}], operation.name
        assert "401" in described["responses"], operation.name


def test_every_route_is_in_the_document() -> None:
    """These tests miss a route that is not in the document, because they read the document."""
    settings = Settings.model_validate({"jwt_secret": JWT_SECRET, "database_url": "postgresql://localhost"})
    routes: Any = create_app(settings).routes
    hidden = {route.path for route in routes if not getattr(route, "include_in_schema", False)}
    assert hidden == UNDOCUMENTED


def no_token(_: Service, __: Victim) -> str | None:
    return None


def expired(_: Service, victim: Victim) -> str:
    return resigned(victim.account.tokens["access_token"], exp=int(time.time()) - 1)


def revoked(service: Service, victim: Victim) -> str:
    credentials = {"email": victim.account.email, "password": "correct horse battery staple"}
    token: str = service.client().post("/auth/login", json=credentials).json()["access_token"]
    assert service.client(token).post("/auth/logout").status_code == 204
    return token


def refresh_token(_: Service, victim: Victim) -> str:
    token: str = victim.account.tokens["refresh_token"]
    return token


def of_another_type(_: Service, victim: Victim) -> str:
    return resigned(victim.account.tokens["access_token"], headers={"typ": "refresh+jwt"})


def of_an_unknown_issuer(_: Service, victim: Victim) -> str:
    return new_key().sign(claims_for(victim.account.id))


def of_another_issuer(_: Service, victim: Victim) -> str:
    return shared_token(victim.account.id)


def with_another_secret(_: Service, victim: Victim) -> str:
    return resigned(victim.account.tokens["access_token"], secret="a secret that is not the service's own")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (no_token, "not_authenticated"),
        (expired, "token_expired"),
        (revoked, "token_revoked"),
        (refresh_token, "invalid_token"),
        (of_another_type, "invalid_token"),
        (of_an_unknown_issuer, "invalid_token"),
        (of_another_issuer, "invalid_token"),
        (with_another_secret, "invalid_token"),
    ],
)
def test_without_a_valid_token_every_guarded_operation_is_401(
    federated: Service, guarded: list[Operation], victim: Victim, make: Any, code: str
) -> None:
    """The ids do not matter. Each operation is sent with and without a body."""
    ids, before = victim.ids, victim.everything()
    nothing = {"user_id": "nobody", "task_id": "0", "session_id": "none"}
    client = federated.client(make(federated, victim))
    for operation in guarded:
        for values in (ids, nothing):
            for request in (operation, operation._replace(body=None)):
                assert answer_of(request.send(client, values)) == (401, code), operation.name
    assert victim.everything() == before


def expected_of_another_user(operation: Operation) -> tuple[int, str] | None:
    """Return the expected status and code if the path names another user's resource."""
    if operation.is_user_scoped:
        return 403, "wrong_user"
    if "{task_id}" in operation.path:
        return 403, "task_forbidden"
    if "{session_id}" in operation.path:
        return 404, "session_not_found"
    return None


def test_another_user_reaches_nothing_of_the_victims(
    federated: Service, guarded: list[Operation], victim: Victim
) -> None:
    """The other user cannot read it, change it or learn that it exists."""
    ids, before = victim.ids, victim.everything()
    told = {victim.account.id, victim.account.email, ids["session_id"], "Ada the victim", "The victim's task"}
    for operation in guarded:
        thief = federated.register().client  # anew: some operations end the session that asks
        response = operation.send(thief, ids)
        expected = expected_of_another_user(operation)
        if expected is not None:
            assert answer_of(response) == expected, operation.name
        assert response.status_code < 500, operation.name
        assert not [secret for secret in told if secret in response.text], operation.name
        assert victim.everything() == before, operation.name


def test_another_users_task_at_ones_own_address_is_as_none(
    federated: Service, guarded: list[Operation], victim: Victim
) -> None:
    thief, before = federated.register(), victim.everything()
    ids = {**victim.ids, "user_id": thief.id}
    found = [operation for operation in guarded if {"{user_id}", "{task_id}"} <= {*operation.path.split("/")}]
    assert found
    for operation in found:
        assert answer_of(operation.send(thief.client, ids)) == (404, "task_not_found"), operation.name
    assert victim.everything() == before


def test_a_user_of_another_issuer_has_their_tasks_and_a_profile_and_nothing_else(
    federated: Service, guarded: list[Operation], victim: Victim, better_auth: BetterAuth
) -> None:
    """`/auth` gives an external user 403 `external_account`. Other routes treat them like any user."""
    before = victim.everything()
    eve: ExternalUser = better_auth.sign_up()
    client = federated.client(eve.token())
    for operation in guarded:
        task = client.post("/tasks", json={"title": "Eve's own"}).json()
        own = {"user_id": eve.id, "task_id": str(task["id"]), "session_id": victim.ids["session_id"]}
        response = operation.send(client, own)
        if operation.path.startswith("/auth/") and operation.name not in EXTERNAL_ACCOUNT:
            assert answer_of(response) == (403, "external_account"), operation.name
        else:
            assert response.is_success, operation.name
        expected = expected_of_another_user(operation)
        if expected is not None and not operation.path.startswith("/auth/"):
            assert answer_of(operation.send(client, victim.ids)) == expected, operation.name
    assert victim.everything() == before
