"""The probes and the metrics: `/health` leaves the database alone, and no label tells of a person."""

import re
from collections import Counter
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Postgres
from tests.service import Account, Service

Series = tuple[str, ...]


def connections(server: Postgres, name: str) -> int:
    (row,) = server.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", name)
    return int(row["count"])


def requests(service: Service) -> Counter[Series]:
    """Read how often each method, route and status was counted."""
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
    """Tell what was counted since the start of the test, but for the reading itself."""
    before = requests(service)

    def since() -> Counter[Series]:
        return requests(service) - before - Counter({("GET", "/metrics", "200"): 1})

    return since


def test_health_sends_nothing_to_the_database_and_ready_does(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    server, database = new_database(), new_database()
    name = database.sql("SELECT current_database()::text")[0]["current_database"]
    client = new_service(DATABASE_URL=database.url).client()
    answers = {client.get("/health").text for _ in range(10)}
    assert answers == {'{"status":"ok"}'}
    assert connections(server, name) == 0
    assert client.get("/health/ready").text == '{"status":"ok"}'
    assert connections(server, name) == 1


def test_without_its_database_the_process_is_alive_but_not_ready_until_it_is_back(
    new_service: Callable[..., Service], new_database: Callable[[], Postgres]
) -> None:
    """R0-FR-012, R4-FR-018: it recovers without a restart."""
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


def test_no_label_tells_of_a_person(service: Service, ada: Account) -> None:
    task = ada.create("A title of hers")
    ada.client.get(f"/tasks/{task['id']}")
    service.client().post("/auth/login", json={"email": ada.email, "password": "not the password"})
    text = service.client().get("/metrics").text
    assert [word for word in (ada.id, ada.email, "127.0.0.1", "A title of hers") if word in text] == []
    assert not re.search(rf"/tasks/{task['id']}\b", text)
