"""`python -m backend users`: an operator lists and changes accounts of a running service."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.better_auth.jwks import TokenServer, new_key, token_server
from tests.conftest import Postgres
from tests.programs import passable_directory
from tests.service import (
    JWT_SECRET,
    PASSWORD,
    ROOT,
    Account,
    Finished,
    Service,
    command,
    environment,
    running,
)

Run = Callable[..., Finished]

LINK = re.compile(r"http://\S+/reset-password#token=(\S+)")


@pytest.fixture(scope="module")
def database(new_database: Callable[[], Postgres]) -> Postgres:
    """A database of these tests' own."""
    return new_database()


@pytest.fixture(scope="module")
def issuer() -> Iterator[TokenServer]:
    """A token server whose users are external."""
    with token_server() as server:
        yield server


@pytest.fixture(scope="module")
def service(
    database: Postgres, issuer: TokenServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service on the database that the commands change."""
    log = tmp_path_factory.mktemp("users") / "log"
    settings = {"DATABASE_URL": database.url, "JWT_SECRET": JWT_SECRET, "BETTER_AUTH_URL": issuer.url}
    with running(log, **settings) as service:
        yield service


@pytest.fixture
def users(database: Postgres) -> Run:
    """Run one of the commands, its output not to a terminal."""
    return partial(command, "users", DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET)


def answer(finished: Finished) -> Any:
    """Return what a command printed as JSON."""
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def events(finished: Finished) -> list[dict[str, Any]]:
    """Return the log lines of a command, which has no other line on standard error."""
    return [json.loads(line) for line in finished.stderr.splitlines()]


def the_event(finished: Finished, name: str, user_id: str) -> dict[str, Any]:
    (line,) = events(finished)
    assert (line["event"], line["user_id"], line["level"]) == (name, user_id, "INFO")
    return line


def sign_in(service: Service, email: str, password: str = PASSWORD) -> tuple[int, str | None]:
    response = service.client().post("/auth/login", json={"email": email, "password": password})
    return response.status_code, response.json().get("code")


def standing(account: Account) -> int:
    return account.client.get("/auth/me").status_code


# Listing users


def test_list_shows_the_newest_first_within_its_filters(service: Service, users: Run) -> None:
    mark = uuid4().hex
    first, second = (service.register(email=f"{mark}.{n}@Example.com") for n in range(2))
    found = answer(users("list", "--json", "--email", mark.upper()))
    assert [user["id"] for user in found] == [second.id, first.id]
    assert (found[0]["email"], found[0]["sessions"]) == (second.email.replace("E", "e"), 1)
    assert len(answer(users("list", "--json", "--email", mark, "--limit", "1"))) == 1
    assert len(answer(users("list", "--json", "--email", mark, "--unverified"))) == 2
    assert answer(users("list", "--json", "--email", mark, "--disabled")) == []
    assert users("disable", first.id).returncode == 0
    assert [user["id"] for user in answer(users("list", "--json", "--email", mark, "--disabled"))] == [
        first.id
    ]


def test_verified_users_are_left_out_of_those_who_are_not(
    service: Service, users: Run, database: Postgres
) -> None:
    account = service.register()
    database.sql("UPDATE users SET email_verified = true WHERE id = $1", account.id)
    assert answer(users("list", "--json", "--email", account.email, "--unverified")) == []
    assert answer(users("show", "--json", account.id))["email_verified"] is True


def test_show_finds_by_email_in_any_letters_and_by_id(service: Service, users: Run) -> None:
    account = service.register(name="Ada")
    for who in (account.email.upper(), f" {account.email}", account.id):
        found = answer(users("show", who, "--json"))
        assert (found["id"], found["name"], found["disabled_at"]) == (account.id, "Ada", None)


def test_output_to_a_pipe_is_plain(service: Service, users: Run) -> None:
    account = service.register(name="Ada [bold]")
    header, row = users("list", "--email", account.email).stdout.splitlines()
    assert dict(zip(header.split("\t"), row.split("\t"), strict=True)) | {
        "email": account.email,
        "name": "Ada [bold]",
        "email_verified": "no",
        "disabled_at": "",
    } == dict(zip(header.split("\t"), row.split("\t"), strict=True))
    shown = users("show", account.id)
    assert f"email:          {account.email}\n" in shown.stdout
    assert (shown.stderr, "\x1b" in shown.stdout) == ("", False)


def test_a_person_sees_a_table(service: Service, database: Postgres) -> None:
    account = service.register()
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "backend", "users", "list", "--email", account.email],
        cwd=ROOT,
        env=environment(DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET, COLUMNS="250", TERM="xterm"),
        stdout=child,
    )
    os.close(child)
    shown = b""
    try:
        while chunk := os.read(parent, 65536):
            shown += chunk
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(parent)
    assert process.wait(30) == 0
    assert "│" in shown.decode()
    assert account.email in shown.decode()


# Changing users


def test_a_disabled_user_is_refused_at_the_next_request(service: Service, users: Run) -> None:
    account = service.register()
    assert sign_in(service, account.email) == (200, None)
    done = users("disable", account.email, "--json")
    assert answer(done)["disabled_at"] is not None
    assert the_event(done, "auth.account_disabled", account.id)["sessions_ended"] == 2
    response = account.client.get("/auth/me")
    assert (response.status_code, response.json()["code"]) == (401, "token_revoked")
    refresh = {"refresh_token": account.tokens["refresh_token"]}
    assert service.client().post("/auth/refresh", json=refresh).status_code == 401
    assert sign_in(service, account.email) == (403, "account_disabled")
    assert sign_in(service, account.email, "another") == (401, "invalid_credentials")


def test_an_enabled_user_signs_in_again(service: Service, users: Run) -> None:
    account = service.register()
    assert users("disable", account.id).returncode == 0
    done = users("enable", account.id, "--json")
    assert answer(done)["disabled_at"] is None
    the_event(done, "auth.account_enabled", account.id)
    assert sign_in(service, account.email) == (200, None)
    assert standing(account) == 401


def test_sign_out_ends_every_session(service: Service, users: Run) -> None:
    account, other = service.register(), service.register()
    assert sign_in(service, account.email) == (200, None)
    done = users("sign-out", account.email, "--json")
    assert answer(done)["sessions"] == 0
    assert the_event(done, "auth.session_revoked", account.id)["count"] == 2
    assert (standing(account), standing(other)) == (401, 200)
    assert sign_in(service, account.email) == (200, None)


def test_delete_takes_sessions_and_tasks_along(service: Service, users: Run, database: Postgres) -> None:
    account = service.register()
    account.create()
    done = users("delete", account.email, "--yes", "--json")
    assert answer(done)["id"] == account.id
    the_event(done, "auth.account_deleted", account.id)
    assert standing(account) == 401
    assert sign_in(service, account.email) == (401, "invalid_credentials")
    assert database.sql("SELECT 1 FROM tasks WHERE user_id = $1", account.id) == []
    assert service.register(email=account.email).id != account.id


@pytest.mark.parametrize("said", ["n\n", "\n", ""])
def test_delete_asks_first(service: Service, users: Run, said: str) -> None:
    account = service.register()
    done = users("delete", account.email, stdin=said)
    assert (done.returncode, done.stdout, standing(account)) == (1, "", 200)
    assert account.email in done.stderr
    assert users("delete", account.email, stdin="y\n").returncode == 0
    assert standing(account) == 401


def test_delete_asks_with_an_embedded_database_too() -> None:
    with passable_directory(prefix="users-") as directory:
        run = partial(command, "users", DATA_DIR=str(directory / "data"))
        assert run("create", "ada@example.com", "--password-stdin", stdin=PASSWORD).returncode == 0
        done = run("delete", "ada@example.com", "--json", stdin="y\n")
        assert answer(done)["email"] == "ada@example.com"
        assert answer(run("list", "--json")) == []


def test_delete_takes_whom_it_showed_though_the_email_changes_before_the_answer(
    service: Service, database: Postgres
) -> None:
    shown, other = service.register(), service.register()
    with subprocess.Popen(
        [sys.executable, "-m", "backend", "users", "delete", shown.email],
        cwd=ROOT,
        env=environment(DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        assert process.stdin is not None
        asked = b""
        while not asked.endswith(b"[y/N]: "):
            byte = process.stderr.read(1)
            assert byte, asked
            asked += byte
        move = "UPDATE users SET email = $1, email_key = $1 WHERE id = $2"
        database.sql(move, f"{uuid4().hex}@example.com", shown.id)
        database.sql(move, shown.email, other.id)
        process.communicate(b"y\n", timeout=60)
    assert process.returncode == 0
    assert shown.id.encode() in asked
    assert (standing(shown), standing(other)) == (401, 200)


def test_an_external_user_is_disabled_by_id(service: Service, users: Run, issuer: TokenServer) -> None:
    key = new_key()
    issuer.publish(key)
    user_id = f"external-{uuid4()}"
    client = service.client(issuer.token(key, user_id))
    assert client.get("/tasks").status_code == 200
    assert answer(users("show", user_id, "--json"))["issuer"] != "local"
    assert users("reset-link", user_id).returncode == 1
    assert users("disable", user_id).returncode == 0
    response = client.get("/tasks")
    assert (response.status_code, response.json()["code"]) == (401, "token_revoked")
    assert users("enable", user_id).returncode == 0
    assert client.get("/tasks").status_code == 200


# Passwords and links


def reset(service: Service, link: str, password: str) -> int:
    (token,) = LINK.findall(link)
    data = {"token": token, "new_password": password}
    return service.client().post("/auth/password/reset", json=data).status_code


def test_a_reset_link_works_once_and_without_mail(service: Service, users: Run, database: Postgres) -> None:
    account = service.register()
    done = users("reset-link", account.email)
    (token,) = LINK.findall(done.stdout)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
    (row,) = database.sql(
        "SELECT extract(epoch FROM expires_at - created_at)::int AS seconds, digest"
        " FROM mail_tokens WHERE user_id = $1",
        account.id,
    )
    assert (row["seconds"], token.encode() in row["digest"]) == (1800, False)
    new = "a quite different password"
    assert [reset(service, done.stdout, new) for _ in range(2)] == [204, 400]
    assert (sign_in(service, account.email, new), standing(account)) == ((200, None), 401)


def test_a_disabled_user_gets_no_link_and_earlier_ones_are_void(service: Service, users: Run) -> None:
    account = service.register()
    link = answer(users("reset-link", account.id, "--json"))["reset_link"]
    assert users("disable", account.id).returncode == 0
    done = users("reset-link", account.id)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert reset(service, link, "a quite different password") == 400


def test_create_reads_a_password_from_standard_input(service: Service, users: Run) -> None:
    email = f"{uuid4().hex}@example.com"
    options = ("--name", "Ada", "--password-stdin", "--json")
    done = users("create", email, *options, stdin=f"{PASSWORD}\n")
    user = answer(done)
    assert (user["email"], user["name"], "reset_link" in user) == (email, "Ada", False)
    the_event(done, "auth.registered", user["id"])
    assert sign_in(service, email) == (200, None)


def test_create_asks_twice_at_a_terminal(service: Service, database: Postgres) -> None:
    email = f"{uuid4().hex}@example.com"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        program = [sys.executable, "-m", "backend", "users", "create", email]
        settings = environment(DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET)
        os.execve(sys.executable, program, settings)  # noqa: S606  # a child with a terminal of its own
    shown = b""
    asked = 0
    try:
        while chunk := os.read(terminal, 65536):
            shown += chunk
            if shown.endswith(b": "):
                asked += 1
                os.write(terminal, f"{PASSWORD}\n".encode())
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert (asked, PASSWORD.encode() in shown) == (2, False)
    assert sign_in(service, email) == (200, None)


def test_an_invitation_is_printed_where_no_mail_can_be_sent(service: Service, users: Run) -> None:
    email = f"{uuid4().hex}@example.com"
    done = users("create", email, "--invite", "--json", MAIL_URL="")
    link = answer(done)["reset_link"]
    assert "token" not in done.stderr
    assert sign_in(service, email) == (401, "invalid_credentials")
    assert reset(service, link, PASSWORD) == 204
    assert sign_in(service, email) == (200, None)


def test_an_invitation_is_mailed_where_mail_can_be_sent(service: Service, users: Run, tmp_path: Path) -> None:
    email = f"{uuid4().hex}@example.com"
    done = users("create", email, "--invite", "--json", MAIL_URL=tmp_path.as_uri())
    assert "reset_link" not in answer(done)
    assert [line["event"] for line in events(done)] == ["auth.registered", "mail.sent"]
    (mail,) = tmp_path.glob("*.eml")
    assert (events(done)[1]["kind"], events(done)[1]["file"]) == ("invitation", str(mail))
    assert "Subject: An account was made for you" in mail.read_text()
    (token, *_) = LINK.findall(mail.read_text())
    assert token not in done.stdout + done.stderr
    assert reset(service, f"http://x/reset-password#token={token}", PASSWORD) == 204


def test_a_link_verifies_the_email_only_where_it_was_mailed_to_it(
    service: Service, users: Run, tmp_path: Path
) -> None:
    handed, mailed = (f"{uuid4().hex}@example.com" for _ in range(2))
    link = answer(users("create", handed, "--invite", "--json", MAIL_URL=""))["reset_link"]
    assert reset(service, link, PASSWORD) == 204
    assert users("create", mailed, "--invite", MAIL_URL=tmp_path.as_uri()).returncode == 0
    (mail,) = tmp_path.glob("*.eml")
    assert (
        reset(service, f"http://x/reset-password#token={LINK.findall(mail.read_text())[0]}", PASSWORD) == 204
    )
    shown = [answer(users("show", email, "--json"))["email_verified"] for email in (handed, mailed)]
    assert shown == [False, True]


def test_an_account_that_is_made_again_at_once_gets_another_invitation(users: Run, tmp_path: Path) -> None:
    email = f"{uuid4().hex}@example.com"
    for number in (1, 2):
        created = answer(users("create", email, "--invite", "--json", MAIL_URL=tmp_path.as_uri()))
        assert "reset_link" not in created
        assert len(list(tmp_path.glob("*.eml"))) == number
        assert users("delete", email, "--yes").returncode == 0


def test_a_mail_server_that_is_down_leaves_the_link(users: Run) -> None:
    down = "smtp://127.0.0.1:1?starttls=off"
    settings = {"MAIL_URL": down, "MAIL_FROM": "tasks@example.com", "APP_URL": "http://app.example"}
    done = users("create", f"{uuid4().hex}@example.com", "--invite", "--json", **settings)
    assert LINK.findall(answer(done)["reset_link"])
    assert [line["event"] for line in events(done)] == ["auth.registered", "mail.failed"]


def test_nothing_secret_and_no_email_is_logged(service: Service, users: Run) -> None:
    email = f"{uuid4().hex}@example.com"
    created = users("create", email, "--password-stdin", stdin=PASSWORD)
    linked = users("reset-link", email)
    others = [users(name, email) for name in ("disable", "enable", "sign-out")]
    logged = "".join(done.stderr for done in (created, linked, *others, users("delete", email, "--yes")))
    (token,) = LINK.findall(linked.stdout)
    for secret in (PASSWORD, token, email):
        assert secret not in logged
    assert logged.count('"event":"auth.') == 5
    assert PASSWORD not in created.stdout
    assert email not in service.log.read_text()


# Refused commands

WHO = ("show", "reset-link", "disable", "enable", "sign-out", "delete")


def test_an_email_is_found_in_any_spelling(service: Service, users: Run) -> None:
    account = service.register(email=f"{uuid4().hex}@b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example")
    spelt = account.email.partition("@")[0].upper() + "@xn--bcher-kva.example"
    assert answer(users("show", spelt, "--json"))["id"] == account.id


@pytest.mark.parametrize("command", WHO)
def test_an_unknown_user_is_one_line_and_exit_code_1(users: Run, command: str) -> None:
    options = ("--yes",) if command == "delete" else ()
    done = users(command, "nobody@example.com", *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "tasks-api: no user has this email or id\n"


def test_an_email_that_is_the_id_of_another_user_is_that_of_its_owner(
    service: Service, users: Run, database: Postgres
) -> None:
    account = service.register()
    database.sql("INSERT INTO users (id, issuer) VALUES ($1, 'external')", account.email)
    assert answer(users("show", account.email, "--json"))["id"] == account.id
    for user_id in (account.email, account.id):
        assert answer(users("show", f"id:{user_id}", "--json"))["id"] == user_id
    assert users("delete", f"id:{account.email}", stdin="y\n").returncode == 0
    assert answer(users("show", account.email, "--json"))["id"] == account.id
    assert standing(account) == 200


def test_a_role_without_rights_is_one_line_and_exit_code_1(
    service: Service, users: Run, database: Postgres
) -> None:
    account = service.register()
    database.sql("CREATE ROLE reads_no_users LOGIN PASSWORD 'x'")
    try:
        database.sql("GRANT SELECT ON alembic_version TO reads_no_users")
        head, _, tail = database.url.partition("://")
        url = f"{head}://reads_no_users:x@{tail.partition('@')[2] or tail}"
        for command in ("list", "show", "disable", "delete"):
            who = () if command == "list" else (account.id,)
            done = users(command, *who, DATABASE_URL=url)
            assert (done.returncode, done.stdout) == (1, ""), done.stderr
            assert re.fullmatch(r"tasks-api: DATABASE_URL: permission denied for table \w+\n", done.stderr)
    finally:
        database.sql("DROP OWNED BY reads_no_users")
        database.sql("DROP ROLE reads_no_users")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("show",),
        ("remove", "ada@example.com"),
        ("list", "--limit", "0"),
        ("list", "--limit", "many"),
        ("create", "no email", "--invite"),
        ("create", "ada@example.com"),
        ("create", "ada@example.com", "--password", PASSWORD),
        ("create", "ada@example.com", "--invite", "--password-stdin"),
        ("create", "ada@example.com", "--invite", "--name", "A\x1bda"),
    ],
)
def test_a_wrong_call_is_exit_code_2(users: Run, arguments: tuple[str, ...]) -> None:
    done = users(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("show", "\udcff"), ("list", "--email", "\udcff"), ("create", "eve@example.com", "--password-stdin")],
)
def test_text_that_is_not_utf_8_is_named(database: Postgres, arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "backend", "users", *arguments],
        cwd=ROOT,
        env=environment(DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET),
        input=f"{PASSWORD}\udcff\n",
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, PASSWORD in done.stderr) == (2, "", False)
    assert "unicode string" in done.stderr


def test_a_refused_password_or_a_taken_email_creates_nothing(service: Service, users: Run) -> None:
    account = service.register()
    email = f"{uuid4().hex}@example.com"
    for name, password in ((account.email.upper(), PASSWORD), (email, "short"), (email, "password1")):
        done = users("create", name, "--password-stdin", stdin=password)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert answer(users("list", "--json", "--email", email)) == []
