"""A primary and its streaming standby on TCP, whose commits wait for each other; either can be lost."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from backend.database.embedded import (
    EmbeddedServer,
    binaries,
    embedded_server,
    find_server,
    private_directory,
)
from tests.conftest import Postgres
from tests.programs import passable_directory
from tests.service import free_port
from tests.waiting import until

_HBA = "local all all trust\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n"
_LIMIT_SECONDS = 30.0


@dataclass(frozen=True)
class Node:
    """One of the two servers."""

    server: EmbeddedServer
    port: int

    def database(self, name: str = "tasks") -> Postgres:
        """Return a database of this node, independent of the other node."""
        return Postgres(f"postgresql://postgres@127.0.0.1:{self.port}/{name}?sslmode=disable")

    def kill(self) -> None:
        """End the server as a power cut does."""
        self._signal(signal.SIGKILL)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Suspend the server for the length of the block."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        postmaster = psutil.Process(self.server.pid)
        for process in (postmaster, *postmaster.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def promote(self) -> None:
        """Make the standby a primary; returns when it is one."""
        assert self.database("postgres").sql("SELECT pg_promote()") == [{"pg_promote": True}]


@dataclass(frozen=True)
class Cluster:
    """Two nodes with one database, `tasks`; nothing is committed that the standby has not."""

    primary: Node
    standby: Node

    def url(self, *ports: int, **parameters: str) -> str:
        """Return a URL of these ports, by default of the primary's and the standby's, in this order."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports or (self.primary.port, self.standby.port))
        query = "".join(f"&{name}={value}" for name, value in parameters.items())
        return f"postgresql://postgres@{hosts}/tasks?sslmode=disable{query}"


@contextmanager
def replicated() -> Iterator[Cluster]:
    """Run a primary and a standby that are synchronous."""
    with (
        passable_directory(prefix="primary-") as first,
        passable_directory(prefix="standby-") as second,
        _node(first) as primary,
    ):
        _copy(primary, second)
        with _node(second) as standby:
            cluster = Cluster(primary, standby)
            _synchronise(cluster)
            yield cluster


@contextmanager
def _node(directory: Path) -> Iterator[Node]:
    port, access = free_port(), directory / "pg_hba.conf"
    access.write_text(_HBA)
    access.chmod(0o644)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "hba_file": str(access),
        "fsync": "off",  # what is killed here is processes, not the machine
        "synchronous_commit": "on",
    }
    with embedded_server(directory, settings) as server:
        yield Node(server, port)


def _copy(primary: Node, directory: Path) -> None:
    """Make the files of a standby where `embedded_server` will find them."""
    server = find_server(directory)
    source = f"host=127.0.0.1 port={primary.port} user=postgres application_name=standby"
    options = ("--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname", source)
    with private_directory(server.home, server.uid, server.gid):
        subprocess.run(
            [binaries() / "pg_basebackup", "--pgdata", server.data_dir, *options],
            check=True,
            capture_output=True,
            cwd="/",
            **server.as_owner,
        )


def _synchronise(cluster: Cluster) -> None:
    """Make commits on the primary wait for the standby.

    The standby lacks the setting, because it must be able to go on alone.
    """
    database = cluster.primary.database("postgres")
    database.sql("CREATE DATABASE tasks")
    database.sql("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
    database.sql("SELECT pg_reload_conf()")
    states = "SELECT sync_state FROM pg_stat_replication"
    until(lambda: database.sql(states) == [{"sync_state": "sync"}])
    until(lambda: _has_tasks(cluster.standby))


def _has_tasks(node: Node) -> bool:
    found = node.database("postgres").sql("SELECT 1 FROM pg_database WHERE datname = 'tasks'")
    return found != []
