"""Rate limits per account and per address, the owner's access during an attack, and a Redis that fails."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from backend.settings import SettingsError, load_settings
from backend.web.errors import ServiceUnavailableError
from backend.web.rate_limits import MAX_WAITING, RateLimits, address_of
from tests import programs
from tests.conftest import Postgres
from tests.programs import needs_loopback_addresses
from tests.service import JWT_SECRET, PASSWORD, Account, Service, free_port, running

WRONG = "a wrong password"

_numbers = count(1)


def new_address() -> str:
    """Return an unused address."""
    return str(ip_address("10.0.0.0") + next(_numbers))


def new_email() -> str:
    """Return an unregistered email."""
    return f"nobody{next(_numbers)}@example.com"


@pytest.fixture(scope="module")
def limited_database(new_database: Callable[[], Postgres]) -> Postgres:
    return new_database()


@pytest.fixture(scope="module")
def limited(limited_database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the default limits, except for registrations. The test acts as its proxy."""
    with running(
        tmp_path_factory.mktemp("limited") / "log",
        DATABASE_URL=limited_database.url,
        JWT_SECRET=JWT_SECRET,
        RATE_LIMIT_ENABLED="true",
        RATE_LIMIT_REGISTER="5/hour",
        FORWARDED_ALLOW_IPS="127.0.0.1",
        DATABASE_POOL_SIZE="20",
    ) as service:
        yield service


def send(service: Service, address: str, method: str, path: str, **options: Any) -> httpx2.Response:
    """Send one request as the client at `address`."""
    with service.client(headers={"X-Forwarded-For": address}) as client:
        return client.request(method, path, **options)


def sign_in(service: Service, address: str, email: str, password: str = PASSWORD) -> httpx2.Response:
    return send(service, address, "POST", "/auth/login", json={"email": email, "password": password})


def registered(service: Service, home: str) -> tuple[str, str]:
    """Register an account from `home`; return its email and its access token."""
    email = new_email()
    response = send(service, home, "POST", "/auth/register", json={"email": email, "password": PASSWORD})
    assert response.status_code == 201, response.text
    return email, response.json()["access_token"]


def crowded(service: Service) -> tuple[str, str]:
    """Return an address from which six accounts have signed in, and the email of one."""
    shared = new_address()
    email, _ = registered(service, shared)
    for _ in range(5):
        assert sign_in(service, shared, registered(service, new_address())[0]).status_code == 200
    return shared, email


def attack(service: Service, email: str, guesses: int = 10) -> None:
    """Guess as often as an account allows, each time from another address."""
    for _ in range(guesses):
        assert sign_in(service, new_address(), email, WRONG).status_code == 401


def assert_limited(service: Service, response: httpx2.Response, limit: str, seconds: int = 60) -> None:
    """The response has `Retry-After`, and the log names the limit."""
    assert (response.status_code, response.json()["code"]) == (429, "rate_limited")
    assert 1 <= int(response.headers["Retry-After"]) <= seconds
    (line,) = service.lines(event="auth.rate_limited", request_id=response.json()["request_id"])
    assert (line["limit"], line["level"], line["status"]) == (limit, "WARNING", 429)


def together(service: Service, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx2.Response]:
    """Send all requests (method, path and options) at once."""

    async def run() -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(
            base_url=service.url, limits=limits, timeout=60, trust_env=False
        ) as client:
            return await asyncio.gather(
                *(client.request(method, path, **options) for method, path, options in requests)
            )

    return asyncio.run(run())


def login(address: str, email: str, password: str = PASSWORD) -> tuple[str, str, dict[str, Any]]:
    """Return a sign-in for `together`."""
    credentials = {"email": email, "password": password}
    return "POST", "/auth/login", {"json": credentials, "headers": {"X-Forwarded-For": address}}


def statuses(responses: list[httpx2.Response]) -> dict[int, int]:
    found = [response.status_code for response in responses]
    return {status: found.count(status) for status in found}


# Guesses at one account


@pytest.mark.parametrize("exists", [True, False])
def test_an_account_takes_ten_wrong_guesses_from_wherever_they_come(limited: Service, exists: bool) -> None:
    """An unregistered email gets the same responses, which therefore do not reveal it."""
    email = registered(limited, new_address())[0] if exists else new_email()
    attack(limited, email)
    refused = sign_in(limited, new_address(), email, WRONG)
    assert_limited(limited, refused, "account")
    assert refused.json() == {
        "status_code": 429,
        "detail": "Too many attempts, please try again later",
        "code": "rate_limited",
        "request_id": refused.headers["X-Request-ID"],
    }
    assert_limited(limited, sign_in(limited, new_address(), email.upper(), WRONG), "account")
    assert sign_in(limited, new_address(), new_email(), WRONG).status_code == 401


def test_an_account_under_attack_opens_to_its_owner_alone(limited: Service) -> None:
    home, office = new_address(), new_address()
    email, _ = registered(limited, home)
    assert sign_in(limited, office, email).status_code == 200
    attack(limited, email)
    assert_limited(limited, sign_in(limited, new_address(), email), "account")
    for known in (home, office):
        assert sign_in(limited, known, email, WRONG).status_code == 401
        assert sign_in(limited, known, email).status_code == 200
    assert_limited(limited, sign_in(limited, new_address(), email), "account")


def test_the_owners_own_mistakes_lock_out_nobody(limited: Service) -> None:
    home = new_address()
    email, _ = registered(limited, home)
    for _ in range(11):
        assert sign_in(limited, home, email, WRONG).status_code == 401
    assert sign_in(limited, new_address(), email).status_code == 200


def test_an_address_is_known_to_one_account_and_not_to_its_neighbours(limited: Service) -> None:
    home = new_address()
    registered(limited, home)
    email, _ = registered(limited, new_address())
    attack(limited, email)
    assert_limited(limited, sign_in(limited, home, email), "account")


@pytest.mark.parametrize(("days", "status"), [(29, 200), (31, 429)])
def test_an_address_is_known_for_thirty_days(
    limited: Service, limited_database: Postgres, days: int, status: int
) -> None:
    home = new_address()
    email, _ = registered(limited, home)
    attack(limited, email)
    moved = limited_database.sql(
        "UPDATE known_addresses SET last_used_at = now() - make_interval(days => $2) "
        "FROM users WHERE users.id = user_id AND email = $1 RETURNING address",
        email,
        days,
    )
    assert moved == [{"address": home}]
    assert sign_in(limited, home, email).status_code == status


@pytest.mark.parametrize(("neighbours", "status"), [(4, 200), (5, 429)])
def test_an_address_that_many_accounts_share_is_known_to_none(
    limited: Service, limited_database: Postgres, neighbours: int, status: int
) -> None:
    """Otherwise all clients of an unnamed proxy would be at home there, with unlimited guesses."""
    shared = new_address()
    emails = [registered(limited, shared)[0]]
    for _ in range(neighbours):
        emails.append(registered(limited, new_address())[0])
        assert sign_in(limited, shared, emails[-1]).status_code == 200
    attack(limited, emails[0])
    assert sign_in(limited, shared, emails[0]).status_code == status
    limited_database.sql(
        "UPDATE known_addresses SET last_used_at = now() - make_interval(days => 31) "
        "FROM users WHERE users.id = user_id AND address = $1 AND email = $2",
        shared,
        emails[-1],
    )
    assert sign_in(limited, shared, emails[0]).status_code == 200


def test_a_token_makes_a_shared_address_no_home_either(limited: Service) -> None:
    shared, email = crowded(limited)
    token = sign_in(limited, shared, email).json()["access_token"]
    attack(limited, email)
    headers = {"Authorization": f"Bearer {token}"}
    refused = send(limited, shared, "DELETE", "/auth/me", json={"password": WRONG}, headers=headers)
    assert_limited(limited, refused, "account")


def test_thirty_wrong_guesses_at_once_are_ten(limited: Service) -> None:
    email, _ = registered(limited, new_address())
    responses = together(limited, *(login(new_address(), email, WRONG) for _ in range(30)))
    assert statuses(responses) == {401: 10, 429: 20}
    for response in responses:
        if response.status_code == 429:
            assert_limited(limited, response, "account")


def test_an_account_takes_ten_wrong_guesses_from_an_address_that_many_share(
    limited: Service,
) -> None:
    shared, email = crowded(limited)
    for _ in range(10):
        assert sign_in(limited, shared, email, WRONG).status_code == 401
    assert_limited(limited, sign_in(limited, shared, email, WRONG), "account")


def test_thirty_wrong_guesses_at_once_from_a_shared_address_are_ten(limited: Service) -> None:
    shared, email = crowded(limited)
    responses = together(limited, *(login(shared, email, WRONG) for _ in range(30)))
    assert statuses(responses) == {401: 10, 429: 20}


@pytest.mark.parametrize("places", [1, 40])
def test_a_right_password_is_never_counted(limited: Service, places: int) -> None:
    """Forty sign-ins at once, more than either limit of failures, come from unknown addresses."""
    email, _ = registered(limited, new_address())
    addresses = [new_address() for _ in range(places)] * (40 // places)
    assert statuses(together(limited, *(login(each, email) for each in addresses))) == {200: 40}
    attack(limited, email)


def test_a_right_password_waits_for_wrong_ones_that_may_still_be_right(limited: Service) -> None:
    email, _ = registered(limited, new_address())
    wrong = [login(new_address(), email, WRONG) for _ in range(9)]
    right = [login(new_address(), email) for _ in range(20)]
    responses = together(limited, *wrong, *right)
    assert (statuses(responses[:9]), statuses(responses[9:])) == ({401: 9}, {200: 20})


def test_attempts_over_so_many_that_wait_are_refused_at_once() -> None:
    async def scenario() -> None:
        given = {"rate_limit_signin_account": "1/minute", "rate_limit_signin_address": "1000/minute"}
        limits = RateLimits(load_settings(jwt_secret=JWT_SECRET, **given))
        attempts = [limits.account.attempt("ada@example.com") for _ in range(MAX_WAITING + 2)]
        async with attempts.pop():
            waiting = [asyncio.create_task(attempt.__aenter__()) for attempt in attempts[1:]]
            await asyncio.sleep(0)
            with pytest.raises(ServiceUnavailableError):
                await asyncio.wait_for(attempts[0].__aenter__(), 5)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(scenario())


def test_the_password_grant_counts_alike_and_refuses_in_the_words_of_oauth(limited: Service) -> None:
    """RFC 6749 section 5.2."""
    home = new_address()
    email, _ = registered(limited, home)

    def grant(address: str, password: str) -> httpx2.Response:
        form = {"username": email, "password": password}
        return send(limited, address, "POST", "/auth/token", data=form)

    for _ in range(9):
        assert grant(new_address(), WRONG).json()["error"] == "invalid_grant"
    attack(limited, email, guesses=1)
    refused = grant(new_address(), PASSWORD)
    assert_limited(limited, refused, "account")
    body = refused.json()
    assert body["error"].isidentifier()
    assert body["error_description"] == body["detail"]
    assert_limited(limited, sign_in(limited, new_address(), email), "account")
    assert grant(home, PASSWORD).status_code == 200


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_whoever_holds_a_token_guesses_at_the_password_no_more_often(limited: Service, method: str) -> None:
    home = new_address()
    email, token = registered(limited, home)

    def confirm(address: str, password: str) -> httpx2.Response:
        path, body = "/auth/me", {"password": password}
        if method == "POST":
            path, body = "/auth/password", {"current_password": password, "new_password": "q7 Zp!x0 new"}
        headers = {"Authorization": f"Bearer {token}"}
        return send(limited, address, method, path, json=body, headers=headers)

    for _ in range(9):
        assert confirm(new_address(), WRONG).json()["code"] == "wrong_password"
    attack(limited, email, guesses=1)
    for password in (WRONG, PASSWORD):
        assert_limited(limited, confirm(new_address(), password), "account")
    assert_limited(limited, sign_in(limited, new_address(), email), "account")
    assert confirm(home, WRONG).json()["code"] == "wrong_password"
    assert confirm(home, PASSWORD).is_success


# Guesses and registrations from one address


def test_an_address_guesses_fifty_times_whatever_the_account(limited: Service) -> None:
    """The guesses come at once. The limit holds for the owner's own address too."""
    home = new_address()
    email, _ = registered(limited, home)
    guesses = [login(home, email if own else new_email(), WRONG) for own in [True] * 20 + [False] * 50]
    assert statuses(together(limited, *guesses)) == {401: 50, 429: 20}
    for each in (email, new_email()):
        assert_limited(limited, sign_in(limited, home, each), "address")
    assert sign_in(limited, new_address(), email).status_code == 200


def test_an_address_registers_so_many_accounts(limited: Service) -> None:
    """The limit here is five an hour, and holds for concurrent registrations too."""
    headers = {"headers": {"X-Forwarded-For": new_address()}}
    requests = [
        ("POST", "/auth/register", {"json": {"email": new_email(), "password": PASSWORD}, **headers})
        for _ in range(12)
    ]
    responses = together(limited, *requests)
    assert statuses(responses) == {201: 5, 429: 7}
    for response in responses:
        if response.status_code == 429:
            assert_limited(limited, response, "register", seconds=3600)
    registered(limited, new_address())


# The definition of an address


@pytest.mark.parametrize(
    ("ip", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:201", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        *((ip, "unknown") for ip in (None, "", "proxy", "192.0.2.1, 192.0.2.2", "192.0.2", "\0", "x" * 9999)),
    ],
)
def test_an_address_is_an_ipv4_address_or_the_64_bits_of_a_site(ip: str | None, address: str) -> None:
    """RFC 6177: a site with one IPv6 address has 2^64 of them."""
    assert address_of(ip) == address


@pytest.mark.parametrize(
    ("home", "same", "other"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"),
        ("192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"),
        ("198.51.100.1:4711", "198.51.100.1:4712", "198.51.100.2:4711"),
        ("[2001:db8:5:6::1]:4711", "2001:db8:5:6::2", "2001:db8:5:7::1"),
        ("203.0.113.1", "192.0.2.99, 203.0.113.1, 127.0.0.1", "203.0.113.1, 203.0.113.2"),
    ],
)
def test_a_proxy_may_write_an_address_in_many_ways(
    limited: Service, home: str, same: str, other: str
) -> None:
    """A client's own entries stand to the left of the proxy's entry, and are ignored."""
    email, _ = registered(limited, home)
    attack(limited, email)
    assert sign_in(limited, same, email).status_code == 200
    assert_limited(limited, sign_in(limited, other, email), "account")


def test_whatever_is_no_address_is_one_address(limited: Service) -> None:
    garbage = ["unknown", "_hidden", "1.2.3", "<script>", "é\u00ff", "x" * 4000, "[::1", "' OR 1=1", "%0d%0a"]

    def guess(text: str) -> httpx2.Response:
        headers = [(b"X-Forwarded-For", text.encode("latin-1"))]
        body = {"email": new_email(), "password": WRONG}
        return limited.client().post("/auth/login", headers=headers, json=body)

    found = [guess(garbage[number % len(garbage)]).status_code for number in range(51)]
    assert found == [401] * 50 + [429]


def from_loopback(service: Service, address: str, forwarded_for: str) -> httpx2.Response:
    """Guess once from the address `address`, with a header that claims to be of a proxy."""
    client = service.client(
        transport=httpx2.HTTPTransport(local_address=address), headers={"X-Forwarded-For": forwarded_for}
    )
    return client.post("/auth/login", json={"email": new_email(), "password": WRONG})


@needs_loopback_addresses
def test_a_proxy_that_was_not_named_is_a_client(limited: Service) -> None:
    for address, ip in (("127.0.0.1", "192.0.2.77"), ("127.0.0.2", "127.0.0.2")):
        request_id = from_loopback(limited, address, "192.0.2.77").json()["request_id"]
        (line,) = limited.lines(event="auth.login_failed", request_id=request_id)
        assert line["ip"] == ip


@needs_loopback_addresses
def test_where_no_proxy_is_named_its_header_is_nothing_and_the_wait_is_as_told(
    new_service: Callable[..., Service],
) -> None:
    """The header is ignored from loopback too, although Uvicorn trusts loopback by default."""
    service = new_service(RATE_LIMIT_ENABLED="true", RATE_LIMIT_SIGNIN_ADDRESS="3 per 8 seconds")
    for _ in range(3):
        assert from_loopback(service, "127.0.0.1", new_address()).status_code == 401
    refused = from_loopback(service, "127.0.0.1", new_address())
    assert_limited(service, refused, "address", seconds=8)
    assert from_loopback(service, "127.0.0.2", new_address()).status_code == 401
    time.sleep(int(refused.headers["Retry-After"]))
    assert from_loopback(service, "127.0.0.1", new_address()).status_code == 401


# The settings


@pytest.fixture
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Removes all settings but the test's own."""
    for name in os.environ:
        if name.upper().startswith("RATE_LIMIT"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_own_environment")
def test_the_limits_are_by_default_those_of_the_contract() -> None:
    settings = load_settings()
    assert settings.rate_limit_enabled
    assert settings.rate_limit_storage_uri.get_secret_value() == "memory://"
    assert settings.rate_limit_signin_account == "10/minute"
    assert settings.rate_limit_signin_address == "50/minute"
    assert settings.rate_limit_register == "200/hour"


@pytest.mark.usefixtures("_own_environment")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RATE_LIMIT_ENABLED", "perhaps"),
        ("RATE_LIMIT_SIGNIN_ACCOUNT", "ten a minute"),
        ("RATE_LIMIT_SIGNIN_ACCOUNT", "10"),
        ("RATE_LIMIT_SIGNIN_ACCOUNT", "-1/minute"),
        ("RATE_LIMIT_SIGNIN_ACCOUNT", "0/minute"),
        ("RATE_LIMIT_SIGNIN_ADDRESS", "50/fortnight"),
        ("RATE_LIMIT_SIGNIN_ADDRESS", "50/minute;500/hour"),
        ("RATE_LIMIT_REGISTER", "1.5/hour"),
        ("RATE_LIMIT_REGISTER", "200/0 hours"),
        ("RATE_LIMIT_STORAGE_URI", "canary"),
        ("RATE_LIMIT_STORAGE_URI", "canary://:canary@localhost"),
        ("RATE_LIMIT_STORAGE_URI", "redis://:canary@localhost:port"),
        ("RATE_LIMIT_STORAGE_URI", "redis://:canary@localhost:65536"),
        ("RATE_LIMIT_STORAGE_URI", "async+redis://:canary@localhost"),
        ("RATE_LIMIT_STORAGE_URI", "memcached://localhost:11211"),
        ("RATE_LIMIT_STORAGE_URI", "REDIS://:canary@localhost"),
        ("RATE_LIMIT_STORAGE_URI", "redis://:canary@localhost?ssl_cert_reqs=none"),
        ("RATE_LIMIT_STORAGE_URI", "redis://:canary@localhost?socket_timeout=abc"),
        ("RATE_LIMIT_STORAGE_URI", "redis://:canary@localhost?db=first"),
        ("RATE_LIMIT_STORAGE_URI", "redis://:canary@localhost?protocol=5"),
        ("RATE_LIMIT_STORAGE_URI", "redis://:canary@localhost?retry=5"),
        ("RATE_LIMIT_STORAGE_URI", "redis://:canary@localhost?max_connections=-1"),
        ("RATE_LIMIT_STORAGE_URI", "redis://:canary@localhost:0"),
        ("RATE_LIMIT_STORAGE_URI", "rediss://:canary@localhost?sslmode=require"),
        ("RATE_LIMIT_STORAGE_URI", "rediss://:canary@localhost?ssl_cert_reqs=maybe"),
    ],
)
def test_a_wrong_limit_is_named_and_its_secret_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: ") as raised:
        load_settings()
    assert "canary" not in str(raised.value)


@pytest.mark.usefixtures("_own_environment")
@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://:canary@[::1]:6379/3?socket_timeout=0.5&health_check_interval=30",
        "rediss://ada:canary@redis.example.com:6380/0?ssl_cert_reqs=none",
    ],
)
def test_a_redis_url_has_the_options_of_its_client(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("RATE_LIMIT_STORAGE_URI", url)
    assert load_settings().rate_limit_storage_uri.get_secret_value() == url


def test_all_of_it_can_be_turned_off(service: Service, ada: Account) -> None:
    """The service that other tests share runs without the limits."""
    found = together(service, *(login(new_address(), ada.email, WRONG) for _ in range(60)))
    assert statuses(found) == {401: 60}
    assert sign_in(service, new_address(), ada.email).status_code == 200


# A Redis that several processes share


class Redis:
    """A Redis server on a port that stays the same while it comes and goes."""

    def __init__(self, directory: Path) -> None:
        self._program = programs.find("redis-server", hint="apt install redis-server, or brew install redis")
        self._directory = directory
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client = redis.Redis(port=self.port, socket_timeout=30)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", "."],
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.client.ping()
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "Redis did not start"
                time.sleep(0.05)
            else:
                return

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    @contextmanager
    def away(self, how: str) -> Iterator[None]:
        """Stop or suspend Redis for the length of the block."""
        if how == "hung":
            self.signal(signal.SIGSTOP)
        else:
            self.kill()
        try:
            yield
        finally:
            if how == "hung":
                self.signal(signal.SIGCONT)
            else:
                self.start()


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    try:
        server.start()
        yield server
    finally:
        server.kill()
        server.client.close()


@pytest.fixture(scope="module")
def replicas(
    redis_server: Redis, new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Service]]:
    """Two processes with one database and one Redis, and four guesses for an account."""
    directory, url = tmp_path_factory.mktemp("replicas"), new_database().url
    with ExitStack() as stack:

        def run(name: str) -> Service:
            return stack.enter_context(
                running(
                    directory / name,
                    DATABASE_URL=url,
                    JWT_SECRET=JWT_SECRET,
                    RATE_LIMIT_ENABLED="true",
                    RATE_LIMIT_SIGNIN_ACCOUNT="4/minute",
                    RATE_LIMIT_STORAGE_URI=redis_server.url,
                    FORWARDED_ALLOW_IPS="*",
                )
            )

        yield run("first"), run("second")


def shared_guesses(replicas: tuple[Service, Service]) -> list[int]:
    """Guess three times at each process in turn, at one account."""
    email = new_email()
    return [sign_in(service, new_address(), email, WRONG).status_code for service in replicas * 3]


def assert_shared_again(replicas: tuple[Service, Service]) -> None:
    """Assert that both processes share one count, once they ask Redis again after a timeout."""
    deadline = time.monotonic() + 30
    while (found := shared_guesses(replicas)) != [401] * 4 + [429] * 2:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


def storage_warnings(service: Service) -> int:
    return service.log.read_bytes().count(b"RATE_LIMIT_STORAGE_URI does not answer")


def test_processes_share_their_counts_and_no_emails(
    replicas: tuple[Service, Service], redis_server: Redis
) -> None:
    assert_shared_again(replicas)
    email, _ = registered(replicas[0], new_address())
    sign_in(replicas[0], new_address(), email, WRONG)
    assert sign_in(replicas[1], new_address(), email).status_code == 200
    keys = list(redis_server.client.scan_iter())
    assert len(keys) > 2
    stored = b"\n".join(keys + [redis_server.client.get(key) or b"" for key in keys]).lower()
    for part in (email, email.partition("@")[0], "example", "nobody"):
        assert part.encode() not in stored


def test_limits_that_are_off_ask_no_redis(redis_server: Redis, new_service: Callable[..., Service]) -> None:
    service = new_service(RATE_LIMIT_ENABLED="false", RATE_LIMIT_STORAGE_URI=redis_server.url)
    before = redis_server.client.info("stats")["total_connections_received"]
    assert sign_in(service, new_address(), service.register().email).status_code == 200
    assert redis_server.client.info("stats")["total_connections_received"] == before


def test_what_comes_at_once_is_counted_in_redis_too(replicas: tuple[Service, Service]) -> None:
    first, _ = replicas
    warnings = storage_warnings(first)
    email, _ = registered(first, new_address())
    wrong = together(first, *(login(new_address(), email, WRONG) for _ in range(30)))
    assert statuses(wrong) == {401: 4, 429: 26}
    email, _ = registered(first, new_address())
    assert statuses(together(first, *(login(new_address(), email) for _ in range(40)))) == {200: 40}
    assert storage_warnings(first) == warnings, "a Redis that answers was taken for dead"


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_a_redis_that_fails_stalls_nothing_and_is_shared_again_when_it_is_back(
    replicas: tuple[Service, Service], redis_server: Redis, how: str
) -> None:
    first, _ = replicas
    email, token = registered(first, new_address())
    assert_shared_again(replicas)
    with redis_server.away(how):
        signed_in = {"headers": {"Authorization": f"Bearer {token}"}}
        mixed = [login(new_address(), email) for _ in range(20)]
        mixed += [("GET", "/health", {}), ("GET", "/tasks", signed_in)] * 10
        responses = together(first, *mixed)
        assert statuses(responses) == {200: 40}
        assert max(response.elapsed.total_seconds() for response in responses) < 3
        # Meanwhile each process counts by itself.
        assert shared_guesses(replicas) == [401] * 6
        for _ in range(5):
            last = sign_in(first, new_address(), email, WRONG)
            assert last.elapsed.total_seconds() < 3
        assert_limited(first, last, "account")
    assert storage_warnings(first) > 0
    assert_shared_again(replicas)


def test_without_redis_from_the_start_each_process_counts_by_itself(
    new_service: Callable[..., Service],
) -> None:
    service = new_service(
        RATE_LIMIT_ENABLED="true",
        RATE_LIMIT_STORAGE_URI=f"redis://:{WRONG.replace(' ', '')}@127.0.0.1:{free_port()}",
        FORWARDED_ALLOW_IPS="*",
    )
    home = new_address()
    email, _ = registered(service, home)
    attack(service, email)
    assert_limited(service, sign_in(service, new_address(), email), "account")
    assert sign_in(service, home, email).status_code == 200
    assert storage_warnings(service) > 0
    assert WRONG.replace(" ", "") not in service.log.read_text()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:canary@127.0.0.1:{port}?encoding=nonsense",
        "redis://:canary@127.0.0.1:{port}?redis_connect_func=nonsense",
        "rediss://:canary@127.0.0.1:{port}",
        "rediss://:canary@127.0.0.1:{port}?ssl_ca_certs=/nowhere",
    ],
)
def test_an_option_that_fails_later_fails_no_sign_in(
    new_service: Callable[..., Service], redis_server: Redis, url: str
) -> None:
    service = new_service(
        RATE_LIMIT_ENABLED="true",
        RATE_LIMIT_STORAGE_URI=url.format(port=redis_server.port),
        FORWARDED_ALLOW_IPS="*",
    )
    email, _ = registered(service, new_address())
    attack(service, email)
    assert_limited(service, sign_in(service, new_address(), email), "account")
    assert storage_warnings(service) > 0
    assert service.lines(level="ERROR") == []
    assert "canary" not in service.log.read_text()
