"""Probes and metrics: `/health` asks no database, `/metrics` can be closed, no label holds personal data."""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from backend.settings import SettingsError, load_settings
from backend.telemetry import metrics
from tests.better_auth.jwks import new_key, token_server
from tests.conftest import Postgres, locked
from tests.programs import needs_own_server
from tests.service import JWT_SECRET, PASSWORD, Account, Service, free_port, running
from tests.waiting import until

Series = tuple[str, ...]


def connections(server: Postgres, name: str) -> int:
    (row,) = server.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'", name
    )
    return int(row["count"])


def requests(service: Service) -> Counter[Series]:
    """Read the count of each method, route and status."""
    families = text_string_to_metric_families(service.client().get("/metrics").text)
    return Counter(
        {
            (sample.labels["method"], sample.labels["route"], sample.labels["status"]): int(sample.value)
            for family in families
            for sample in family.samples
            if sample.name == "http_requests_total"
        }
    )


@pytest.fixture
def counted(service: Service) -> Callable[[], Counter[Series]]:
    """Return the counts since the start of the test, without the reading itself."""
    before = requests(service)

    def since() -> Counter[Series]:
        return requests(service) - before - Counter({("GET", "/metrics", "200"): 1})

    return since


@needs_own_server
def test_health_sends_nothing_to_the_database_and_ready_does(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    server, database = new_database(), new_database()
    name = database.sql("SELECT current_database()::text")[0]["current_database"]
    client = new_service(DATABASE_URL=database.url, MAIL_URL="").client()
    answers = {client.get("/health").text for _ in range(10)}
    assert answers == {'{"status":"ok"}'}
    until(lambda: connections(server, name) == 0)  # the start's own may end a moment later
    assert client.get("/health/ready").text == '{"status":"ok"}'
    assert connections(server, name) == 1


def test_without_its_database_the_process_is_alive_but_not_ready_until_it_is_back(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    """It recovers without a restart."""
    server, database = new_database(), new_database()
    name = database.sql("SELECT current_database()::text")[0]["current_database"]
    client = new_service(DATABASE_URL=database.url).client()
    assert client.get("/health/ready").status_code == 200

    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    server.sql(f"ALTER DATABASE {name} RENAME TO {name}_away")
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert client.get("/health").status_code == 200

    server.sql(f"ALTER DATABASE {name}_away RENAME TO {name}")
    assert client.get("/health/ready").status_code == 200


def test_metrics_are_prometheus_text(service: Service) -> None:
    answer = service.client().get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert {"http_requests", "http_request_duration_seconds"} <= {
        family.name for family in text_string_to_metric_families(answer.text)
    }


SCRAPER = "dGhlIHNjcmFwZXI="
NOT_THE_SCRAPER = {
    "no token": (None, "not_authenticated", "missing"),
    "the token without its scheme": (SCRAPER, "not_authenticated", "malformed"),
    "Basic": (f"Basic {SCRAPER}", "not_authenticated", "malformed"),
    "another token": ("Bearer another", "invalid_token", "metrics_token"),
    "the beginning": (f"Bearer {SCRAPER[:-1]}", "invalid_token", "metrics_token"),
    "more": (f"Bearer {SCRAPER}=", "invalid_token", "metrics_token"),
    "another letter case": (f"Bearer {SCRAPER.swapcase()}", "invalid_token", "metrics_token"),
}


@pytest.fixture(scope="module")
def closed(
    new_database: Callable[[], Postgres], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service whose metrics need a token, which stands in a file."""
    place = tmp_path_factory.mktemp("closed")
    (place / "token").write_text(f"{SCRAPER}\n")
    settings = {"DATABASE_URL": new_database().url, "JWT_SECRET": JWT_SECRET}
    with running(place / "log", METRICS_TOKEN_FILE=str(place / "token"), **settings) as service:
        yield service


def scrape(service: Service, authorization: str | None) -> httpx2.Response:
    """Get metrics by a plain client, because the service's clients record responses for the OpenAPI tests."""
    headers = {"Authorization": authorization} if authorization else {}
    return httpx2.get(f"{service.url}/metrics", headers=headers, trust_env=False, verify=False)


@pytest.mark.parametrize("case", NOT_THE_SCRAPER)
def test_metrics_with_a_token_are_for_those_who_send_it(closed: Service, case: str) -> None:
    authorization, code, reason = NOT_THE_SCRAPER[case]
    answer = scrape(closed, authorization)
    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert set(answer.json()) == {"status_code", "detail", "code", "request_id"}
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "http_requests" not in answer.text
    (line,) = closed.lines(event="auth.denied", request_id=answer.headers["X-Request-ID"])
    assert line["reason"] == reason


def test_a_user_is_no_scraper_and_the_scraper_no_user(closed: Service) -> None:
    account = closed.register()
    assert scrape(closed, account.client.headers["Authorization"]).status_code == 401
    assert closed.client(SCRAPER).get("/tasks").status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_the_metrics_token_opens_them_and_probes_need_none(closed: Service, scheme: str) -> None:
    answer = scrape(closed, f"{scheme} {SCRAPER}")
    assert (answer.status_code, "http_requests_total" in answer.text) == (200, True)
    assert closed.client().get("/health/ready").status_code == 200


@pytest.mark.parametrize("token", ["with a space", "ümlaut", "=", "a\tb"])
def test_a_metrics_token_that_no_header_can_hold_stops_the_start(token: str) -> None:
    """RFC 6750 section 2.1."""
    with pytest.raises(SettingsError, match=r"^METRICS_TOKEN: [^\n]+$"):
        load_settings(metrics_token=token)


def test_requests_are_counted_by_route_template(ada: Account, counted: Callable[[], Counter[Series]]) -> None:
    for number in (1, 2):
        task = ada.create(f"Task {number}")
        ada.client.get(f"/tasks/{task['id']}")
        ada.client.head(f"/tasks/{task['id']}")
    ada.client.get("/tasks", params={"status": "pending"})
    ada.client.delete("/tasks/9223372036854775807")
    assert counted() == {
        ("POST", "/tasks", "201"): 2,
        ("GET", "/tasks/{task_id}", "200"): 2,
        ("HEAD", "/tasks/{task_id}", "200"): 2,
        ("GET", "/tasks", "200"): 1,
        ("DELETE", "/tasks/{task_id}", "404"): 1,
    }


def test_the_duration_of_each_request_is_observed(service: Service, ada: Account) -> None:
    def observed() -> float:
        wanted = 'http_request_duration_seconds_count{method="GET",route="/auth/me"}'
        lines = service.client().get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted))

    before = observed()
    ada.client.get("/auth/me")
    assert observed() == before + 1


def test_each_route_has_one_histogram_and_nothing_tells_when_counting_began(
    service: Service, ada: Account
) -> None:
    """The histogram has no status label, because each status would add fifteen series. The counter has it."""
    ada.create()
    ada.client.post("/tasks", json={})
    families = {
        family.name: family
        for family in text_string_to_metric_families(service.client().get("/metrics").text)
    }
    durations = families["http_request_duration_seconds"].samples
    labels = [sample.labels for sample in durations if sample.name.endswith("_count")]
    assert all(set(each) == {"method", "route"} for each in labels)
    assert labels.count({"method": "POST", "route": "/tasks"}) == 1
    assert [name for name in families if name.endswith("_created")] == []


def test_the_text_is_not_written_on_the_event_loop() -> None:
    """Other coroutines run while the page is written, even with a thousand sets of labels."""
    for number in range(1000):
        metrics.observe("GET", f"/of-this-test/{number}", 200, 0.1)

    async def turns_during(work: Awaitable[object]) -> int:
        task, turns = asyncio.ensure_future(work), 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    try:
        assert asyncio.run(turns_during(metrics.exposition())) > 10
    finally:
        metrics.REQUESTS.clear()
        metrics.DURATION.clear()
        metrics._of.cache_clear()


def test_what_matches_no_route_makes_no_labels_of_its_own(
    service: Service, counted: Callable[[], Counter[Series]]
) -> None:
    client = service.client()
    for number, method in enumerate(("PROPFIND", "MKCOL", "REPORT")):
        client.get(f"/nothing/{number}")
        client.get(f"/tasks/{number}/")
        client.request(method, "/health")
        client.get(f"/docs/assets/{number}.js")
    found = counted()
    assert sum(found.values()) == 12
    assert len(found) <= 4
    assert found["GET", "unmatched", "404"] >= 6
    assert {method for method, _, _ in found} == {"GET", "other"}


def value(service: Service, name: str, **labels: str) -> float:
    """Read one series as Prometheus does; 0 where it is not there yet."""
    families = text_string_to_metric_families(service.client().get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if sample.labels.items() >= labels.items())


def test_sign_ins_are_counted_by_how_they_end(new_service: Callable[..., Service]) -> None:
    service = new_service(RATE_LIMIT_ENABLED="true", RATE_LIMIT_SIGNIN_ADDRESS="2/minute")
    ada, client = service.register(), service.client()
    right, wrong = ({"email": ada.email, "password": password} for password in (PASSWORD, "not the password"))
    for attempt in (right, wrong, wrong, right):
        client.post("/auth/login", json=attempt)
    client.post("/auth/token", data={"username": "nobody", "password": "nothing"})
    outcomes = ("succeeded", "invalid_credentials", "rate_limited", "invalid_grant")
    counted = [value(service, "sign_ins_total", outcome=outcome) for outcome in outcomes]
    assert counted == [1, 2, 1, 1]


def test_fetches_of_keys_are_counted_by_how_they_end(new_service: Callable[..., Service]) -> None:
    with token_server() as tokens:
        service = new_service(BETTER_AUTH_URL=tokens.url)
        key = new_key()
        tokens.publish(key)
        assert service.client(tokens.token(key, "somebody")).get("/tasks").status_code == 200
        assert value(service, "jwks_fetches_total", outcome="succeeded") == 1
    away = new_service(BETTER_AUTH_URL=f"http://127.0.0.1:{free_port()}")
    assert away.client(tokens.token(key, "somebody")).get("/tasks").status_code == 503
    assert value(away, "jwks_fetches_total", outcome="failed") == 1


@needs_own_server
def test_connections_in_use_and_waiting_requests_are_told(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    database = new_database()
    service = new_service(DATABASE_URL=database.url, DATABASE_POOL_SIZE="2", DATABASE_TIMEOUT_SECONDS="30")
    ada = service.register()
    task = ada.create()
    with ThreadPoolExecutor() as threads:
        with locked(database, task["id"]):
            for _ in range(5):
                threads.submit(ada.client.patch, f"/tasks/{task['id']}/complete")
            until(lambda: value(service, "database_requests_waiting") == 3)
            assert value(service, "database_connections_in_use") == 2
            assert value(service, "http_requests_under_way") == 6
        until(lambda: value(service, "database_connections_in_use") == 0)
    assert value(service, "database_requests_waiting") == 0


def test_passwords_that_wait_to_be_hashed_are_told(new_service: Callable[..., Service]) -> None:
    service = new_service(BCRYPT_ROUNDS="11")
    attempt = {"email": "nobody@example.com", "password": "nothing at all"}
    with ThreadPoolExecutor(8) as threads:
        for _ in range(8):
            threads.submit(httpx2.post, f"{service.url}/auth/login", json=attempt, timeout=60)
        until(lambda: value(service, "password_hashes_waiting") >= 3)
    assert value(service, "password_hashes_waiting") == 0


def test_several_workers_count_as_one_also_after_one_died(new_service: Callable[..., Service]) -> None:
    service = new_service(WORKERS="2")
    supervisor = psutil.Process(service.process.pid)
    workers = [child for child in supervisor.children() if "spawn_main" in " ".join(child.cmdline())]
    counted = {"route": "/health", "status": "200"}
    before = value(service, "http_requests_total", **counted)
    for _ in range(40):  # each on a connection of its own, which either may take
        httpx2.get(f"{service.url}/health", trust_env=False, verify=False, timeout=30)
    assert value(service, "http_requests_total", **counted) == before + 40
    workers[0].kill()
    workers[0].wait()
    until(lambda: value(service, "http_requests_total", **counted) >= before + 40)
    assert value(service, "http_requests_under_way") <= 2
    directory = Path(workers[1].environ()["PROMETHEUS_MULTIPROC_DIR"])
    service.stop()
    assert not directory.exists()


def test_no_label_tells_of_a_person(service: Service, ada: Account) -> None:
    task = ada.create("A title of hers")
    ada.client.get(f"/tasks/{task['id']}")
    service.client().post("/auth/login", json={"email": ada.email, "password": "not the password"})
    text = service.client().get("/metrics").text
    assert [word for word in (ada.id, ada.email, "127.0.0.1", "A title of hers") if word in text] == []
    assert not re.search(rf"/tasks/{task['id']}\b", text)
