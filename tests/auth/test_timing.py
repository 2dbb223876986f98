"""An unknown email and a wrong password take the same time, at the cost that people run with.

What takes time is the hash, so the time is the service's on the processor: a clock would tell of whoever
else is at work on this machine.
"""

from collections.abc import Callable, Iterator

import httpx
import pytest

from scripts.benchmark.meter import family_cpu_seconds
from tests.conftest import Postgres
from tests.service import JWT_SECRET, Service, running

SAMPLES, ATTEMPTS, TOLERANCE = 12, 3, 0.1
COST = "12"
"""The default of `BCRYPT_ROUNDS`."""


@pytest.fixture(scope="module")
def slow(new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that hashes as it does by default."""
    log = tmp_path_factory.mktemp("slow") / "log"
    url = new_database().url
    with running(log, DATABASE_URL=url, JWT_SECRET=JWT_SECRET, BCRYPT_ROUNDS=COST) as service:
        yield service


def try_login(client: httpx.Client, email: str) -> httpx.Response:
    return client.post("/auth/login", json={"email": email, "password": "a wrong password"})


def try_token(client: httpx.Client, email: str) -> httpx.Response:
    return client.post("/auth/token", data={"username": email, "password": "a wrong password"})


@pytest.mark.parametrize(("attempt", "status"), [(try_login, 401), (try_token, 400)])
def test_an_unknown_email_and_a_wrong_password_take_the_same_time(
    slow: Service, attempt: Callable[[httpx.Client, str], httpx.Response], status: int
) -> None:
    """The least that each takes, turn by turn; more turns before it fails, for others share the processor."""
    client, emails = slow.client(), ("nobody@example.com", slow.register().email)
    seconds: dict[str, list[float]] = {email: [] for email in emails}
    for _ in range(ATTEMPTS):
        for _ in range(SAMPLES):
            for email in emails:
                before = family_cpu_seconds(slow.process.pid)
                assert attempt(client, email).status_code == status
                seconds[email].append(family_cpu_seconds(slow.process.pid) - before)
        unknown, known = (min(seconds[email]) for email in emails)
        if abs(unknown / known - 1) < TOLERANCE:
            break
    assert unknown > 0.05  # else nothing was hashed
    assert unknown == pytest.approx(known, rel=TOLERANCE)
