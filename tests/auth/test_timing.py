"""An unknown email and a wrong password take the same time, whatever the scheme and cost of the stored hash.

The tests compare CPU time of the service, because a clock would also show other load on this machine.
"""

from collections.abc import Callable, Iterator

import bcrypt
import httpx2
import pytest
from passlib.context import CryptContext

from scripts.benchmark.meter import family_cpu_seconds
from tests.conftest import Postgres
from tests.service import JWT_SECRET, PASSWORD, UNTRACED, Service, running

SAMPLES, ATTEMPTS, TOLERANCE = 3, 9, 0.1
LEAST_SECONDS = 0.01
"""Less than a hash at cost 9 takes."""
COST = "12"
"""The default of `BCRYPT_ROUNDS`."""


@pytest.fixture(scope="module")
def slow(new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that hashes as it does by default."""
    log = tmp_path_factory.mktemp("slow") / "log"
    url = new_database().url
    with running(log, DATABASE_URL=url, JWT_SECRET=JWT_SECRET, BCRYPT_ROUNDS=COST, **UNTRACED) as service:
        yield service


def try_login(client: httpx2.Client, email: str) -> httpx2.Response:
    return client.post("/auth/login", json={"email": email, "password": "a wrong password"})


def try_token(client: httpx2.Client, email: str) -> httpx2.Response:
    return client.post("/auth/token", data={"username": email, "password": "a wrong password"})


@pytest.mark.parametrize(("attempt", "status"), [(try_login, 401), (try_token, 400)])
def test_an_unknown_email_and_a_wrong_password_take_the_same_time(
    slow: Service, attempt: Callable[[httpx2.Client, str], httpx2.Response], status: int
) -> None:
    """The emails take turns, and the least times count. A failure repeats, because the CPU is shared."""
    compare(slow, slow.register().email, attempt, status)


def compare(
    service: Service, known: str, attempt: Callable[[httpx2.Client, str], httpx2.Response], status: int
) -> None:
    client, emails = service.client(), ("nobody@example.com", known)
    seconds: dict[str, list[float]] = {email: [] for email in emails}
    for _ in range(ATTEMPTS):
        for _ in range(SAMPLES):
            for email in emails:
                before = family_cpu_seconds(service.process.pid)
                assert attempt(client, email).status_code == status
                seconds[email].append(family_cpu_seconds(service.process.pid) - before)
        unknown, wrong = (min(seconds[email]) for email in emails)
        if abs(unknown / wrong - 1) < TOLERANCE:
            break
    assert unknown > LEAST_SECONDS  # else nothing was hashed
    assert unknown == pytest.approx(wrong, rel=TOLERANCE)


def plain_bcrypt(cost: int) -> str:
    return bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(cost)).decode()


def sha256_bcrypt(cost: int) -> str:
    return str(CryptContext(["bcrypt_sha256"], bcrypt_sha256__rounds=cost).hash(PASSWORD))


STORED: dict[str, Callable[[], str]] = {
    "plain bcrypt of a lower cost": lambda: plain_bcrypt(5),
    "plain bcrypt of the same cost": lambda: plain_bcrypt(9),
    "plain bcrypt of a higher cost": lambda: plain_bcrypt(10),
    "bcrypt_sha256 of a lower cost": lambda: sha256_bcrypt(8),
    "bcrypt_sha256 of the same cost": lambda: sha256_bcrypt(9),
    "bcrypt_sha256 of a higher cost": lambda: sha256_bcrypt(10),
    "bcrypt_sha256 of an older version": lambda: f"$bcrypt-sha256$2a,7${'a' * 21}u${'b' * 30}.",
    "damaged": lambda: plain_bcrypt(9)[:-1],
    "damaged, of a cost that nobody can wait for": lambda: plain_bcrypt(9).replace("$09$", "$31$")[:-1],
    "no hash": lambda: "damaged",
}


@pytest.fixture(scope="module")
def imported(
    new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Postgres]]:
    """A service that hashes at cost 9, and its database."""
    database, log = new_database(), tmp_path_factory.mktemp("imported") / "log"
    settings = {"DATABASE_URL": database.url, "JWT_SECRET": JWT_SECRET, "BCRYPT_ROUNDS": "9"}
    with running(log, **settings, **UNTRACED) as service:
        yield service, database


@pytest.mark.parametrize(
    "password",
    ["a wrong password", "x" * 73, "a wrong password\0", "x" * 5000],
    ids=["wrong", "over 72 bytes", "NUL", "far too long"],
)
@pytest.mark.parametrize("kept", STORED)
def test_an_account_takes_the_time_of_an_unknown_email_whatever_its_hash(
    imported: tuple[Service, Postgres], kept: str, password: str
) -> None:
    service, database = imported
    account = service.register()
    try:
        database.sql("UPDATE users SET password_hash = $2 WHERE id = $1", account.id, STORED[kept]())

        def attempt(client: httpx2.Client, email: str) -> httpx2.Response:
            return client.post("/auth/login", json={"email": email, "password": password})

        compare(service, account.email, attempt, 401)
    finally:
        database.sql("DELETE FROM users WHERE id = $1", account.id)
