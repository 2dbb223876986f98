"""A node of a real cluster is frozen: its users are refused in time, and everybody else is served."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from httpx2 import codes

from tests.conftest import Postgres
from tests.database import citus
from tests.operations.proxy import Proxy
from tests.service import Account, Service
from tests.waiting import until

POOL_SIZE = 5


@pytest.fixture
def frozen() -> Iterator[tuple[Postgres, Proxy, list[int]]]:
    """A database over the nodes of a cluster, the last of them behind a proxy; and the ports of the nodes.

    The coordinator has to reach the proxy, which listens on 127.0.0.1, so the cluster runs on this machine.
    """
    with citus.cluster() as cluster:
        proxy = Proxy(cluster.workers[-1])
        try:
            cluster.workers[-1] = ("127.0.0.1", proxy.port)
            yield Postgres(cluster.create("test_nodes")), proxy, [port for _, port in cluster.workers]
        finally:
            proxy.heal()
            cluster.drop()
            proxy.close()


def accounts(service: Service, database: Postgres, port: int, number: int) -> list[Account]:
    """Register users until so many are on the node of that port."""
    found: list[Account] = []
    while len(found) < number:
        account = service.register()
        (row,) = database.sql(
            "SELECT nodeport FROM pg_dist_placement JOIN pg_dist_node USING (groupid) "
            "WHERE shardid = get_shard_id_for_distribution_column('users', $1::text)",
            account.id,
        )
        if row["nodeport"] == port:
            found.append(account)
    return found


@pytest.mark.cluster
def test_while_a_node_of_a_cluster_is_frozen_the_users_of_others_are_served(
    frozen: tuple[Postgres, Proxy, list[int]], new_service: Callable[..., Service]
) -> None:
    database, proxy, ports = frozen
    service = new_service(
        DATABASE_URL=database.url, DATABASE_POOL_SIZE=str(POOL_SIZE), DATABASE_TIMEOUT_SECONDS="2"
    )
    (other,) = accounts(service, database, ports[0], 1)
    (away,) = accounts(service, database, ports[-1], 1)
    kept = away.create()
    proxy.fall_silent()
    with ThreadPoolExecutor(4 * POOL_SIZE) as threads:
        asked = [threads.submit(away.client.get, "/tasks") for _ in range(4 * POOL_SIZE)]
        for _ in range(10):
            other.create()
        assert not any(answer.done() for answer in asked)
        assert {answer.result().status_code for answer in asked} == {codes.SERVICE_UNAVAILABLE}
    event = f"DATABASE_URL: the node 127.0.0.1:{ports[-1]} is away; its users are refused"
    until(lambda: service.lines(level="WARNING", event=event))
    assert away.client.get(f"/api/{away.id}/tasks").status_code == codes.INTERNAL_SERVER_ERROR
    assert other.client.get(f"/tasks/{2**50}").status_code == codes.NOT_FOUND
    assert len(other.client.get("/tasks").json()) == 10
    proxy.heal()
    until(lambda: away.client.get("/tasks").status_code == codes.OK)
    assert away.client.get("/tasks").json() == [kept]
