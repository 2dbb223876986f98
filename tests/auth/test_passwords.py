"""The rules for passwords, their stored hashes, and hashing in a bounded queue beside the event loop."""

import asyncio
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import httpx2
import pytest
from passlib.context import CryptContext

from backend.auth.accounts.passwords import MIN_QUEUE, PasswordHasher
from backend.web.errors import ServiceUnavailableError
from tests.conftest import Postgres
from tests.service import (
    JWT_SECRET,
    PASSWORD,
    ROOT,
    Account,
    Service,
    environment,
    free_port,
    wait_until_healthy,
)

ADDRESS = "192.0.2.7"
CURRENT = "$bcrypt-sha256$v=2,t=2b,r=4$"
"""The prefix of a hash of the current scheme, at the cost that the tests use."""


def post(service: Service, path: str, **data: Any) -> httpx2.Response:
    """Send JSON in ASCII alone, because a lone surrogate has no UTF-8."""
    headers = {"Content-Type": "application/json"}
    return service.client().post(path, content=json.dumps(data), headers=headers)


def sign_in(service: Service, email: str, password: str) -> int:
    return post(service, "/auth/login", email=email, password=password).status_code


# The rules for passwords

ALLOWED = {
    "the shortest": "q7 Zp!x0",
    "the longest": "Tq8-" * 32,
    "the longest in four bytes each": "🔑🦆" * 64,
    "the longest after NFC": "e\u0301" * 128,
    "the longest after NFC and as sent": "\u03b1\u0313\u0300\u0345" * 128,
    "the shortest after NFC": "a\u0308o\u0308u\u0308" * 2 + "xy",
    "NUL": "nul\0in the middle",
    "NULs": "\0" * 8,
    "control characters": "\x01\x1b[31m\r\n\t\x7f\x9f",
    "spaces at the ends": "  both ends  ",
    "beyond the basic plane": "𝔭𝔞𝔰𝔰𝔴𝔬𝔯𝔱",
    "no letters": "….,;:-_…",
    "separators": "line\u2028paragraph\u2029next\u0085",
}


@pytest.mark.parametrize("case", ALLOWED)
def test_any_characters_make_a_password(service: Service, case: str) -> None:
    password = ALLOWED[case]
    account = service.register(password=password)
    assert sign_in(service, account.email, password) == 200
    assert sign_in(service, account.email, password[:-1]) == 401
    form = {"username": account.email, "password": password}
    assert service.client().post("/auth/token", data=form).status_code == 200


def test_a_password_is_the_same_composed_or_not(service: Service) -> None:
    """RFC 8265."""
    composed, decomposed = (unicodedata.normalize(form, "Crème brûlée à côté") for form in ("NFC", "NFD"))
    assert composed != decomposed
    for first, second in ((composed, decomposed), (decomposed, composed)):
        account = service.register(password=first)
        assert sign_in(service, account.email, second) == 200


def test_no_byte_past_72_is_cut_off(service: Service) -> None:
    account = service.register(password="x" * 72 + "1")
    assert sign_in(service, account.email, "x" * 72 + "1") == 200
    assert sign_in(service, account.email, "x" * 72 + "2") == 401
    assert sign_in(service, account.email, "x" * 72) == 401


REFUSED = {
    "empty": ("", "string_too_short"),
    "too short": ("q7 Zp!x", "string_too_short"),
    "too short after NFC": ("e\u0301" * 7, "string_too_short"),
    "too long": ("x7" * 64 + "x", "string_too_long"),
    "far too long": ("x" * 60_000, "string_too_long"),
    "longer than any may be sent": ("\u03b1\u0313\u0300\u0345" * 128 + "x", "string_too_long"),
    "common": ("password", "password_common"),
    "common, in other letters": ("PassWord1", "password_common"),
    "common, of digits": ("1234567890", "password_common"),
    "the email": ("itself@example.com", "password_is_email"),
    "the email, in other letters": ("ITSELF@Example.COM", "password_is_email"),
    "a lone surrogate": ("\ud800" * 8, "string_unicode"),
    "a number": (12345678, "string_type"),
    "null": (None, "string_type"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_password_that_breaks_a_rule_is_refused(service: Service, database: Postgres, case: str) -> None:
    password, kind = REFUSED[case]
    response = post(service, "/auth/register", email="Itself@example.com", password=password)
    body = response.json()
    assert (response.status_code, body["code"]) == (400, "validation_error")
    assert [(error["field"], error["type"]) for error in body["errors"]] == [("password", kind)]
    assert database.sql("SELECT FROM users WHERE email_key = 'itself@example.com'") == []


# The stored hashes


def give_hash(database: Postgres, account: Account, stored: str) -> None:
    database.sql("UPDATE users SET password_hash = $2 WHERE id = $1", account.id, stored)


def stored_hash(database: Postgres, account: Account) -> str:
    (row,) = database.sql("SELECT password_hash FROM users WHERE id = $1", account.id)
    return str(row["password_hash"])


def plain_bcrypt(password: str, prefix: str = "2b", cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode().replace("$2b$", f"${prefix}$")


OUTDATED: dict[str, Callable[[], str]] = {
    "$2a$": lambda: plain_bcrypt(PASSWORD, "2a"),
    "$2b$": lambda: plain_bcrypt(PASSWORD, "2b"),
    "$2y$": lambda: plain_bcrypt(PASSWORD, "2y"),
    "another cost": lambda: CryptContext(["bcrypt_sha256"], bcrypt_sha256__rounds=5).hash(PASSWORD),
}


@pytest.mark.parametrize("case", OUTDATED)
def test_an_outdated_hash_verifies_and_is_upgraded(service: Service, database: Postgres, case: str) -> None:
    account, stored = service.register(), OUTDATED[case]()
    give_hash(database, account, stored)
    assert sign_in(service, account.email, "a wrong password") == 401
    assert stored_hash(database, account) == stored
    assert sign_in(service, account.email, PASSWORD) == 200
    upgraded = stored_hash(database, account)
    assert upgraded.startswith(CURRENT)
    assert sign_in(service, account.email, PASSWORD) == 200
    assert stored_hash(database, account) == upgraded


DAMAGED = {
    "empty": "",
    "a space": " ",
    "no hash": "plain text",
    "a plain password": PASSWORD,
    "cut short": plain_bcrypt(PASSWORD)[:-1],
    "one letter more": plain_bcrypt(PASSWORD) + "x",
    "the prefix alone": "$2b$04$",
    "cost out of range": plain_bcrypt(PASSWORD).replace("$04$", "$99$"),
    "cost no number": plain_bcrypt(PASSWORD).replace("$04$", "$xx$"),
    "2x": plain_bcrypt(PASSWORD, "2x"),
    "bcrypt_sha256 cut short": f"{CURRENT}{'a' * 22}$",
    "bcrypt_sha256 of an unknown version": f"$bcrypt-sha256$v=9,t=2b,r=4${'a' * 22}${'b' * 31}",
    "another scheme": "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaA",
    "beyond ASCII": "$2b$04$" + "é" * 53,
    "a line feed": plain_bcrypt(PASSWORD) + "\n",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_hash_is_a_failed_sign_in(service: Service, database: Postgres, case: str) -> None:
    account = service.register()
    give_hash(database, account, DAMAGED[case])
    for password in (PASSWORD, DAMAGED[case], "nobody"):
        assert sign_in(service, account.email, password) == 401
    assert stored_hash(database, account) == DAMAGED[case]


@pytest.mark.parametrize(
    "password",
    [
        pytest.param(f"{PASSWORD}\0", id="NUL"),
        pytest.param("x" * 73, id="73 bytes that begin with the right ones"),
        pytest.param("é" * 37, id="74 bytes, fewer characters"),
        pytest.param("x" * 5000, id="far too long"),
    ],
)
def test_what_plain_bcrypt_cannot_check_is_a_failed_sign_in(
    service: Service, database: Postgres, password: str
) -> None:
    account = service.register()
    give_hash(database, account, plain_bcrypt("x" * 72))
    response = post(service, "/auth/login", email=account.email, password=password)
    assert (response.status_code, response.json()["code"]) == (401, "invalid_credentials")


def test_a_hash_with_stray_bits_verifies_without_a_line_that_is_no_json(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    """Some old libraries set the salt's last bits, which count for nothing; passlib warns of it."""
    database = new_database()
    service = new_service(DATABASE_URL=database.url)
    account, stored = service.register(), plain_bcrypt(PASSWORD)
    salt_end = len("$2b$04$") + 21
    letters = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    stray = letters[letters.index(stored[salt_end]) + 1]
    give_hash(database, account, stored[:salt_end] + stray + stored[salt_end + 1 :])
    assert sign_in(service, account.email, PASSWORD) == 200
    assert stored_hash(database, account).startswith(CURRENT)
    assert all(line.startswith(b"{") for line in service.log.read_bytes().splitlines())


# Hash checks delay no other request


@pytest.fixture(scope="module")
def slow(new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose hashes take some 15 ms, and that has one thread for them on a machine of any size.

    WORKERS divides the threads, so the single process is told that it is one of many.
    """
    port = str(free_port())
    settings = environment(
        DATABASE_URL=new_database().url,
        JWT_SECRET=JWT_SECRET,
        BCRYPT_ROUNDS="8",
        WORKERS=str(os.cpu_count() or 1),
        DATABASE_POOL_SIZE="40",  # they come all at once, and it is the hashes that they shall wait for
    )
    log: Path = tmp_path_factory.mktemp("slow") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--factory", "backend.app:create_app", "--port", port],
            cwd=ROOT,
            env=settings,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    service = Service(process, f"http://127.0.0.1:{port}", log)
    try:
        wait_until_healthy(service)
        yield service
    finally:
        service.stop()


def test_a_full_queue_answers_503_while_the_service_goes_on(slow: Service) -> None:
    account = slow.register()
    login = {"email": account.email, "password": PASSWORD}
    # Another account signs in, because so many sign-ins would end this account's oldest session.
    signed_in = {"Authorization": slow.register().client.headers["Authorization"]}

    async def storm() -> tuple[list[httpx2.Response], list[httpx2.Response]]:
        unlimited = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(
            base_url=slow.url, limits=unlimited, timeout=300, trust_env=False
        ) as client:
            sign_ins = asyncio.gather(
                *(client.post("/auth/login", json=login) for _ in range(MIN_QUEUE + 56))
            )
            others = []
            while not sign_ins.done():
                await asyncio.sleep(0.1)
                others += [await client.get("/health"), await client.get("/tasks", headers=signed_in)]
            return await sign_ins, others

    sign_ins, others = asyncio.run(storm())
    refused = [response for response in sign_ins if response.is_error]
    accepted = [response for response in sign_ins if response.is_success]
    assert len(refused) + len(accepted) == len(sign_ins)
    assert {(each.status_code, each.json()["code"]) for each in refused} == {(503, "service_unavailable")}
    assert all(int(each.headers["Retry-After"]) > 0 for each in refused)
    assert len(accepted) >= MIN_QUEUE
    # Refused requests did not wait, and requests that waited were not refused.
    drained = max(each.elapsed.total_seconds() for each in accepted)
    assert max(each.elapsed.total_seconds() for each in refused) < drained / 2
    assert {each.status_code for each in others} == {200}
    assert max(each.elapsed.total_seconds() for each in others) < drained / 2
    assert slow.client().post("/auth/login", json=login).status_code == 200


def test_the_queue_is_bounded_and_the_event_loop_free() -> None:

    async def fill() -> None:
        hasher = PasswordHasher(rounds=8, processes=os.cpu_count() or 1)
        waiting = [asyncio.ensure_future(hasher.hash("a password", ADDRESS)) for _ in range(MIN_QUEUE)]
        await asyncio.sleep(0)
        for refused in (
            hasher.hash("one too many", ADDRESS),
            hasher.cost_of_failure("one too many", None, ADDRESS),
        ):
            with pytest.raises(ServiceUnavailableError):
                await refused
        turns = 0
        while not all(task.done() for task in waiting):
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > MIN_QUEUE
        assert await hasher.cost_of_failure("a password", await waiting[0], ADDRESS) == 0
        hasher.close()

    asyncio.run(fill())
