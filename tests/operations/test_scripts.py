"""The shell scripts in `scripts/`, run as a person runs them, against the live service."""

import json
import os
import pty
import re
import socket
import stat
import subprocess
import termios
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.service import PASSWORD, ROOT, Account, Service, free_port

TEXTS = [
    'say "hi"',
    "back\\slash \\n \\u0041",
    "$(id) `id` $HOME ; & | ' * ? [a] {b}",
    "Überprüfung 漢字 🎉 e\u0301",
    '},{"id":1}],"detail":"no"',
    "@/etc/passwd",
    "--help",
    "a=b&c=d%20e+f",
]


class Person:
    """Runs the scripts with a home directory of its own, which is empty at first."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TASKS_URL": url}

    @property
    def token_file(self) -> Path:
        """The only file in the home directory."""
        (path,) = (path for path in self.home.rglob("*") if path.is_file())
        return path

    def run(
        self, script: str, *arguments: str, typed: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script with `typed` as its standard input."""
        return subprocess.run(
            [ROOT / "scripts" / script, *arguments],
            env={**self.environment, **variables},
            cwd=self.home,
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def answer(self, *arguments: str) -> Any:
        """Run `tasks.sh`, check that it succeeds, and return the JSON that it prints."""
        done = self.run("tasks.sh", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the tasks that `tasks.sh list` prints, one a line."""
        done = self.run("tasks.sh", "list", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def person(tmp_path: Path, service: Service) -> Person:
    """A person who is not signed in."""
    return Person(tmp_path, service.url)


@pytest.fixture
def carol(person: Person, ada: Account) -> Person:
    """A person who is signed in to Ada's account."""
    done = person.run("login.sh", ada.email, TASKS_PASSWORD=PASSWORD)
    assert (done.returncode, done.stderr) == (0, "")
    return person


def test_somebody_registers_keeps_a_task_and_signs_out(person: Person) -> None:
    email = "scripts@example.com"
    done = person.run("register.sh", email, 'Ada "Countess" \\ Ł', typed=PASSWORD)
    assert (done.returncode, done.stderr) == (0, "")
    task = person.answer("create", "Buy milk", "Two litres\nand\ta half")
    assert (task["title"], task["description"]) == ("Buy milk", "Two litres\nand\ta half")
    identity = str(task["id"])
    assert person.answer("show", identity) == task
    assert person.answer("toggle", identity)["completed"] is True
    assert person.listed("status=completed") == [person.answer("show", identity)]
    assert person.listed("status=pending") == []
    edited = person.answer("edit", identity, "title=Buy oat milk", "description=", "completed=false")
    assert (edited["title"], edited["description"], edited["completed"]) == ("Buy oat milk", None, False)
    done = person.run("tasks.sh", "delete", identity)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert person.listed() == []
    token = person.token_file.read_text()
    assert person.run("logout.sh").returncode == 0
    assert [path for path in person.home.rglob("*") if path.is_file()] == []
    person.run("login.sh", email, typed=PASSWORD)
    person.token_file.write_text(token)
    done = person.run("tasks.sh", "list")
    assert (done.returncode, done.stderr) == (1, "The session has ended, sign in again (401)\n")


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_as_it_was_typed(carol: Person, ada: Account, text: str) -> None:
    task = carol.answer("create", text, text)
    assert (task["title"], task["description"]) == (text, text)
    task = carol.answer("edit", str(task["id"]), f"title={text}!", f"description={text}\n{text}")
    assert (task["title"], task["description"]) == (f"{text}!", f"{text}\n{text}")
    assert carol.listed() == [task] == ada.client.get("/tasks").json()


def test_a_list_that_is_longer_than_a_page_comes_whole(carol: Person, ada: Account) -> None:
    titles = [ada.create(title)["title"] for title in ("c", "a", "d", "b", "e")]
    tasks = carol.listed("limit=2", "sort=title", "order=desc")
    assert [task["title"] for task in tasks] == sorted(titles, reverse=True)


@pytest.mark.parametrize(
    "password", ['quote " and \\ back', " spaces at both ends ", "ünïcödé pässwörd 🎉", "$(id)`id`'"]
)
@pytest.mark.parametrize("is_typed", [True, False])
def test_a_password_is_what_was_given(
    person: Person, service: Service, password: str, is_typed: bool
) -> None:
    email = service.register(password=password).email
    if is_typed:
        done = person.run("login.sh", email, typed=password + "\n")
    else:
        done = person.run("login.sh", email, TASKS_PASSWORD=password)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("script", "arguments", "complaint"),
    [
        (
            "register.sh",
            ["no email"],
            "The request is not valid (400)\n  email: Enter a valid email address\n",
        ),
        ("login.sh", ["nobody@example.com"], "The email or the password is wrong (401)\n"),
        ("tasks.sh", ["show", "9223372036854775807"], "Task not found (404)\n"),
        ("tasks.sh", ["create", "two\nlines"], "title: Control characters are not allowed\n"),
        ("tasks.sh", ["create", "x" * 201], "title: String should have at most 200 characters\n"),
        ("tasks.sh", ["list", "sort=size"], "sort: Input should be 'created' or 'title'\n"),
        ("tasks.sh", ["edit", "1", "completed=perhaps"], "completed: Input should be a valid boolean\n"),
    ],
)
def test_a_refusal_is_told_in_the_words_of_the_service(
    carol: Person, script: str, arguments: list[str], complaint: str
) -> None:
    done = carol.run(script, *arguments, TASKS_PASSWORD="wrong password")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(complaint)


def test_a_failed_login_leaves_the_token_that_was_there(carol: Person, ada: Account) -> None:
    token = carol.token_file.read_text()
    assert carol.run("login.sh", ada.email, TASKS_PASSWORD="wrong password").returncode == 1
    assert carol.token_file.read_text() == token


@pytest.mark.parametrize(
    "command",
    [
        ["register.sh"],
        ["login.sh"],
        ["login.sh", "a@example.com", "password"],
        ["logout.sh", "now"],
        ["tasks.sh"],
        ["tasks.sh", "signed_request"],
        ["tasks.sh", "show"],
        ["tasks.sh", "show", "../auth/me"],
        ["tasks.sh", "edit", "1", "owner=me"],
        ["tasks.sh", "create"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_explains_itself_and_sends_nothing(person: Person, command: list[str]) -> None:
    done = person.run(*command, typed=PASSWORD, TASKS_URL="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"scripts/{command[0]} " in done.stderr or command[0] == "logout.sh"
    assert "shellcheck" not in done.stderr


@pytest.mark.parametrize("script", ["register.sh", "login.sh", "logout.sh", "tasks.sh"])
def test_help_prints_the_use_and_the_settings_and_sends_nothing(person: Person, script: str) -> None:
    done = person.run(script, "--help", TASKS_URL="http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\n  scripts/{script}" in done.stdout
    assert "\n  TASKS_PASSWORD " in done.stdout
    assert "shellcheck" not in done.stdout


def test_without_a_token_the_way_to_one_is_told(person: Person) -> None:
    done = person.run("tasks.sh", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"Sign in first: .*scripts/login\.sh EMAIL\n", done.stderr)


def test_a_service_that_is_not_there_is_named(person: Person) -> None:
    port = free_port()
    done = person.run("login.sh", "a@example.com", typed=PASSWORD, TASKS_URL=f"http://127.0.0.1:{port}")
    assert done.returncode != 0
    assert str(port) in done.stderr


def test_the_token_is_in_a_file_for_its_owner_alone_whatever_was_there(person: Person, ada: Account) -> None:
    path = person.home / "kept" / "token"
    path.parent.mkdir()
    path.write_text("open to all")
    path.chmod(0o644)
    where = {"TASKS_TOKEN_FILE": str(path), "TASKS_PASSWORD": PASSWORD}
    assert person.run("login.sh", ada.email, **where).returncode == 0
    assert path.read_text().count(".") == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert person.run("tasks.sh", "list", **where).returncode == 0


def test_the_default_token_file_is_private_and_one_for_each_service(carol: Person, ada: Account) -> None:
    path = carol.token_file
    assert path.is_relative_to(carol.home / ".config")
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    done = carol.run("tasks.sh", "list", TASKS_URL="http://127.0.0.1:9")
    assert done.stderr.startswith("Sign in first")
    elsewhere = carol.home / "elsewhere"
    done = carol.run("login.sh", ada.email, typed=PASSWORD, XDG_CONFIG_HOME=str(elsewhere))
    assert done.returncode == 0
    assert [found.name for found in elsewhere.rglob("*") if found.is_file()] == [path.name]


@pytest.mark.parametrize(
    ("secret", "command"),
    [
        ("a secret password", ["register.sh", "ada@example.com"]),
        ("a secret password", ["login.sh", "ada@example.com"]),
        ("a.secret.token", ["tasks.sh", "create", "Buy milk"]),
        ("a.secret.token", ["logout.sh"]),
    ],
)
def test_no_secret_is_an_argument_of_a_program(person: Person, secret: str, command: list[str]) -> None:
    token_file = person.home / "token"
    token_file.write_text("a.secret.token")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        script = subprocess.Popen(
            [ROOT / "scripts" / command[0], *command[1:]],
            env={
                **person.environment,
                "TASKS_URL": f"http://127.0.0.1:{listener.getsockname()[1]}",
                "TASKS_PASSWORD": "a secret password",
                "TASKS_TOKEN_FILE": str(token_file),
            },
            stderr=subprocess.DEVNULL,
        )
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(30)
            request = b""
            while secret.encode() not in request:
                request += connection.recv(65536)
            # The script now waits for a response that never comes.
            running = psutil.Process(script.pid)
            commands = [command_of(process) for process in [running, *running.children(recursive=True)]]
        assert script.wait(30) != 0
    assert {"curl"} <= {arguments[0] for arguments in commands if arguments}
    assert secret not in str(commands)


def command_of(process: psutil.Process) -> list[str]:
    """Return the arguments of a process, or none if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def test_a_password_is_asked_for_without_showing_it(person: Person, ada: Account) -> None:
    terminal, line = pty.openpty()
    with os.fdopen(terminal, "r+b", buffering=0) as keyboard, os.fdopen(line, "r+b", buffering=0) as screen:
        script = subprocess.Popen(
            [ROOT / "scripts" / "login.sh", ada.email],
            env=person.environment,
            stdin=screen,
            stdout=screen,
            stderr=screen,
        )
        deadline = time.monotonic() + 30
        while is_echoing(screen):
            assert script.poll() is None
            assert time.monotonic() < deadline, "what is typed is shown"
            time.sleep(0.01)
        keyboard.write(PASSWORD.encode() + b"\n")
        assert script.wait(30) == 0
        assert is_echoing(screen), "the terminal stays mute"
        shown = b""
        while b"Signed in" not in shown:
            shown += keyboard.read(65536)
    assert shown.startswith(b"Password: \r\nSigned in")
    assert PASSWORD.encode() not in shown


def is_echoing(screen: FileIO) -> bool:
    """Return whether a terminal echoes its input."""
    return bool(termios.tcgetattr(screen)[3] & termios.ECHO)
