"""Invalid input on every route: the error names the field, nothing is written and nothing is echoed."""

import base64
import json
import re
import string
import sys
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.database.distribute import BY_EMAIL, BY_USER
from scripts.benchmark.meter import family_cpu_seconds
from tests.conftest import Postgres
from tests.service import JWT_SECRET, PASSWORD, Account, Service, running

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
NEW_EMAIL = "new@bad-input.example"
TASK = {"title": "Buy milk", "description": "Two litres", "completed": True}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/auth/register"): {
        "email": NEW_EMAIL,
        "password": PASSWORD,
        "name": "New",
        "session": "token",
    },
    ("POST", "/auth/login"): {"email": NEW_EMAIL, "password": PASSWORD, "session": "token"},
    ("POST", "/auth/refresh"): {"refresh_token": "none of ours"},
    ("PATCH", "/auth/me"): {"name": "New"},
    ("DELETE", "/auth/me"): {"password": "a wrong password"},
    ("POST", "/auth/password"): {"current_password": "a wrong password", "new_password": PASSWORD},
    ("POST", "/auth/password/forgot"): {"email": NEW_EMAIL},
    ("POST", "/auth/password/reset"): {"token": "none of ours", "new_password": PASSWORD},
    ("POST", "/auth/email/verification"): {"email": NEW_EMAIL},
    ("POST", "/auth/email/verify"): {"token": "none of ours"},
    ("POST", "/auth/email"): {"new_email": NEW_EMAIL, "password": "a wrong password"},
    ("POST", "/auth/email/confirm"): {"token": "none of ours"},
    ("POST", "/tasks"): TASK,
    ("PUT", "/tasks/{task_id}"): TASK,
    ("PATCH", "/tasks/{task_id}"): TASK,
}
BY_ID = [
    ("GET", "/tasks/{task_id}"),
    ("PUT", "/tasks/{task_id}"),
    ("PATCH", "/tasks/{task_id}"),
    ("PATCH", "/tasks/{task_id}/complete"),
    ("DELETE", "/tasks/{task_id}"),
]

# Every rejected value has one of these two in it, so that an echo shows.
WORD, NUMBER = "zebra", 8675309
DEEP: Any = WORD
for _ in range(900):  # what `json` can still write; deeper ones are below
    DEEP = [DEEP]
CONTROL = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
SPACES = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if char.isspace())
"""White space, which is stripped first from both ends of a title, a name and an email."""
SURROGATES = [f"{WORD}\ud800", f"\udfff{WORD}", f"{WORD}\ud83d{WORD}", f"\ude00\ud83d{WORD}"]
NO_TEXT = [NUMBER, -NUMBER, NUMBER + 0.5, 10**4000 + NUMBER, True, False, [WORD], {WORD: WORD}, DEEP]


def too_long(limit: int) -> list[str]:
    """Return texts of just more than `limit` code points, with `WORD` in each."""
    combined = WORD + "e\N{COMBINING ACUTE ACCENT}" * (limit // 2)
    assert len(unicodedata.normalize("NFC", combined)) <= limit < len(combined)
    return [WORD.ljust(limit + 1, "x"), WORD.ljust(limit + 1, "\N{GRINNING FACE}"), combined]


def with_control(allowed: str = "", trimmed: str = "") -> list[str]:
    """Return texts with one control character each, within the text and at either end."""
    bad = [control for control in CONTROL if control not in allowed]
    ends = [control for control in bad if control not in trimmed]
    within = [f"ze{control}bra" for control in bad]
    return within + [text for control in ends for text in (f"{control}{WORD}", f"{WORD}{control}")]


LINE = [*NO_TEXT, *SURROGATES, *too_long(200), *with_control(trimmed=SPACES), "", SPACES]
EMAIL = [
    *NO_TEXT,
    *SURROGATES,
    *with_control(),
    SPACES,
    *(f"{WORD}{control}@example.com" for control in CONTROL),
    None,
    "",
    WORD,
    f"{WORD}@",
    "@example.com",
    f"{WORD}@{WORD}@example.com",
    f"{WORD} {WORD}@example.com",
    f"{WORD}@example..com",
    f"{WORD}@[127.0.0.1]",
    f"{WORD}@{'x' * 64}.com",
    f"{WORD}@xn--a.example",
    f"{WORD}@{'x.' * 125}com",
]
SECRET = [*NO_TEXT, *SURROGATES, None]
WRONG = {
    "title": [*LINE, None],
    "name": LINE,
    "description": [*NO_TEXT, *SURROGATES, *too_long(1000), *with_control("\t\n\r")],
    "completed": [None, 0, 1, 1.0, NUMBER, 10**4000, "true", "yes", "", WORD, [True], {}, DEEP],
    "email": EMAIL,
    "new_email": EMAIL,
    "password": SECRET,
    "current_password": SECRET,
    "new_password": SECRET,
    "refresh_token": SECRET,
    "token": SECRET,
    "session": [*NO_TEXT, *SURROGATES, None, "", WORD],
}
WRONG_NEW_PASSWORDS = ["", WORD, "zebra12", "password", "PASSWORD", WORD.ljust(129, "x"), NEW_EMAIL]

CONTENTS = " UNION ALL ".join(
    f"SELECT '{table}', md5(string_agg(row::text, ' ' ORDER BY row::text)) FROM {table} row"  # noqa: S608
    for table in (*BY_USER, *BY_EMAIL, "outbox")
)


@pytest.fixture(scope="module")
def database(new_database: Callable[[], Postgres]) -> Postgres:
    """A database of these tests alone, because they read all of its rows again and again."""
    return new_database()


@pytest.fixture(scope="module")
def service(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on that database, which replaces the shared one in this module."""
    log = tmp_path_factory.mktemp("bad_input") / "log"
    with running(log, DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def grace(service: Service) -> Account:
    """An account with three tasks."""
    account = service.register()
    for title in ("One", "Two", "Three"):
        account.create(title)
    return account


@pytest.fixture(scope="module")
def task_id(grace: Account) -> int:
    """One of Grace's tasks."""
    return int(grace.client.get("/tasks").json()[0]["id"])


@pytest.fixture
def nothing_written(database: Postgres, task_id: int) -> Iterator[None]:
    """Check that the database has the same rows before and after a test."""
    assert task_id
    before = database.sql(CONTENTS)
    yield
    assert database.sql(CONTENTS) == before


refused_and_unwritten = pytest.mark.usefixtures("nothing_written")
Route = tuple[str, str]
Send = Callable[..., httpx2.Response]


@pytest.fixture
def send(grace: Account, task_id: int) -> Send:
    """Send these bytes to a route, for Grace and about her task."""

    def request(route: Route, content: Any = b"", headers: dict[str, str] = JSON) -> httpx2.Response:
        method, path = route
        return grace.client.request(method, path.format(task_id=task_id), content=content, headers=headers)

    return request


def invalid(response: httpx2.Response, *codes: str) -> list[dict[str, str]]:
    """Check that this is a 400 with one of these codes that echoes nothing; return what is wrong."""
    assert response.status_code == 400
    body = response.json()
    assert body["code"] in codes
    assert_no_echo(response)
    problems: list[dict[str, str]] = body.get("errors", [])
    return problems


def assert_no_echo(response: httpx2.Response) -> None:
    said = response.text + str(response.headers)
    assert WORD not in said
    assert str(NUMBER) not in said
    assert "bra" not in said


# Bodies


def test_the_tables_of_this_file_name_every_route_that_takes_a_body_or_an_id(service: Service) -> None:
    """The routes under /api are exempt, because `tests/tasks/test_user_scoped.py` compares their handlers."""
    paths = service.client().get("/openapi.json").json()["paths"]
    paths = {path: paths[path] for path in paths if not path.startswith("/api/")}
    routes = {(method.upper(), path): paths[path][method] for path in paths for method in paths[path]}
    bodies = {route: routes[route].get("requestBody", {}).get("content", {}) for route in routes}
    assert {route for route in routes if "application/json" in bodies[route]} == set(BODIES)
    assert [route for route in routes if FORM["Content-Type"] in bodies[route]] == [("POST", "/auth/token")]
    assert sorted(route for route in routes if "{task_id}" in route[1]) == sorted(BY_ID)
    for route, body in BODIES.items():
        name = bodies[route]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        schema = service.client().get("/openapi.json").json()["components"]["schemas"][name]
        assert set(schema["properties"]) == set(body) <= set(WRONG)


@refused_and_unwritten
@pytest.mark.parametrize(
    ("route", "field"), [(route, field) for route, body in BODIES.items() for field in body]
)
def test_a_wrong_value_of_a_field_is_refused_by_the_fields_name(send: Send, route: Route, field: str) -> None:
    for value in WRONG[field]:
        response = send(route, json.dumps({**BODIES[route], field: value}).encode())
        problems = invalid(response, "validation_error")
        assert [problem["field"] for problem in problems] == [field], repr(value)[:200]


@pytest.mark.parametrize("route", [route for route in BODIES if "title" in BODIES[route]])
@pytest.mark.parametrize(
    ("title", "kind"), [("", "string_too_short"), (" ", "string_too_short"), ("x" * 201, "string_too_long")]
)
def test_a_title_of_the_wrong_length_is_called_that(send: Send, route: Route, title: str, kind: str) -> None:
    (problem,) = invalid(send(route, json.dumps({"title": title}).encode()), "validation_error")
    assert (problem["field"], problem["type"]) == ("title", kind)


@refused_and_unwritten
@pytest.mark.parametrize("password", WRONG_NEW_PASSWORDS)
def test_a_password_that_may_not_be_chosen_is_refused(service: Service, password: str) -> None:
    data = {"email": NEW_EMAIL, "password": password}
    problems = invalid(service.client().post("/auth/register", json=data), "validation_error")
    assert [problem["field"] for problem in problems] == ["password"]


@refused_and_unwritten
@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("body", [None, True, NUMBER, WORD, [], [{"title": WORD}], {}, {WORD: WORD}])
def test_a_body_that_is_no_object_or_has_nothing_of_ours_is_refused(
    send: Send, route: Route, body: Any
) -> None:
    assert invalid(send(route, json.dumps(body).encode()), "validation_error")


NO_NUMBERS = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1.5E400", b"[NaN]", b'{"a": [1e999]}']
MALFORMED = [
    b" ",
    b"{",
    b"}",
    b'{"title": "zebra"',
    b'{"title": "zebra"} zebra',
    b'{"title": "zebra",}',
    b'{"title": "zebra" /* zebra */}',
    b"{'title': 'zebra'}",
    b'{title: "zebra"}',
    b'{"title": zebra}',
    b'{"title": undefined}',
    b'{"title": True}',
    b'{"title": 08675309}',
    b'{"title": +8675309}',
    b'{"title": 0x8675309}',
    b'{"title": "zebra\n"}',
    b'{"title": "zebra\x00"}',
    b'{"title": "zebra\\x41"}',
    b'{"title": "zebra\\u12"}',
    b"\x00",
    b"\xef\xbb\xbf{}",
    b'\xef\xbb\xbf{"title": "zebra"}',
    b'{"title": "zebra\xff"}',
    b'{"title": "zebra\xc0\x80"}',
    b'{"title": "zebra\xed\xa0\x80"}',
    b'{"title": "zebra\xf4\x90\x80\x80"}',
    b'{"zebra\xff": "zebra"}',
    '{"title": "zebra"}'.encode("utf-16"),
    '{"title": "zebra"}'.encode("utf-16-le"),
    '{"title": "zebra"}'.encode("utf-32-be"),
    b"\x1f\x8b\x08zebra",
    b"title=zebra",
]


@refused_and_unwritten
@pytest.mark.parametrize("route", BODIES)
def test_what_is_no_json_is_refused_wherever_it_stands(send: Send, route: Route) -> None:
    valid = json.dumps(BODIES[route]).encode()
    ignored = [valid[:-1] + b', "zebra": ' + number + b"}" for number in NO_NUMBERS]
    for body in (*MALFORMED, *NO_NUMBERS, *ignored):
        response = send(route, body, JSON)
        assert invalid(response, "malformed_json") == [], body


@refused_and_unwritten
@pytest.mark.parametrize("route", BODIES)
def test_what_is_too_deep_or_too_large_for_a_number_is_refused(send: Send, route: Route) -> None:
    digits = str(NUMBER).encode() + b"9" * 5000
    for value in (
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 60_000,
        digits,
        b"-" + digits,
        digits + b".5",
        b"[" + digits + b"]",
    ):
        for field in BODIES[route]:
            body = json.dumps({**BODIES[route], field: None}).encode().replace(b"null", value)
            body = value if len(body) > 64 * 1024 else body
            response = send(route, body, JSON)
            invalid(response, "malformed_json", "validation_error")


@refused_and_unwritten
@pytest.mark.parametrize("route", [*BODIES, ("POST", "/auth/token")])
@pytest.mark.parametrize("headers", [{}, JSON, FORM, {"Content-Type": "text/plain"}])
def test_a_body_that_is_missing_is_said_to_be(send: Send, route: Route, headers: dict[str, str]) -> None:
    for content in (b"", iter([b""])):
        response = send(route, content, headers)
        (problem,) = invalid(response, "validation_error")
        assert (problem["field"], problem["type"]) == ("body", "missing")


@refused_and_unwritten
@pytest.mark.parametrize("route", [*BODIES, ("POST", "/auth/token")])
def test_a_body_that_says_it_is_something_else_is_415(send: Send, route: Route) -> None:
    types = ["", "json", "text/plain", "text/json", "application/", "application/jsonx", "application/xml"]
    types += ["application/octet-stream", "multipart/form-data; boundary=zebra", "*/*", "zebra", '"']
    types += ["text/plain; application/json", "application/json, text/plain", "application/json zebra"]
    wrong_kind = FORM if route in BODIES else JSON
    for headers in ({}, wrong_kind, *({"Content-Type": name} for name in types)):
        body = json.dumps(BODIES.get(route, {})).encode()
        response = send(route, body, headers)
        assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type"), headers
        assert_no_echo(response)


@pytest.mark.parametrize(
    "kind",
    [
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/json;",
        "application/merge-patch+json",
    ],
)
def test_json_by_any_of_its_names_is_taken(ada: Account, kind: str) -> None:
    headers = {"Content-Type": kind}
    assert ada.client.post("/tasks", content=b'{"title": "Buy milk"}', headers=headers).status_code == 201


@refused_and_unwritten
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"zebra", "validation_error"),
        (b"username=zebra", "validation_error"),
        (b"password=zebra", "validation_error"),
        (b"username=zebra&password=%ff", "validation_error"),
        (b"username=zebra\xff&password=zebra", "validation_error"),
        (b"username=zebra&password=zebra&%ff=", "validation_error"),
        (b"username=zebra&username=zebra&password=zebra", "validation_error"),
        (b"zebra=&" * 9000, "validation_error"),
        (b"username=zebra&password=zebra", "invalid_grant"),
        (b"username=zebra%00@example.com&password=zebra", "invalid_grant"),
        (b"username=zebra@example.com&password=%00zebra", "invalid_grant"),
        (b"username=zebra@example.com&password=" + b"zebra" * 9000, "invalid_grant"),
        (b"username=zebra@example.com&password=zebra&grant_type=zebra", "unsupported_grant_type"),
    ],
)
def test_a_bad_form_is_refused(service: Service, body: bytes, code: str) -> None:
    invalid(service.client().post("/auth/token", content=body, headers=FORM), code)


@refused_and_unwritten
@pytest.mark.parametrize(
    "password", [WORD * 10_000, WORD.ljust(129, "x"), f"\x00{WORD}", "", "\N{GRINNING FACE}" * 99]
)
def test_a_password_that_nobody_can_have_is_merely_wrong_at_login(grace: Account, password: str) -> None:
    response = grace.client.post("/auth/login", json={"email": grace.email, "password": password})
    assert (response.status_code, response.json()["code"]) == (401, "invalid_credentials")
    assert_no_echo(response)


# The cost to refuse a long text grows no faster than its length

LETTERS = "x" * 60_000
MARKS = "a" + "\u0345" * 15_000 + "\u0334" * 15_000
"""Combining marks in the wrong order, which NFC sorts in time by the square of their number."""
HOSTILE = [MARKS, " " * 60_000 + "x", "@" * 60_000, "9" * 60_000]
TOKEN_FIELDS = {"username": NEW_EMAIL, "password": PASSWORD, "refresh_token": "none of ours"}
QUERY_FIELDS = ("status", "limit", "cursor", WORD)
HEADERS = ("Authorization", "X-Request-ID", "User-Agent", "Accept", "Origin", "Content-Type", "If-None-Match")


def cpu_seconds(service: Service, send: Callable[[], httpx2.Response]) -> float:
    """Return the processor time that the service takes for a request."""
    before = family_cpu_seconds(service.process.pid)
    assert send().status_code < 500
    return family_cpu_seconds(service.process.pid) - before


def assert_cheap(service: Service, send: Callable[[str], httpx2.Response]) -> None:
    """Check each text's cost: at most ten times the cost of as many letters, plus 50 ms.

    One attempt of three counts, because other work of the service may fall within a request.
    """
    letters = min(cpu_seconds(service, partial(send, LETTERS)) for _ in range(3))
    for text in HOSTILE:
        costs = (cpu_seconds(service, partial(send, text)) for _ in range(3))
        assert any(cost < 10 * letters + 0.05 for cost in costs), text[:3]


@pytest.mark.parametrize(
    ("route", "field"), [(route, field) for route, body in BODIES.items() for field in body]
)
def test_what_a_long_text_costs_does_not_depend_on_its_characters(
    service: Service, send: Send, route: Route, field: str
) -> None:
    def request(text: str) -> httpx2.Response:
        return send(route, json.dumps({**BODIES[route], field: text}, ensure_ascii=False).encode())

    assert_cheap(service, request)


@pytest.mark.parametrize("field", TOKEN_FIELDS)
def test_what_a_long_field_of_a_form_costs_does_not_depend_on_its_characters(
    service: Service, field: str
) -> None:
    def request(text: str) -> httpx2.Response:
        # Not percent-encoded, which would make it three times as long.
        form = "&".join(f"{name}={value}" for name, value in {**TOKEN_FIELDS, field: text}.items())
        return client.post("/auth/token", content=form.encode(), headers=FORM)

    client = service.client()
    assert_cheap(service, request)


@pytest.mark.parametrize("name", QUERY_FIELDS)
def test_what_a_long_query_costs_does_not_depend_on_its_characters(
    service: Service, ada: Account, name: str
) -> None:
    assert_cheap(service, lambda text: ada.client.get(f"/tasks?{name}={quote(text)[:60_000]}"))


@pytest.mark.parametrize("name", HEADERS)
def test_what_a_long_header_costs_does_not_depend_on_its_characters(
    service: Service, ada: Account, name: str
) -> None:
    assert_cheap(
        service,
        lambda text: ada.client.get(
            "/tasks", headers=[(name.encode(), b"Bearer %bx" % text.encode()[:60_000])]
        ),
    )


# Values at a bound, and unusual values, are accepted unchanged


@pytest.mark.parametrize(
    "title",
    [
        "x",
        "x" * 200,
        "\N{GRINNING FACE}" * 200,
        "e\N{COMBINING ACUTE ACCENT}" * 100,
        "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}\N{VARIATION SELECTOR-16}" * 50,
        "\N{RIGHT-TO-LEFT OVERRIDE}\N{ZERO WIDTH SPACE}\ufeff\ufffe\U0010ffff",
    ],
)
def test_a_title_of_200_code_points_is_kept_as_it_is(ada: Account, title: str) -> None:
    path = f"/tasks/{ada.create(f' {title} ')['id']}"
    assert ada.client.get(path).json()["title"] == title
    for method in ("PUT", "PATCH"):
        ada.client.patch(path, json={"title": "Another"})
        assert ada.client.request(method, path, json={"title": title}).json()["title"] == title
    assert ada.client.patch("/auth/me", json={"name": title}).json()["name"] == title


def test_white_space_at_both_ends_of_a_title_or_a_name_goes_first(ada: Account, service: Service) -> None:
    pattern = service.client().get("/openapi.json").json()["components"]["schemas"]["TaskCreate"]
    pattern = re.compile(pattern["properties"]["title"]["pattern"])
    for title in ("Buy milk", "x" * 200, "x"):
        for space in (*SPACES, "\r\n", SPACES):
            sent = f"{space}{title}{space}"
            assert ada.create(sent)["title"] == title, repr(space)
            assert pattern.match(sent)
            assert ada.client.patch("/auth/me", json={"name": sent}).json()["name"] == title
    for path in (f"/tasks/{ada.create()['id']}",):
        for method in ("PUT", "PATCH"):
            sent = f"\t{method}\n"
            assert ada.client.request(method, path, json={"title": sent}).json()["title"] == method


@pytest.mark.parametrize(
    "description",
    [
        "",
        " \t\r\n ",
        "x" * 1000,
        "\N{GRINNING FACE}" * 1000,
        "e\N{COMBINING ACUTE ACCENT}" * 500,
        "a\tb\nc\r\nd\N{LINE SEPARATOR}",
    ],
)
def test_a_description_of_1000_code_points_is_kept_as_it_is(ada: Account, description: str) -> None:
    path = f"/tasks/{ada.create(description=description)['id']}"
    assert ada.client.get(path).json()["description"] == description
    for method in ("PUT", "PATCH"):
        ada.client.patch(path, json={"description": None})
        changed = ada.client.request(method, path, json={"description": description})
        assert changed.json()["description"] == description


def test_of_duplicate_keys_the_last_counts(ada: Account) -> None:
    def create(body: bytes) -> httpx2.Response:
        return ada.client.post("/tasks", content=body, headers=JSON)

    assert create(b'{"title": "First", "title": "Last"}').json()["title"] == "Last"
    assert create(b'{"title": 7, "title": "Last"}').json()["title"] == "Last"
    invalid(create(b'{"title": "First", "title": 7}'), "validation_error")
    invalid(create(b'{"title": NaN, "title": "Last"}'), "malformed_json")


@pytest.mark.parametrize(
    "ignored", [b'"\\ud800"', b'"\\u0000"', b"-0", b"1e308", b"[" * 99 + b"]" * 99, b"1e-999"]
)
def test_what_an_ignored_field_holds_is_ignored(ada: Account, ignored: bytes) -> None:
    body = b'{"title": "Buy milk", "id": %s, "\\ud800": %s}' % (ignored, ignored)
    response = ada.client.post("/tasks", content=body, headers=JSON)
    assert response.status_code == 201
    assert set(response.json()) == set(ada.create())


# Ids


@refused_and_unwritten
@pytest.mark.parametrize(("method", "path"), BY_ID)
def test_an_id_in_any_spelling_but_its_own_names_no_task(
    grace: Account, task_id: int, method: str, path: str
) -> None:
    own = str(task_id)
    arabic = own.translate({ord("0") + digit: 0x660 + digit for digit in range(10)})
    wide = own.translate({ord("0") + digit: 0xFF10 + digit for digit in range(10)})
    spelled = [f"0{own}", f"+{own}", f" {own}", f"{own} ", f"{own}\n", f"{own}\x00", f"{own}.0", f"{own}e0"]
    spelled += [f"{own[0]}_{own}", arabic, wide, hex(task_id), f"'{own}'", f"{own};", f"{own},{own}"]
    numbers = ["0", "-1", "-0", "1e3", 10**30, 2**63 - 1, 2**63, 2**64 + task_id, -(2**63), "9" * 5000]
    rest = ["abc", WORD, "null", "NaN", "\x00", "\N{SUPERSCRIPT TWO}", "\N{GRINNING FACE}", "-", "%", b"\xff"]
    body = TASK if (method, path) in BODIES else None
    for name in (*spelled, *numbers, *rest):
        sent = quote(name if isinstance(name, bytes) else str(name), safe="")
        response = grace.client.request(method, path.format(task_id=sent), json=body)
        assert (response.status_code, response.json()["code"]) == (404, "task_not_found"), sent[:99]
        assert_no_echo(response)


# Queries


@refused_and_unwritten
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("limit", ["0", "-1", "1001", "", " 1", "1 ", "+1", "1.0", "1e2", "0x10", "1_0", "abc", WORD, "NaN"]),
        ("limit", [str(2**63), str(10**30), str(NUMBER) * 700, "\x00", "\u0661", "\uff11", "1\x00", b"\xff"]),
        ("status", ["", "ALL", "done", WORD, "all ", "all\x00", "pending,completed", "0", b"\xff"]),
        ("sort", ["", "Title", "id", WORD, "title;DROP TABLE tasks", "created_at", b"\xff"]),
        ("order", ["", "ASC", "ascending", WORD, "-1", "asc\n", b"\xff"]),
    ],
)
def test_a_wrong_query_is_refused_by_its_name(grace: Account, name: str, values: list[str | bytes]) -> None:
    for value in values:
        problems = invalid(grace.client.get(f"/tasks?{name}={quote(value, safe='')}"), "validation_error")
        assert [problem["field"] for problem in problems] == [name], value


def next_cursor(account: Account, **query: Any) -> str:
    link = account.client.get("/tasks", params={"limit": 1, **query}).links["next"]["url"]
    return httpx2.URL(link).params["cursor"]


def assert_no_cursor(account: Account, cursor: str | bytes, **query: str) -> None:
    response = account.client.get(f"/tasks?{urlencode({**query, 'cursor': cursor})}")
    (problem,) = invalid(response, "validation_error")
    assert problem["field"] == "cursor"


@refused_and_unwritten
@pytest.mark.parametrize(
    "cursor",
    [
        "=",
        "====",
        "A",
        "AAAA",
        WORD,
        "0",
        "null",
        "\x00",
        " ",
        "\N{GRINNING FACE}",
        b"\xff",
        "zebra" * 9000,
    ],
)
def test_rubbish_is_no_cursor(grace: Account, cursor: str | bytes) -> None:
    assert_no_cursor(grace, cursor)


@refused_and_unwritten
@pytest.mark.parametrize(("sort", "order"), [("created", "asc"), ("title", "desc")])
def test_a_cursor_in_which_anything_has_changed_is_refused(grace: Account, sort: str, order: str) -> None:
    query = {"sort": sort, "order": order}
    cursor = next_cursor(grace, **query)
    assert grace.client.get("/tasks", params={**query, "cursor": cursor}).status_code == 200
    signed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    for place in range(len(signed)):
        flipped = bytearray(signed)
        flipped[place] ^= 1 << place % 8
        assert_no_cursor(grace, base64.urlsafe_b64encode(flipped).rstrip(b"="), **query)
    for other in (cursor[:-1], cursor[1:], f"{cursor}A", f"{cursor}AAAA", f" {cursor}", cursor.swapcase()):
        assert_no_cursor(grace, other, **query)


@refused_and_unwritten
@pytest.mark.parametrize("query", [{}, {"sort": "title"}, {"sort": "title", "order": "desc"}])
def test_a_cursor_has_one_spelling(grace: Account, query: dict[str, str]) -> None:
    """A cursor with padding, with the other base64 alphabet or with unused bits set is invalid."""
    cursor = next_cursor(grace, **query)
    others = {*string.ascii_letters, *string.digits, *"-_"} - {cursor[-1]}
    others = {cursor[:-1] + last for last in others} | {f"{cursor}=", f"{cursor}=="}
    others.add(cursor.replace("-", "+").replace("_", "/"))
    for other in others - {cursor}:
        assert_no_cursor(grace, other, **query)


@refused_and_unwritten
def test_a_cursor_is_for_one_list(grace: Account) -> None:
    cursor = next_cursor(grace, sort="title")
    assert_no_cursor(grace, cursor)
    assert_no_cursor(grace, cursor, sort="created")
    assert_no_cursor(grace, cursor, sort="title", order="desc")


def test_a_cursor_is_for_one_user(grace: Account, ada: Account) -> None:
    for title in ("One", "Two"):
        ada.create(title)
    assert_no_cursor(ada, next_cursor(grace))
    assert_no_cursor(grace, next_cursor(ada))


# Anything at all

texts = st.text(st.characters()) | st.text(" \t\n\x85\u3000\u200b", max_size=3) | st.emails()
texts |= st.builds("{}@{}.{}".format, st.text(), st.text(), st.text())
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8)
queries = st.dictionaries(
    st.sampled_from(["status", "sort", "order", "limit", "cursor", WORD]),
    st.sampled_from([b"all", b"title", b"desc", b"1"]) | st.binary(max_size=50),
)


@settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    route=st.sampled_from([*BODIES, *BY_ID, ("GET", "/tasks"), ("POST", "/auth/token")]),
    task_id=st.none() | st.binary(min_size=1, max_size=30),
    query=queries.map(urlencode),
    sent=st.dictionaries(st.sampled_from([*WRONG, WORD]), texts | values) | values | st.binary(max_size=200),
    headers=st.sampled_from([JSON, JSON, FORM, {}]),
)
def test_whatever_is_sent_is_answered_and_never_with_a_500(
    *, ada: Account, route: Route, task_id: bytes | None, query: str, sent: Any, headers: dict[str, str]
) -> None:
    method, path = route
    path = path.format(task_id=quote(task_id, safe="") if task_id else ada.create()["id"])
    if isinstance(sent, dict):
        sent = {**BODIES.get(route, {}), **sent}
    content = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    response = ada.client.request(method, f"{path}?{query}", content=content, headers=headers)
    assert response.status_code < 500, response.text
    if response.is_error:
        body = response.json()
        assert {"status_code", "detail", "code", "request_id"} <= set(body)
        assert (body["code"] == "validation_error") == ("errors" in body)
