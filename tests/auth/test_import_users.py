"""`python -m backend import-users FILE`: all users of a file or none; bad and skipped lines."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from backend.auth.accounts.imports import UserFileError, import_users
from backend.database import Database, schema
from backend.settings import load_settings
from tests.conftest import Postgres
from tests.service import JWT_SECRET, PASSWORD, Finished, Service, command, running

HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
OTHER_HASH = bcrypt.hashpw(b"another password", bcrypt.gensalt(5)).decode()


@pytest.fixture(scope="module")
def database(new_database: Callable[[], Postgres]) -> Postgres:
    """A database of these tests' own: they count the users in it."""
    database = new_database()
    asyncio.run(schema.migrate(database.url))
    return database


@pytest.fixture(scope="module")
def service(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on the database that users are brought into."""
    log = tmp_path_factory.mktemp("import") / "log"
    with running(log, DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET) as running_service:
        yield running_service


@pytest.fixture
def users(database: Postgres) -> Callable[[], list[tuple[str, str | None, str]]]:
    """Return a function that reads the users of the database, which is empty at first."""
    for table in ("users", "emails"):
        database.sql(f"DELETE FROM {table}")  # noqa: S608  # a name from above
    every = "SELECT email, name, password_hash FROM users ORDER BY email"
    return lambda: [(row["email"], row["name"], row["password_hash"]) for row in database.sql(every)]


Users = Callable[[], list[tuple[str, str | None, str]]]


def run_import(database: Postgres, file: Path, *options: str) -> Finished:
    settings = {"DATABASE_URL": database.url, "JWT_SECRET": JWT_SECRET}
    return command("import-users", str(file), *options, **settings)


@pytest.fixture
def run(database: Postgres, tmp_path: Path) -> Callable[..., Finished]:
    """Import a file of this content and name."""

    def run(content: str | bytes, name: str = "users.csv", *options: str) -> Finished:
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return run_import(database, file, *options)

    return run


Run = Callable[..., Finished]


def line(email: str = "ada@example.com", name: str = "Ada", password_hash: str = HASH) -> str:
    return f"{email},{name},{password_hash}\n"


def record(**fields: Any) -> str:
    return json.dumps({"email": "ada@example.com", "name": "Ada", "password_hash": HASH} | fields) + "\n"


# Accepted files

ADA, BOB = ("ada@example.com", "Ada", HASH), ("bob@example.com", None, OTHER_HASH)
BOTH = line() + line("bob@example.com", "", OTHER_HASH)
HEADER = "email,name,password_hash\n"
RECORDS = record() + record(email="bob@example.com", name=None, password_hash=OTHER_HASH)
FILES: dict[str, tuple[str, str]] = {
    "CSV": ("users.csv", HEADER + BOTH),
    "CSV with a header in other letters": ("users.csv", "Email, Name, Password_Hash\n" + BOTH),
    "CSV without a header": ("users.csv", BOTH),
    "CSV of Windows": ("USERS.CSV", "\ufeff" + (HEADER + BOTH).replace("\n", "\r\n")),
    "CSV with a header in another order": (
        "users.csv",
        f"password_hash,name,email\n{HASH},Ada,ada@example.com\n{OTHER_HASH},,bob@example.com\n",
    ),
    "CSV with more columns": (
        "users.csv",
        f"id,email,ok,password_hash,name\n1,ada@example.com,true,{HASH},Ada\n2,bob@example.com,,{OTHER_HASH}\n",
    ),
    "CSV with commas at the end": ("users.csv", (HEADER + BOTH).replace("\n", ",\r\n")),
    "CSV with rows of commas alone": ("users.csv", (HEADER + BOTH).replace("\n", "\n,,,\n")),
    "CSV with blanks around": ("users.csv", (HEADER + BOTH).replace(",", " , ")),
    "CSV in quotes": ("users.csv", HEADER + BOTH.replace("Ada", '"Ada"').replace(HASH, f'"{HASH}"')),
    "CSV with empty lines": ("users.csv", (HEADER + BOTH).replace("\n", "\n\n")),
    "CSV without a last line feed": ("users.csv", HEADER + BOTH.removesuffix("\n")),
    "JSON Lines": ("users.jsonl", RECORDS),
    "JSON Lines with empty lines": ("users.jsonl", RECORDS.replace("\n", "\r\n \r\n")),
    "JSON Lines with more fields": ("users.ndjson", RECORDS.replace("{", '{"id": "7", "issuer": "x", ')),
}


@pytest.mark.parametrize("case", FILES)
def test_every_user_of_a_file_is_brought_in(run: Run, users: Users, case: str) -> None:
    name, content = FILES[case]
    result = run(content, name)
    assert result.returncode == 0, result.stderr
    assert users() == [ADA, BOB]
    assert "2 new" in result.stderr


def test_names_and_emails_are_kept_as_registering_keeps_them(run: Run, users: Users) -> None:
    names = ["Lovelace, Ada", 'the "first"', "Ada e\u0301 👩\u200d👩\u200d👧", "'; DROP TABLE users; --"]
    emails = [f"user{number}@EXAMPLE.com" for number in range(len(names))]
    written = [
        line(email, '"' + name.replace('"', '""') + '"') for email, name in zip(emails, names, strict=True)
    ]
    assert run(HEADER + "".join(written)).returncode == 0
    kept = [email.replace("EXAMPLE", "example") for email in emails]
    assert users() == [(email, name, HASH) for email, name in zip(kept, names, strict=True)]


def test_many_users_are_brought_in(run: Run, users: Users) -> None:
    result = run(HEADER + "".join(line(f"user{number}@example.com") for number in range(2500)))
    assert result.returncode == 0, result.stderr
    assert "2,500 new" in result.stderr
    assert len(users()) == 2500


def test_a_file_without_users_is_no_mistake(run: Run, users: Users) -> None:
    for name, content in (("users.csv", HEADER), ("users.csv", ""), ("users.jsonl", "")):
        result = run(content, name)
        assert (result.returncode, "0 new" in result.stderr) == (0, True)
    assert users() == []


def test_it_can_be_run_again_and_who_is_here_stays_as_they_are(run: Run, users: Users) -> None:
    assert run(HEADER + BOTH).returncode == 0
    twice = line("carl@example.com", "Carl") + line("CARL@example.com", "Eve", OTHER_HASH)
    result = run(HEADER + line("ADA@example.com", "Eve", OTHER_HASH) + twice + BOTH[len(line()) :])
    assert (result.returncode, "1 new, 3 skipped" in result.stderr) == (0, True)
    skipped = [line for line in result.stderr.splitlines() if ": skipped: " in line]
    assert [line.partition(",")[2].partition(":")[0] for line in skipped] == [" line 2", " line 4", " line 5"]
    assert "@" not in result.stderr
    assert users() == [ADA, BOB, ("carl@example.com", "Carl", HASH)]


EXPORTS: dict[str, tuple[str, str]] = {
    "CSV": (
        "users.csv",
        f"E-Mail,Encrypted_Password,Full name\nada@example.com,{HASH},Ada\nbob@example.com,{OTHER_HASH},\n",
    ),
    "JSON Lines": (
        "users.jsonl",
        "".join(
            json.dumps({"E-Mail": email, "encrypted_password": password_hash, "full name": name}) + "\n"
            for email, name, password_hash in (ADA, BOB)
        ),
    ),
}
MAPPING = (
    "--column",
    "password_hash=encrypted_password",
    "--column",
    "email=E-Mail",
    "--column=name=full name",
)


@pytest.mark.parametrize("case", EXPORTS)
def test_columns_may_have_the_names_of_another_system(run: Run, users: Users, case: str) -> None:
    name, content = EXPORTS[case]
    result = run(content, name, *MAPPING)
    assert result.returncode == 0, result.stderr
    assert users() == [ADA, BOB]


def test_help_shows_how_columns_are_named(database: Postgres, tmp_path: Path) -> None:
    result = run_import(database, tmp_path, "--help")
    assert (result.returncode, "password_hash=encrypted_password" in result.stdout) == (0, True)
    for wrong in ("password=hash", "email", "email=", "=mail"):
        result = run_import(database, tmp_path, "--column", wrong)
        assert result.returncode == 2
        assert "password_hash=encrypted_password" in result.stderr


BAD_HEADERS = {
    "names of another system": ("mail,name,password_hash\n", "email"),
    "no hash": ("email,encrypted_password\n", "password_hash"),
    "semicolons": ("email;name;password_hash\n", "email"),
    "an email twice": ("email,Email,password_hash\n", "email"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_header_without_what_is_needed_is_named(
    database: Postgres, tmp_path: Path, users: Users, case: str
) -> None:
    header, column = BAD_HEADERS[case]
    said = refused(database, tmp_path / "users.csv", (header + BOTH).encode())
    assert len(said) == 1
    assert f"line 1: the header must name {column} once" in said[0]
    assert users() == []


def test_a_column_that_was_named_must_be_there(run: Run, users: Users) -> None:
    for content in (HEADER + BOTH, BOTH):
        result = run(content, "users.csv", "--column", "name=full_name")
        assert (result.returncode, users()) == (1, [])
        assert "line 1: the header must name " in result.stderr


@pytest.mark.parametrize("prefix", ["$2a$", "$2b$", "$2y$"])
def test_an_imported_user_signs_in_and_is_upgraded(
    run: Run, users: Users, service: Service, prefix: str
) -> None:
    assert run(HEADER + line(password_hash=HASH.replace("$2b$", prefix))).returncode == 0
    client = service.client()
    wrong = {"email": "ada@example.com", "password": "a wrong password"}
    assert client.post("/auth/login", json=wrong).status_code == 401
    assert users()[0][2].startswith(prefix)
    tokens = client.post("/auth/login", json=wrong | {"email": "Ada@Example.com", "password": PASSWORD})
    assert (tokens.status_code, tokens.json()["user"]["name"]) == (200, "Ada")
    assert users()[0][2].startswith("$bcrypt-sha256$v=2,t=2b,r=4$")
    assert client.post("/auth/login", json=wrong | {"password": PASSWORD}).status_code == 200
    # A second import undoes neither the upgrade nor a new password.
    upgraded = users()
    assert run(HEADER + line()).returncode == 0
    assert users() == upgraded


# Refused files

BAD_LINES: dict[str, tuple[str, str]] = {
    "no email": (line("no email"), "email"),
    "an empty email": (line(""), "email"),
    "a very long email": (line(f"{'x' * 250}@example.com"), "email"),
    "a name that is too long": (line(name="x" * 201), "name"),
    "a name with a control character": (line(name="A\x1b[31mda"), "name"),
    "no hash": (line(password_hash=""), "password_hash"),
    "a hash that is missing": ("ada@example.com,Ada\n", "password_hash"),
    "a password": (line(password_hash=PASSWORD), "password_hash"),
    "a hash cut short": (line(password_hash=HASH[:-1]), "password_hash"),
    "a hash with a letter more": (line(password_hash=HASH + "x"), "password_hash"),
    "a hash with a letter of another alphabet": (line(password_hash=HASH[:-1] + "é"), "password_hash"),
    "cost 3": (line(password_hash=HASH.replace("$04$", "$03$")), "password_hash"),
    "cost 17": (line(password_hash=HASH.replace("$04$", "$17$")), "password_hash"),
    "cost 31": (line(password_hash=HASH.replace("$04$", "$31$")), "password_hash"),
    "2x": (line(password_hash=HASH.replace("$2b$", "$2x$")), "password_hash"),
    "another scheme": (line(password_hash="$argon2id$v=19$m=65536$c2FsdA$aGFzaA"), "password_hash"),
    "columns in another order": (f"Ada,ada@example.com,{HASH}\n", "email"),
    "a name with a comma and no quotes": (
        f"ada@example.com,Lovelace, Ada,{HASH}\n",
        "4 columns instead of 3",
    ),
    "quotes that never end": (line(name='"Ada'), "line 3"),
    "quotes with something behind": (line(name='"A"da'), "line 3"),
    "bytes that are no UTF-8": (line(name="J\udcfcrgen"), "line 3"),
}


def refused(database: Postgres, file: Path, content: bytes) -> list[str]:
    """Import a file within this process, which is quicker; return what is wrong with it, line by line."""
    file.write_bytes(content)

    async def bring_in() -> None:
        settings = load_settings(database_url=database.url, jwt_secret=JWT_SECRET)
        async with Database(settings) as target:
            await import_users(target, file)

    with pytest.raises(UserFileError) as error:
        asyncio.run(bring_in())
    said = str(error.value)
    for hidden in (HASH[8:40], PASSWORD, "ImportedUser", "@", "pattern"):
        assert hidden not in said
    return said.splitlines()


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_and_nothing_of_the_file_is_brought_in(
    database: Postgres, tmp_path: Path, users: Users, case: str
) -> None:
    bad, reason = BAD_LINES[case]
    content = HEADER + line("carl@example.com") + bad + line("bob@example.com")
    said = refused(database, tmp_path / "users.csv", content.encode(errors="surrogateescape"))[0]
    assert "line 3" in said
    assert reason in said
    assert users() == []


BAD_RECORDS: dict[str, tuple[str, str]] = {
    "no JSON": ("{email: ada}\n", "line 2"),
    "cut short": (record()[:-3] + "\n", "line 2"),
    "a list": ('["ada@example.com"]\n', "an object"),
    "a very deep list": ("[" * 100_000 + "\n", "Invalid JSON"),
    "null": ("null\n", "an object"),
    "a text": ('"ada@example.com"\n', "an object"),
    "a number for an email": (record(email=7), "email"),
    "a field that is missing": ('{"email": "ada@example.com"}\n', "password_hash"),
    "a list for a name": (record(name=["Ada"]), "name"),
    "NUL": (record(name="A\0da"), "name"),
    "a lone surrogate": (record(name="A\ud800da"), "Invalid JSON"),
    "a hash with a line feed": (record(password_hash=HASH + "\n"), "password_hash"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_bad_record_is_named_as_well(database: Postgres, tmp_path: Path, users: Users, case: str) -> None:
    bad, reason = BAD_RECORDS[case]
    content = record(email="carl@example.com") + bad + record(email="bob@example.com")
    said = refused(database, tmp_path / "users.jsonl", content.encode())[0]
    assert "line 2" in said
    assert reason in said
    assert users() == []


def test_every_bad_line_is_named_and_counted(run: Run, users: Users) -> None:
    bad = ["a,b,c,d\n", *(line(f"bad{number}") for number in range(29))]
    result = run(HEADER + "".join(bad) + line() + line(password_hash="x"))
    assert (result.returncode, result.stdout, users()) == (1, "", [])
    found = result.stderr.splitlines()
    assert [f"line {number}: " in said for number, said in zip([*range(2, 32), 33], found, strict=False)]
    assert (len(found), "nothing was imported: 31 " in found[-1]) == (32, True)
    assert "line 32" not in result.stderr


def test_what_the_database_refuses_leaves_nothing_either(run: Run, users: Users, database: Postgres) -> None:
    """No user is imported even if the database refuses one after a thousand others."""
    database.sql("ALTER TABLE users ADD CONSTRAINT refuses CHECK (email <> 'user1500@example.com')")
    result = run(HEADER + "".join(line(f"user{number}@example.com") for number in range(1501)))
    database.sql("ALTER TABLE users DROP CONSTRAINT refuses")
    assert result.returncode != 0
    assert users() == []


def test_a_file_that_cannot_be_read_is_one_line(database: Postgres, tmp_path: Path) -> None:
    for file in (tmp_path / "nothing.csv", tmp_path):
        result = run_import(database, file)
        assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
        assert str(file) in result.stderr
