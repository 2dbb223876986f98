"""The service follows a failover of its database without a restart, and loses no acknowledged write."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from threading import Thread

import pytest

from tests.operations.replication import Cluster, replicated
from tests.operations.writers import Writer, check_books, wait_for_writes, writing
from tests.service import JWT_SECRET, Service, running
from tests.waiting import until

POOL_SIZE, WRITERS, TASKS_EACH_TIME = 4, 6, 5
DECISION_SECONDS = 2.0
"""The time that a failover tool takes to give up on a silent primary; real ones take longer."""
RECOVERY_SECONDS = 10.0
"""Half of it is for a machine that runs other tests as well."""


class Line:
    """A proxy to a server that can fall silent: requests arrive, but no response comes back."""

    def __init__(self, target: int) -> None:
        self._target, self._is_silent = target, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends = [self._listener]
        self.port: int = self._listener.getsockname()[1]
        self._accepting = Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client = self._listener.accept()[0]
                self._ends.append(client)
                server = socket.create_connection(("127.0.0.1", self._target))
                self._ends.append(server)
                Thread(target=self._forward, args=(client, server), daemon=True).start()
                Thread(target=self._forward, args=(server, client), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self._is_silent or target.getpeername()[1] == self._target:
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def fall_silent(self) -> None:
        self._is_silent = True

    def close(self) -> None:
        with suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with replicated() as nodes:
        yield nodes


@pytest.fixture
def line(cluster: Cluster) -> Iterator[Line]:
    """The proxy before the primary. The standby has none."""
    opened = Line(cluster.primary.port)
    yield opened
    opened.close()


def serving(log: Path, url: str) -> AbstractContextManager[Service]:
    """Return a service with fewer connections than there are writers."""
    return running(log, DATABASE_URL=url, JWT_SECRET=JWT_SECRET, DATABASE_POOL_SIZE=str(POOL_SIZE))


def check_that_the_standby_is_waited_for(writers: list[Writer], cluster: Cluster) -> None:
    """Assert that no write is acknowledged while the standby is stopped."""
    with cluster.standby.hung():
        # Writes that the standby already has may still be acknowledged. The others time out later than this.
        until(lambda: not any(writer.wrote_since(time.monotonic() - 1) for writer in writers))


def follow(cluster: Cluster, lose: Callable[[], None], log: Path, line: Line) -> None:
    """Lose the primary during writes, promote the standby, and check the writes."""
    url = cluster.url(line.port, cluster.standby.port, target_session_attrs="read-write")
    with serving(log, url) as service:
        with writing([service.register() for _ in range(WRITERS)]) as writers:
            wait_for_writes(writers, TASKS_EACH_TIME)
            check_that_the_standby_is_waited_for(writers, cluster)
            lose()
            cluster.standby.promote()
            promoted = time.monotonic()
            wait_for_writes(writers, TASKS_EACH_TIME, since=promoted)
        seconds = max(min(writer.wrote_since(promoted)) for writer in writers) - promoted
        assert seconds < RECOVERY_SECONDS
        assert service.process.poll() is None
    assert {status for writer in writers for status in writer.refusals} == {503}
    check_books(writers, cluster.standby.database())


def test_a_killed_primary_is_left_for_the_promoted_standby(
    cluster: Cluster, line: Line, tmp_path: Path
) -> None:
    """Its last responses are lost and the next primary is there at once, so a write sent twice would show."""

    def kill() -> None:
        line.fall_silent()
        time.sleep(0.2)
        cluster.primary.kill()
        line.close()

    follow(cluster, kill, tmp_path / "log", line)


def test_a_silent_primary_is_left_for_the_promoted_standby(
    cluster: Cluster, line: Line, tmp_path: Path
) -> None:
    """The old primary runs on and receives requests."""

    def fall_silent() -> None:
        line.fall_silent()
        time.sleep(DECISION_SECONDS)

    follow(cluster, fall_silent, tmp_path / "log", line)


def test_a_primary_that_turns_read_only_is_left_with_all_its_connections(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Managed services hand over like that: the old primary still answers, on open connections too."""
    url = cluster.url(target_session_attrs="read-write")
    with serving(tmp_path / "log", url) as service:
        with writing([service.register() for _ in range(WRITERS)]) as writers:
            wait_for_writes(writers, TASKS_EACH_TIME)
        old = cluster.primary.database("postgres")
        old.sql("ALTER SYSTEM SET default_transaction_read_only = on")
        old.sql("SELECT pg_reload_conf()")
        setting = "SELECT current_setting('default_transaction_read_only') AS it"
        until(lambda: old.sql(setting) == [{"it": "on"}])
        cluster.standby.promote()
        for number in range(WRITERS):
            writers[0].account.create(f"Task {number}")
