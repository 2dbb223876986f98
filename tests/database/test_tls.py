"""The service on a PostgreSQL that requires TLS and a password, as Neon's does."""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from tests.certificates import make_certificates
from tests.conftest import Postgres
from tests.programs import find, unprivileged
from tests.service import JWT_SECRET, Finished, Service, command, free_port

USER, ROLE_PASSWORD = "neondb_owner", "npg_A1b2C3"
HBA = "local all postgres trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n"


class Secured:
    """A PostgreSQL on TCP of localhost, for TLS and a password alone; the embedded one has no TLS."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        make_certificates(directory)
        self.authority = directory / "authority.pem"
        self.inside = Postgres(f"postgresql://postgres@/postgres?host={directory}&port={self.port}")

    def url(self, query: str, host: str = "localhost", password: str = ROLE_PASSWORD) -> str:
        """Return a URL as Neon's console writes it."""
        return f"postgresql://{USER}:{password}@{host}:{self.port}/neondb?{query}"

    def start(self) -> "subprocess.Popen[bytes]":
        (self.directory / "hba.conf").write_text(HBA)
        owner = unprivileged(self.directory)
        files = ["--pgdata", "data", "--username", "postgres", "--auth", "trust", "--no-sync"]
        subprocess.run(
            [_program("initdb"), *files], cwd=self.directory, check=True, stdout=subprocess.DEVNULL, **owner
        )
        settings = {
            "port": self.port,
            "unix_socket_directories": self.directory,
            "hba_file": self.directory / "hba.conf",
            "ssl": "on",
            "ssl_cert_file": self.directory / "server.pem",
            "ssl_key_file": self.directory / "server.key",
            "fsync": "off",
        }
        flags = [f"--{name}={value}" for name, value in settings.items()]
        with (self.directory / "log").open("wb") as log:
            return subprocess.Popen(
                [_program("postgres"), "-D", "data", *flags], cwd=self.directory, stderr=log, **owner
            )

    @contextmanager
    def showing(self, certificates: Path) -> Iterator[None]:
        """Present other certificates for the length of the block, and close all connections."""
        names = ("server.pem", "server.key")
        own = {name: (self.directory / name).read_bytes() for name in names}
        self._show({name: (certificates / name).read_bytes() for name in names})
        yield
        self._show(own)

    def _show(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            (self.directory / name).write_bytes(content)
        self.inside.sql("SELECT pg_reload_conf()")
        self.inside.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", USER)

    def prepare(self) -> None:
        """Wait until the server answers, and create the role and the database as Neon does."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(OSError, asyncpg.CannotConnectNowError):
                self.inside.sql(f"CREATE ROLE {USER} LOGIN PASSWORD '{ROLE_PASSWORD}'")
                self.inside.sql(f"CREATE DATABASE neondb OWNER {USER}")
                return
            time.sleep(0.05)
        raise AssertionError((self.directory / "log").read_text())


def _program(name: str) -> str:
    """Find a program of PostgreSQL, which Debian keeps outside of PATH."""
    of_debian = sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")))
    return find(name, *of_debian, hint="apt install postgresql, or brew install postgresql")


@contextmanager
def ending(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    # Not in pytest's own directory, which it closes to the user that root's server runs as.
    with tempfile.TemporaryDirectory(prefix="tls-") as directory:
        Path(directory).chmod(0o755)  # the authority's certificate is for all
        server = Secured(Path(directory))
        with ending(server.start()):
            server.prepare()
            yield server


def migrate(**settings: str) -> Finished:
    return command("migrate", JWT_SECRET=JWT_SECRET, **settings)


def works(service: Service, secured: Secured) -> None:
    """Assert that the service works without a warning, on encrypted connections."""
    ada = service.register()
    task = ada.create()
    assert ada.client.get("/tasks").json() == [task]
    assert service.lines(level="WARNING") == []
    used = secured.inside.sql(
        "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = $1", USER
    )
    assert used == [{"ssl": True}]


def test_a_url_as_neon_s_console_writes_it_works_verbatim(
    secured: Secured, new_service: Callable[..., Service]
) -> None:
    works(new_service(DATABASE_URL=secured.url("sslmode=require&channel_binding=require")), secured)


def test_an_authority_of_the_system_is_enough_for_verify_full(
    secured: Secured, new_service: Callable[..., Service]
) -> None:
    url = secured.url("sslmode=verify-full&channel_binding=require")
    # OpenSSL's own way to name the system's roots.
    works(new_service(DATABASE_URL=url, SSL_CERT_FILE=str(secured.authority)), secured)


def test_each_connection_is_verified_and_an_impostor_is_an_unreachable_database(
    secured: Secured, new_service: Callable[..., Service], tmp_path: Path
) -> None:
    url = secured.url(f"sslmode=verify-full&sslrootcert={secured.authority}")
    service = new_service(DATABASE_URL=url)
    works(service, secured)
    with secured.showing(make_certificates(tmp_path)):
        answer = service.client().get("/health/ready")
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    works(service, secured)


@pytest.mark.parametrize(
    ("query", "host", "password", "reason"),
    [
        ("sslmode=verify-full", "localhost", ROLE_PASSWORD, "its certificate is not trusted: "),
        (
            "sslmode=verify-full&sslrootcert={authority}",
            "127.0.0.1",
            ROLE_PASSWORD,
            "its certificate is not trusted: IP address mismatch, certificate is not valid for '127.0.0.1'",
        ),
        ("sslmode=require", "localhost", "npg_stolen", f'password authentication failed for user "{USER}"'),
    ],
    ids=["an unknown authority", "another name", "a wrong password"],
)
def test_what_is_not_right_is_one_line_without_the_password(
    secured: Secured, query: str, host: str, password: str, reason: str
) -> None:
    done = migrate(DATABASE_URL=secured.url(query.format(authority=secured.authority), host, password))
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("tasks-api: DATABASE_URL: the database cannot be reached: ")
    assert reason in line
    assert password not in line
