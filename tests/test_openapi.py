"""The OpenAPI document: valid, complete, and true to every answer that the suite saw.

Every test takes its cases from the document, so that a new route is covered as it is.
"""

import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from selectors import EVENT_READ, DefaultSelector
from time import time
from typing import Any
from urllib.parse import urlsplit

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jsonschema_rs import Draft202012Validator
from jsonschema_rs import meta as json_schema
from schemathesis.specs.openapi.definitions import OPENAPI_31

import backend.app  # noqa: F401  # it imports every class of errors
from backend.auth.accounts.passwords import QUEUE_PER_THREAD
from backend.database.pool import WAITING_PER_CONNECTION
from backend.web.errors import AppError
from backend.web.middleware import MAX_BODY_BYTES
from tests.conftest import Postgres, locked
from tests.programs import needs_own_server
from tests.service import ROOT, Account, Service, free_port, seen
from tests.tokens import SHARED_SECRET, claims_for, resigned, shared_token

METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
TOKEN_CODES = {"not_authenticated", "invalid_token", "token_expired", "token_revoked"}
NO_TASK = 2**63 - 1
AT_TIMES = {"Link", "Set-Cookie"}
"""The headers of some responses alone: those with a next page, and those of cookie sessions."""
MAIL_TOKEN = "the token of a mail, as long as it may be"
"""The service does not know this token unless `give_mail_token` stores it."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One method of one path, as the document describes it."""

    method: str
    path: str
    spec: dict[str, Any]
    document: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def answers(self) -> dict[int, dict[str, Any]]:
        """Every documented answer by its status."""
        return {int(status): answer for status, answer in self.spec["responses"].items()}

    @property
    def codes(self) -> dict[str, int]:
        """Every documented error code, with its status."""
        return {
            code: status
            for status, answer in self.answers.items()
            for code in answer.get("content", {}).get("application/json", {}).get("examples", {})
        }

    @property
    def success(self) -> int:
        """The status of a request without conditions that succeeds."""
        return next(iter(self.successes))

    @property
    def successes(self) -> list[int]:
        """Every status that is no error: of a new task, then of one that was there, then 304."""
        found = [status for status in self.answers if status < 400]
        return sorted(found, key=[201, 202, 200, 204, 304].index)

    @property
    def media_type(self) -> str | None:
        """The type of the request body, if it has one."""
        return next(iter(self.spec.get("requestBody", {}).get("content", {})), None)

    def body(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return the request body from the document's examples, with `values` in it."""
        schema = self.document["components"]["schemas"][
            self.spec["requestBody"]["content"][self.media_type]["schema"]["$ref"].rpartition("/")[2]
        ]
        fields = schema["properties"]
        shown = {name: value for name, field in fields.items() for value in examples(field)[:1]}
        return shown | {name: own[name] for name in fields if name in own}

    def matches(self, method: str, path: str) -> bool:
        """Return True if this operation handles a request. HEAD is GET without the body."""
        template = re.sub(r"\{\w+\}", "[^/]+", self.path)
        return self.method == method.replace("HEAD", "GET") and bool(re.fullmatch(template, path))

    def documents(self, method: str, status: int, code: str | None) -> bool:
        """Return True if the document has this response. Only HEAD has errors without a body and code."""
        if code is None:
            return status in self.answers and (status < 400 or method == "HEAD")
        return self.codes.get(code) == status

    def conforms(self, answer: dict[str, Any], response: httpx2.Response) -> bool:
        """Return True if a response conforms to the documented response."""
        content = answer.get("content", {})
        if not content:
            return response.content == b""
        media_type = response.headers["Content-Type"].partition(";")[0]
        value = response.json() if media_type == "application/json" else response.text
        return conforms(self.document, content[media_type]["schema"], value)

    def check(self, response: httpx2.Response, code: str) -> None:
        """Fail unless `response` is the documented refusal with this code, in every detail."""
        assert response.status_code == self.codes[code], f"{self}: {response.text}"
        answer = self.answers[response.status_code]
        assert self.conforms(answer, response), f"{self}: {response.text}"
        assert response.json()["code"] == code, self
        promised = answer["headers"] if code != "internal_error" else ()  # a defect has no known end
        assert [name for name in promised if name not in response.headers] == [], self

    def send(self, client: httpx2.Client, own: dict[str, Any], **changes: Any) -> httpx2.Response:
        """Send the request of the examples, with the test's own values and `changes` in it."""
        if self.media_type is not None and "content" not in changes:
            changes["json" if self.media_type == "application/json" else "data"] = self.body(own)
        return client.request(self.method, self.path.format(**own), **changes)


def own_values(tokens: dict[str, Any], task_id: int = NO_TASK) -> dict[str, Any]:
    """Return the values that no example can contain, by their names in paths and bodies."""
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    names = {"user_id": claims["sub"], "session_id": claims["sid"], "refresh_token": tokens["refresh_token"]}
    return {**names, "task_id": task_id, "token": MAIL_TOKEN}


def give_mail_token(database: Postgres, user_id: str, path: str) -> None:
    """Make `MAIL_TOKEN` valid for the operation of this path, for 30 minutes."""
    purpose = {"/auth/password/reset": "reset", "/auth/email/verify": "verify"}.get(path, "change")
    database.sql("UPDATE users SET pending_email = email WHERE id = $1", user_id)
    database.sql("DELETE FROM mail_tokens")
    database.sql(
        "INSERT INTO mail_tokens (digest, user_id, purpose, email, expires_at)"
        " SELECT sha256($1), id, $2, email, now() + interval '30 minutes' FROM users WHERE id = $3",
        MAIL_TOKEN.encode(),
        purpose,
        user_id,
    )


def examples(field: dict[str, Any]) -> list[Any]:
    """Return the example values of a schema, or of its alternatives."""
    found = [*field.get("examples", ()), *(value for value in (field.get("default"),) if value is not None)]
    found += [
        value for key in ("anyOf", "oneOf") for choice in field.get(key, ()) for value in examples(choice)
    ]
    return [*found, True] if field.get("type") == "boolean" else found


def conforms(document: dict[str, Any], schema: dict[str, Any], value: Any) -> bool:
    """Return True if a value conforms to a schema of the document."""
    whole = {**schema, "components": document["components"]}
    return Draft202012Validator(whole, validate_formats=True).is_valid(value)


def schemas(node: Any) -> Iterator[dict[str, Any]]:
    """Find every JSON Schema in a part of the document."""
    if isinstance(node, dict):
        if "schema" in node:
            yield node["schema"]
        for key, value in node.items():
            if key not in {"schema", "example", "examples"}:
                yield from schemas(value)


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    with service.client() as client:
        answer: dict[str, Any] = client.get("/openapi.json").raise_for_status().json()
    return answer


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> list[Operation]:
    return [
        Operation(method.upper(), path, spec, document)
        for path, methods in document["paths"].items()
        for method, spec in methods.items()
    ]


def documenting(operations: list[Operation], code: str) -> list[Operation]:
    """Return the operations that document an error code; fails if none does, or a test would be empty."""
    found = [operation for operation in operations if code in operation.codes]
    assert found, f"no operation documents {code}"
    return found


def test_every_code_is_in_the_document(document: dict[str, Any], operations: list[Operation]) -> None:
    """An operation lists its own; `ErrorBody` names those that any request may meet."""
    words = document["components"]["schemas"]["ErrorBody"]["properties"]["code"]["description"]
    anywhere = set(re.findall(r"`(\w+)`", words))
    documented = {code for operation in operations for code in operation.codes}
    ours = {kind.code for kind in _kinds(AppError) if kind.__module__.startswith("backend.")}
    assert documented | anywhere == ours


def _kinds(kind: type[AppError]) -> Iterator[type[AppError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from _kinds(inner)


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    """Every program that reads OpenAPI can import it."""
    assert document["openapi"].startswith("3.1.")
    assert [str(error) for error in Draft202012Validator(OPENAPI_31).iter_errors(document)] == []


def test_every_schema_of_the_document_is_valid_and_every_reference_leads_somewhere(
    document: dict[str, Any],
) -> None:
    components = document["components"]["schemas"]
    found = [*components.values(), *schemas(document["paths"])]
    assert [schema for schema in found if not json_schema.is_valid(schema)] == []
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert named == set(components), "a schema that is missing, or that nothing refers to"


def test_every_operation_is_named_and_described(
    document: dict[str, Any], operations: list[Operation]
) -> None:
    tags = {tag["name"] for tag in document["tags"]}
    for operation in operations:
        assert {"summary", "description", "operationId", "tags"} <= set(operation.spec), operation
        assert set(operation.spec["tags"]) <= tags, operation
        for answer in operation.answers.values():
            assert answer["description"], operation
        for parameter in operation.spec.get("parameters", ()):
            assert parameter.get("description") or examples(parameter["schema"]), (operation, parameter)
    names = Counter(operation.spec["operationId"] for operation in operations)
    assert [name for name, times in names.items() if times > 1] == []


def test_every_operation_that_needs_a_token_says_so_and_no_other(
    document: dict[str, Any], operations: list[Operation]
) -> None:
    tokens: list[dict[str, list[str]]] = [{"Bearer": []}, {"Password": []}]
    cookie: dict[str, list[str]] = {"RefreshCookie": []}
    others = {"POST /auth/logout": [*tokens, cookie], "POST /auth/refresh": [cookie, {}]}
    for operation in operations:
        needs_token = set(operation.codes) >= TOKEN_CODES
        expected = others.get(str(operation), tokens if needs_token else [])
        assert operation.spec.get("security") == expected, operation
        assert needs_token or not TOKEN_CODES & set(operation.codes), operation
    assert set(document["components"]["securitySchemes"]) == {"Bearer", "Password", "RefreshCookie"}


def test_a_token_can_be_pasted_and_a_password_exchanged_for_one(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    pasted, password = schemes["Bearer"], schemes["Password"]
    assert (pasted["type"], pasted["scheme"], pasted["bearerFormat"]) == ("http", "bearer", "JWT")
    flow = password["flows"]["password"]
    assert flow["tokenUrl"] == flow["refreshUrl"] == "auth/token"


def test_the_document_names_its_server_its_licence_and_whom_to_ask(document: dict[str, Any]) -> None:
    assert document["servers"] == [{"url": "/"}]
    assert document["info"]["license"]["name"]
    assert document["info"]["contact"]["name"]


def test_every_header_that_an_answer_may_have_is_in_the_document(operations: list[Operation]) -> None:
    by_name = {str(operation): operation for operation in operations}
    expected = {
        ("POST /tasks", 201): {"Location", "ETag"},
        ("GET /tasks", 200): {"Link", "ETag"},
        ("GET /tasks/{task_id}", 304): {"ETag"},
        ("POST /tasks", 415): {"Accept"},
        ("POST /tasks", 401): {"WWW-Authenticate"},
        ("POST /tasks", 503): {"Retry-After"},
        ("POST /auth/login", 429): {"Retry-After"},
        ("POST /auth/register", 201): {"Set-Cookie"},
        ("POST /auth/login", 200): {"Set-Cookie"},
        ("POST /auth/refresh", 200): {"Set-Cookie"},
        ("POST /auth/password", 200): {"Set-Cookie"},
        ("POST /auth/logout", 204): {"Set-Cookie"},
    }
    found = {(name, status): set(by_name[name].answers[status]["headers"]) for name, status in expected}
    assert found == {place: {*names, "X-Request-ID"} for place, names in expected.items()}
    answers = [answer for operation in operations for answer in operation.answers.values()]
    assert [answer for answer in answers if "X-Request-ID" not in answer["headers"]] == []


def test_a_cursor_is_a_plain_string_that_may_be_empty(ada: Account, operations: list[Operation]) -> None:
    parameters = [one for operation in operations for one in operation.spec.get("parameters", ())]
    cursors = [one["schema"] for one in parameters if one["name"] == "cursor"]
    assert [schema["type"] for schema in cursors] == ["string"] * 2
    ada.create()
    assert ada.client.get("/tasks?cursor=").json() == ada.client.get("/tasks").json()


def test_no_schema_has_alternatives_without_a_type_and_no_field_of_a_request_a_default(
    document: dict[str, Any],
) -> None:
    """Generators turn the first into `unknown` and the second into a required field."""
    shapes = document["components"]["schemas"]
    assert [name for name, shape in shapes.items() if "anyOf" in shape] == []
    assert shapes["TaskUpdate"]["minProperties"] == 1
    fields = [field for shape in shapes.values() for field in shape["properties"].values()]
    assert [field for field in fields if "default" in field] == []


def test_every_id_that_is_a_number_has_64_bits(document: dict[str, Any], operations: list[Operation]) -> None:
    parameters = [one for operation in operations for one in operation.spec.get("parameters", ())]
    ids = [one["schema"] for one in parameters if one["name"] == "task_id"]
    ids.append(document["components"]["schemas"]["TaskRead"]["properties"]["id"])
    assert {field["format"] for field in ids} == {"int64"}


def test_parameters_come_in_the_order_of_the_path(operations: list[Operation]) -> None:
    for operation in operations:
        named = [one["name"] for one in operation.spec.get("parameters", ()) if one["in"] == "path"]
        assert named == re.findall(r"{(\w+)}", operation.path), operation


def test_no_two_operations_look_alike_in_a_list(operations: list[Operation]) -> None:
    summaries = Counter(operation.spec["summary"] for operation in operations)
    assert [summary for summary, times in summaries.items() if times > 1] == []
    surfaces = {operation.spec["tags"][0]: operation.path for operation in operations}
    assert surfaces["tasks"].startswith("/tasks")
    assert surfaces["tasks of a user"].startswith("/api/")


def test_the_document_in_the_tree_is_the_one_that_is_served(document: dict[str, Any]) -> None:
    """After a change of the interface: `python -m backend openapi > backend/openapi.json`."""
    assert json.loads((ROOT / "backend" / "openapi.json").read_text()) == document


def test_every_field_has_an_example_that_its_schema_accepts(document: dict[str, Any]) -> None:
    fields = {
        f"{name}.{key}": field
        for name, schema in document["components"]["schemas"].items()
        for key, field in schema["properties"].items()
        if name not in {"ErrorBody", "FieldError"}  # each error of each operation has whole examples
        and not {"$ref", "const", "enum"} & set(field)
    }
    assert [name for name, field in fields.items() if not examples(field)] == []
    wrong = [
        (name, value)
        for name, field in fields.items()
        for value in examples(field)
        if not conforms(document, field, value)
    ]
    assert wrong == []


def test_every_error_of_every_operation_has_a_schema_and_an_example_of_each_code(
    operations: list[Operation],
) -> None:
    for operation in operations:
        assert {"content_too_large", "internal_error"} <= set(operation.codes), operation
        for status, answer in operation.answers.items():
            if status < 400:
                continue
            assert set(answer["content"]) == {"application/json"}, f"{operation}: {status}"
            content = answer["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/ErrorBody"}, f"{operation}: {status}"
            for code, example in content["examples"].items():
                value = example["value"]
                assert conforms(operation.document, content["schema"], value), (operation, code)
                assert (value["code"], value["status_code"]) == (code, status)


def test_what_takes_a_body_documents_every_way_in_which_it_can_be_wrong(operations: list[Operation]) -> None:
    for operation in operations:
        if operation.media_type is None:
            continue
        invalid = 422 if operation.path.startswith("/api/") else 400
        expected = {"validation_error": invalid, "unsupported_media_type": 415}
        if operation.media_type == "application/json":
            expected["malformed_json"] = 400
        assert expected.items() <= operation.codes.items(), operation


def test_the_examples_of_the_document_work(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres], operations: list[Operation]
) -> None:
    """An example of `/docs`, sent with one's own ids and tokens, gets the documented response."""
    database = new_database()
    client = new_service(DATABASE_URL=database.url).client()
    by_name = {str(operation): operation for operation in operations}
    register, sign_in = by_name["POST /auth/register"], by_name["POST /auth/login"]
    create, leave = by_name["POST /tasks"], by_name["DELETE /auth/me"]
    for operation in [register, *(other for other in operations if other not in {register, leave}), leave]:
        own: dict[str, Any] = {}
        if operation is not register:
            tokens = sign_in.send(client, own).json()
            client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
            own = own_values(tokens, create.send(client, own).json()["id"])
            give_mail_token(database, own["user_id"], operation.path)
        response = operation.send(client, own)
        assert response.status_code == operation.success, f"{operation}: {response.text}"
        answer = operation.answers[operation.success]
        assert operation.conforms(answer, response), f"{operation}: {response.text}"
        promised = set(answer["headers"]) - AT_TIMES
        assert [name for name in promised if name not in response.headers] == [], operation


@pytest.mark.parametrize("code", sorted(TOKEN_CODES))
def test_every_operation_with_a_token_refuses_any_that_is_not_good(
    service: Service, ada: Account, bob: Account, operations: list[Operation], code: str
) -> None:
    assert bob.client.post("/auth/logout").status_code == 204
    tokens = {
        "not_authenticated": None,
        "invalid_token": "nonsense",
        "token_expired": resigned(ada.tokens["access_token"], exp=int(time()) - 1),
        "token_revoked": bob.tokens["access_token"],
    }
    client = service.client(tokens[code])
    for operation in documenting(operations, code):
        response = operation.send(client, own_values(ada.tokens))
        operation.check(response, code)
        challenge = response.headers["WWW-Authenticate"]
        assert challenge.startswith("Bearer")
        assert ('error="invalid_token"' in challenge) == (code != "not_authenticated")


def broken_query(operation: Operation) -> dict[str, str]:
    """Return a query that cannot be valid: a parameter that is no plain text has no value `!`."""
    parameters = operation.spec.get("parameters", ())
    asked = {parameter["name"]: parameter["schema"] for parameter in parameters if parameter["in"] == "query"}
    return {name: "!" for name, schema in asked.items() if "enum" in schema or schema.get("type") != "string"}


def broken(operation: Operation, code: str) -> dict[str, Any]:
    """Return the changes of a request that cause this error."""
    if code == "validation_error" and operation.media_type is None:
        return {"params": broken_query(operation)}
    media_type = "text/plain" if code == "unsupported_media_type" else operation.media_type or "text/plain"
    content = {
        "malformed_json": b'{"title": NaN}',
        "validation_error": b"",
        "unsupported_media_type": b"hello",
        "content_too_large": b" " * (MAX_BODY_BYTES + 1),
    }
    return {"content": content[code], "headers": {"Content-Type": media_type}}


@pytest.mark.parametrize(
    "code", ["malformed_json", "validation_error", "unsupported_media_type", "content_too_large"]
)
def test_every_operation_refuses_a_request_that_cannot_be_right(
    ada: Account, operations: list[Operation], code: str
) -> None:
    for operation in documenting(operations, code):
        operation.check(operation.send(ada.client, own_values(ada.tokens), **broken(operation, code)), code)


def test_every_operation_on_a_task_refuses_one_that_is_not_the_callers(
    ada: Account, bob: Account, operations: list[Operation]
) -> None:
    """Where the path names the user, the answer is 404."""
    nobodys, bobs = own_values(ada.tokens), own_values(ada.tokens, bob.create()["id"])
    on_a_task = [operation for operation in operations if "{task_id}" in operation.path]
    for operation in on_a_task:
        operation.check(operation.send(ada.client, nobodys), "task_not_found")
        foreign = "task_not_found" if operation.path.startswith("/api/") else "task_forbidden"
        operation.check(operation.send(ada.client, bobs), foreign)
    assert on_a_task == documenting(operations, "task_not_found")


def test_every_operation_of_a_user_in_the_path_refuses_another_one(
    ada: Account, bob: Account, operations: list[Operation]
) -> None:
    bobs = own_values(bob.tokens, bob.create()["id"])
    on_a_user = [operation for operation in operations if "{user_id}" in operation.path]
    for operation in on_a_user:
        operation.check(operation.send(ada.client, bobs), "wrong_user")
    assert on_a_user == documenting(operations, "wrong_user")


def test_every_operation_knows_whose_account_is_kept_elsewhere_and_that_keys_may_be_out_of_reach(
    new_service: Callable[..., Service], ada: Account, operations: list[Operation]
) -> None:
    """A token server that was never reached is answered like an unreachable database."""
    nowhere = f"http://127.0.0.1:{free_port()}"
    service = new_service(BETTER_AUTH_SECRET=SHARED_SECRET, BETTER_AUTH_URL=nowhere)
    external = service.client(shared_token("somebody"))
    for operation in documenting(operations, "external_account"):
        operation.check(operation.send(external, own_values(ada.tokens)), "external_account")
    key = Ed25519PrivateKey.generate()
    claims = claims_for("somebody", iss=nowhere, aud=nowhere)
    unknown = service.client(jwt.encode(claims, key, "EdDSA", headers={"kid": "unknown"}))
    affected = documenting(operations, "keys_unavailable")
    for operation, response in zip(affected, together(affected, unknown, ada.tokens), strict=True):
        operation.check(response, "keys_unavailable")
        assert "Retry-After" in response.headers, operation


def test_every_operation_that_takes_a_password_refuses_to_be_guessed_at(
    new_service: Callable[..., Service], operations: list[Operation]
) -> None:
    names = ("REGISTER", "SIGNIN_ADDRESS", "MAIL")
    limits = {f"RATE_LIMIT_{name}": "1/hour" for name in names}
    account = new_service(RATE_LIMIT_ENABLED="true", **limits).register()
    wrong = {"email": account.email, "password": "a wrong password"}
    assert account.client.post("/auth/login", json=wrong).status_code == 401
    asking = {"email": account.email}
    assert account.client.post("/auth/password/forgot", json=asking).status_code == 202
    for operation in documenting(operations, "rate_limited"):
        operation.check(operation.send(account.client, own_values(account.tokens)), "rate_limited")


def test_every_operation_refuses_a_mail_token_that_is_none_and_says_where_no_mail_is_sent(
    new_service: Callable[..., Service], ada: Account, operations: list[Operation]
) -> None:
    for operation in documenting(operations, "token_invalid"):
        operation.check(operation.send(ada.client, own_values(ada.tokens)), "token_invalid")
    account = new_service(MAIL_URL="").register()
    for operation in documenting(operations, "mail_unavailable"):
        operation.check(operation.send(account.client, own_values(account.tokens)), "mail_unavailable")


def test_every_sign_in_refuses_an_account_that_is_disabled_or_not_verified(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres], operations: list[Operation]
) -> None:
    database = new_database()
    service = new_service(DATABASE_URL=database.url, EMAIL_VERIFICATION="required")
    client, by_name = service.client(), {str(operation): operation for operation in operations}
    assert by_name["POST /auth/register"].send(client, {}).status_code == 202
    for operation in documenting(operations, "email_unverified"):
        operation.check(operation.send(client, {}), "email_unverified")
    database.sql("UPDATE users SET disabled_at = now()")
    for operation in documenting(operations, "account_disabled"):
        operation.check(operation.send(client, {}), "account_disabled")


def test_every_operation_refuses_a_cookie_session_to_a_page_of_another_origin(
    ada: Account, service: Service, operations: list[Operation]
) -> None:
    client = service.client(headers={"Origin": "https://elsewhere.example"}, cookies={"refresh": "any"})
    for operation in documenting(operations, "csrf_rejected"):
        body = {**operation.body(own_values(ada.tokens)), "session": "cookie"} if operation.media_type else {}
        body.pop("refresh_token", None)
        sent = {"content": json.dumps(body), "headers": {"Content-Type": "application/json"}} if body else {}
        operation.check(operation.send(client, own_values(ada.tokens), **sent), "csrf_rejected")


def test_every_path_knows_the_documented_methods_and_no_other(
    service: Service, operations: list[Operation]
) -> None:
    client = service.client()
    for path in {operation.path for operation in operations}:
        known = {operation.method for operation in operations if operation.path == path}
        for method in METHODS - known:
            response = client.request(method, path)
            assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed"), path
            allowed = known | {"HEAD"} if "GET" in known else known
            assert set(response.headers["Allow"].split(", ")) == allowed, path
        response = client.get(f"{path}/")
        assert (response.status_code, response.json()["code"]) == (404, "not_found"), path


def together(
    operations: list[Operation], client: httpx2.Client, tokens: dict[str, Any]
) -> list[httpx2.Response]:
    """Send the requests of all operations at once, because each waits for retries."""
    with ThreadPoolExecutor(len(operations)) as threads:
        return list(threads.map(lambda operation: operation.send(client, own_values(tokens)), operations))


def may_break(operation: Operation) -> bool:
    """Return True if a test can cause a 500. Operations for probes and scrapers read no table."""
    return "service" not in operation.spec["tags"]


def test_every_operation_answers_500_when_it_breaks_and_503_when_its_database_is_gone(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres], operations: list[Operation]
) -> None:
    """A wrong schema of the database causes the 500."""
    database = new_database()
    account = new_service(DATABASE_URL=database.url).register()

    for table, column in (("users", "id"), ("outbox", "kind"), ("mail_tokens", "digest")):
        database.sql(f"ALTER TABLE {table} RENAME COLUMN {column} TO key")
    affected = [operation for operation in documenting(operations, "internal_error") if may_break(operation)]
    for operation, response in zip(affected, together(affected, account.client, account.tokens), strict=True):
        operation.check(response, "internal_error")
        assert not re.search(r"users|column|sql|traceback|/", response.text, re.IGNORECASE), operation

    name = urlsplit(database.url).path[1:]
    new_database().sql(f"DROP DATABASE {name} WITH (FORCE)")
    affected = documenting(operations, "database_unavailable")
    for operation, response in zip(affected, together(affected, account.client, account.tokens), strict=True):
        operation.check(response, "database_unavailable")
        assert "Retry-After" in response.headers, operation
    assert {operation.path for operation in operations if operation not in affected} == {
        "/health",
        "/metrics",
    }


def test_every_operation_that_hashes_answers_503_while_the_queue_is_full(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres], operations: list[Operation]
) -> None:
    database = new_database()
    # About a second for each hash.
    service = new_service(DATABASE_URL=database.url, BCRYPT_ROUNDS="14", DATABASE_POOL_SIZE="40")
    account = service.register()
    give_mail_token(database, account.id, "/auth/password/reset")
    affected = documenting(operations, "service_unavailable")
    with ExitStack() as waiting:
        fill_hash_queue(service, waiting)
        for operation in affected:
            operation.check(refused_at_once(operation, service, account), "service_unavailable")
        service.stop(signal.SIGKILL)  # it would hash for a minute yet


@needs_own_server
def test_every_operation_that_asks_the_database_answers_503_while_its_queue_is_full(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres], operations: list[Operation]
) -> None:
    database = new_database()
    service = new_service(DATABASE_URL=database.url, DATABASE_POOL_SIZE="1", DATABASE_TIMEOUT_SECONDS="60")
    account = service.register()
    task = account.create()
    affected = documenting(operations, "overloaded")
    with locked(database, task["id"]), ThreadPoolExecutor(WAITING_PER_CONNECTION + 1) as threads:
        for _ in range(WAITING_PER_CONNECTION + 1):
            threads.submit(account.client.patch, f"/tasks/{task['id']}/complete")
        for operation in affected:
            operation.check(refused_at_once(operation, service, account), "overloaded")
        service.stop(signal.SIGKILL)


def fill_hash_queue(service: Service, waiting: ExitStack) -> None:
    """Sign in with an unknown email until one request is refused. The test does not wait for the others."""
    body = b'{"email": "nobody@example.com", "password": "correct horse battery"}'
    request = b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    address = urlsplit(service.url)
    answers = waiting.enter_context(DefaultSelector())
    for _ in range((os.cpu_count() or 1) * QUEUE_PER_THREAD + 16):
        connection = waiting.enter_context(socket.create_connection((address.hostname, address.port)))
        connection.sendall(request)
        answers.register(connection, EVENT_READ)
    assert answers.select(30), "nobody was refused"


def refused_at_once(operation: Operation, service: Service, account: Account) -> httpx2.Response:
    """Send requests until one is refused, because each of the others takes a place in the queue.

    Each uses a new connection, because the service does not read a connection for a while after a refusal.
    """
    while True:
        client = service.client(account.tokens["access_token"])
        try:
            return operation.send(client, own_values(account.tokens), timeout=1)
        except httpx2.ReadTimeout:
            continue


def is_whole(session: pytest.Session) -> bool:
    """Return True if all tests have passed, except those that `scripts/test` runs in parallel."""
    narrowed = any(session.config.getoption(name, None) for name in ("keyword", "markexpr", "deselect", "lf"))
    beside = {ROOT / path for path in session.config.getoption("ignore") or ()}
    files = {file for file in (ROOT / "tests").rglob("test_*.py") if beside.isdisjoint((file, *file.parents))}
    return not narrowed and not session.testsfailed and files <= {item.path for item in session.items}


_PAGE = re.compile(
    r"/|/docs|/redoc|/openapi\.json|/(docs/assets|client|pages)/.+|/(reset-password|(verify|confirm)-email)"
)


def is_everywhere(method: str, path: str, status: int, code: str | None) -> bool:
    """Return True for a response of no operation: to a preflight, a page, or an error before routing."""
    if method == "OPTIONS" and (status, code) in {(200, None), (400, "cors_refused")}:
        return True
    if _PAGE.fullmatch(path) and status in {200, 304, 307}:
        return method in {"GET", "HEAD"}
    refusals = {(404, "not_found"), (405, "method_not_allowed"), (413, "content_too_large")}
    return (status, code) in refusals or (method == "HEAD" and status in {404, 405, 413})


def asked(operations: list[Operation], method: str, path: str) -> Operation | None:
    """Return the operation that handles this request."""
    return next(filter(partial(Operation.matches, method=method, path=path), operations), None)


def test_every_answer_of_the_suite_is_documented(operations: list[Operation]) -> None:
    """It runs last, and knows the answers of one process of pytest."""
    undocumented = []
    for method, path, status, code in sorted(set(seen), key=str):
        if operation := asked(operations, method, path):
            documented = operation.documents(method, status, code)
        else:
            documented = is_everywhere(method, path, status, code)
        if not documented:
            undocumented.append((method, path, status, code))
    assert undocumented == []


def test_every_documented_answer_is_one_of_the_suite(
    request: pytest.FixtureRequest, operations: list[Operation]
) -> None:
    """It runs last."""
    if not is_whole(request.session):
        pytest.skip("only a whole run, all of it passed, shows what nobody saw")
    answers = {
        (str(asked(operations, method, path)), status, code) for method, path, status, code in set(seen)
    }
    promised = {
        (str(operation), status, code)
        for operation in operations
        for code, status in [*((None, status) for status in operation.successes), *operation.codes.items()]
        if code != "internal_error" or may_break(operation)
    }
    assert promised - answers == set()
