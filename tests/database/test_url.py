"""DATABASE_URL as libpq documents it, on asyncpg and on servers with and without TLS."""

import asyncio
import os
import pwd
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.database.connection import OPTIONS
from backend.database.embedded import EmbeddedServer, embedded_server
from backend.database.url import DatabaseURLError, connect_arguments
from tests.certificates import make_certificates
from tests.programs import passable_directory

NEON = (
    "postgresql://neondb_owner:npg_A1b2C3@ep-cool-darkness-a1b2c3d4-pooler.us-east-2.aws.neon.tech/neondb"
    "?sslmode=require&channel_binding=require"
)
ME = pwd.getpwuid(os.geteuid()).pw_name


def refusal(url: str) -> str:
    with pytest.raises(DatabaseURLError) as refused:
        connect_arguments(url)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_neon_s_own_words_are_understood() -> None:
    arguments = connect_arguments(NEON)
    context = arguments.pop("ssl")
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    assert arguments == {
        "host": ["ep-cool-darkness-a1b2c3d4-pooler.us-east-2.aws.neon.tech"],
        "port": [5432],
        "user": "neondb_owner",
        "password": "npg_A1b2C3",
        "database": "neondb",
        "direct_tls": False,
        "target_session_attrs": "any",
        "server_settings": {},
        "statement_cache_size": 0,
        "timeout": None,
        "passfile": None,
    }


@pytest.mark.parametrize(
    "scheme",
    ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2", "POSTGRES"],
)
def test_every_spelling_of_the_scheme_means_the_same(scheme: str) -> None:
    assert connect_arguments(f"{scheme}://u:p@h:1/d") == connect_arguments("postgresql://u:p@h:1/d")


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql://h", ["h"], [5432]),
        ("postgresql://h:7", ["h"], [7]),
        ("postgresql://h:", ["h"], [5432]),
        ("postgresql://h1:1,h2:2,h3/d", ["h1", "h2", "h3"], [1, 2, 5432]),
        ("postgresql://h1,h2/d?port=9", ["h1", "h2"], [9, 9]),
        ("postgresql:///d?host=h1:8,h2:9", ["h1", "h2"], [8, 9]),
        ("postgresql://localhost/d?host=/cloudsql/a:b:c", ["/cloudsql/a:b:c"], [5432]),
        ("postgresql://h1:8/d?host=h2", ["h2"], [8]),
        ("postgresql://h1:8/d?host=/run&port=9", ["/run"], [9]),
        ("postgresql+asyncpg:///d?host=h1:8&host=h2:9", ["h1", "h2"], [8, 9]),
        ("postgresql://[::1]:7,[fe80::1%25eth0]/d", ["::1", "fe80::1%eth0"], [7, 5432]),
        ("postgresql:///d?host=/run/my%20server", ["/run/my server"], [5432]),
        ("postgresql:///d?host=/with:colon/%2525&port=7", ["/with:colon/%25"], [7]),
        ("postgresql://%2Frun%2Fpg:7/d", ["/run/pg"], [7]),
        ("postgresql://%2Frun%2Fpg,h:7/d", ["/run/pg", "h"], [5432, 7]),
        ("postgresql:///d", ["/run/postgresql", "/tmp", "localhost"], [5432, 5432, 5432]),  # noqa: S108
    ],
)
def test_hosts_and_ports_are_where_libpq_finds_them(url: str, hosts: list[str], ports: list[int]) -> None:
    arguments = connect_arguments(url)
    assert (arguments["host"], arguments["port"]) == (hosts, ports)


@pytest.mark.parametrize(
    ("url", "user", "database"),
    [
        ("postgresql://h", ME, ME),
        ("postgresql://u@h", "u", "u"),
        ("postgresql://u@h/", "u", "u"),
        ("postgresql://u:p@h/d", "u", "d"),
        ("postgresql://h/?user=u&dbname=d&password=p", "u", "d"),
        ("  postgresql://u@h/d\n", "u", "d"),
    ],
)
def test_user_and_database_have_libpq_s_defaults(url: str, user: str, database: str) -> None:
    arguments = connect_arguments(url)
    assert (arguments["user"], arguments["database"]) == (user, database)


@settings(deadline=None)
@given(user=st.text(min_size=1), password=st.text(min_size=1), database=st.text(min_size=1))
def test_what_is_percent_encoded_comes_out_as_it_went_in(user: str, password: str, database: str) -> None:
    parts = (user, password, database)
    if "\0" in "".join(parts):
        return
    encoded = [quote(part, safe="") for part in parts]
    arguments = connect_arguments("postgresql://{}:{}@h/{}".format(*encoded))
    assert tuple(arguments[name] for name in ("user", "password", "database")) == parts


@settings(deadline=None)
@given(*[st.text("/?#@:[]%&=,+ a1", max_size=5)] * 2)
def test_a_raw_password_is_taken_whole_or_refused_without_a_word_of_it(before: str, after: str) -> None:
    password = f"{before}hunter2{after}"
    try:
        arguments = connect_arguments(f"postgresql://u:{password}@h/d")
    except DatabaseURLError as error:
        assert "hunter2" not in str(error)  # noqa: PT017
    else:
        assert (arguments["password"], arguments["host"]) == (unquote(password), ["h"])


def test_plus_and_a_lone_percent_sign_are_themselves() -> None:
    assert connect_arguments("postgresql://u:a+b%@h")["password"] == "a+b%"


def test_settings_of_the_session_go_to_the_server() -> None:
    url = "postgresql://h/d?application_name=tasks&options=-c%20search_path%3Dx"
    assert connect_arguments(url)["server_settings"] == {
        "application_name": "tasks",
        "options": f"{OPTIONS} -c search_path=x",
    }


@pytest.mark.parametrize(("seconds", "timeout"), [("7", 7), ("0", None)])
def test_connect_timeout_is_in_seconds_and_zero_is_none(seconds: str, timeout: int | None) -> None:
    assert connect_arguments(f"postgresql://h?connect_timeout={seconds}")["timeout"] == timeout


def test_the_last_of_two_values_counts() -> None:
    assert connect_arguments("postgresql://h?sslmode=require&sslmode=disable")["ssl"] == "disable"


@pytest.mark.parametrize(
    "query",
    [
        "pgbouncer=false&connection_limit=1&pool_timeout=15&socket_timeout=3&schema=public",  # Prisma
        "currentSchema=x&prepareThreshold=0&ApplicationName=y",  # JDBC
        "keepalives=1&keepalives_idle=5&client_encoding=utf8&load_balance_hosts=random",  # libpq
        "gssencmode=disable&sslcompression=prefer",  # libpq
        "conn_max_age=600&conn_health_checks=true",  # Django
        "pool=5&encoding=unicode&prepared_statements=false&variables[statement_timeout]=9",  # Rails
        "pool_max_conns=10&default_query_exec_mode=exec",  # pgx
        "supa=base-pooler.x&workaround=supabase-pooler.vercel",  # Supabase
        "sslsni=1&sslcompression=0&gssdelegation=0",  # libpq
        "uselibpqcompat=true",  # node-postgres
    ],
)
def test_options_of_other_tools_are_ignored(query: str) -> None:
    assert connect_arguments(f"postgresql://u@h/d?{query}") == connect_arguments("postgresql://u@h/d")


@pytest.mark.parametrize(
    "option",
    [
        "sslaccept=strict",  # Prisma
        *(
            "sslfactory=x",
            "channelBinding=require",
            "requireAuth=scram-sha-256",
            "gssEncMode=require",
            "gssencmode=require",
        ),  # JDBC
        *("require_auth=scram-sha-256", "requirepeer=postgres", "sslcertmode=require"),
        *("sslcrldir=/x", "hostaddr=127.0.0.1", "service=x", "ssl_mode=require", "tls=true"),
    ],
)
def test_an_option_that_asks_for_protection_is_never_ignored(option: str) -> None:
    name = option.partition("=")[0]
    assert f"protection that is unknown here: {name}" in refusal(f"postgresql://u:hunter2@h/d?{option}")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "not like"),
        ("hunter2", "not like"),
        ("host=h password=hunter2", "not like"),
        ("mysql://u:hunter2@h/d", "not like postgresql://"),
        ("sqlite:///hunter2.db", "not like postgresql://"),
        ("postgresqlx://u:hunter2@h/d", "not like postgresql://"),
        ("postgresql://u:hun/ter2@h/d", "percent-encode"),
        ("postgresql://u:hun#ter2@h/d", "percent-encode"),
        ("postgresql://u:hunter2@h/d#here", "percent-encoded"),
        ("postgresql://u:hunter2@h:99999/d", "host:port,host:port"),
        ("postgresql://u:hunter2@h:0/d", "host:port,host:port"),
        ("postgresql://u:hunter2@h:5x/d", "percent-encode"),
        ("postgresql://u:hunter2@h1,h2/d?port=1,2", "host:port,host:port"),
        ("postgresql://u:hunter2@[::1/d", "not like"),
        ("postgresql://u:hunter2@fe80::1/d", "not like"),
        ("postgresql://u:hunter2@h:5432:5433/d", "not like"),
        ("postgresql://u:hunt%00er2@h/d", "not like"),
        ("postgresql://u:hunter2@my host/d", "host:port,host:port"),
        ("postgresql://u:hunter2@h/d?sslmode=verify-full&sslcrl=/x", "options can't be used: no such file"),
        ("postgresql://u:hunter2@h/d?service=x", "unknown here: service"),
        ("postgresql://u:hunter2@h/d?sslmode=on", "`sslmode` parameter must be one of"),
        (
            "postgresql://u:hunter2@h/d?target_session_attrs=master",
            "target_session_attrs is expected to be one of",
        ),
        ("postgresql://u:hunter2@h/d?connect_timeout=soon", "connect_timeout is not"),
        ("postgresql://u:hunter2@h/d?sslmode=verify-ca&sslrootcert=/nowhere", "no such file"),
        ("postgresql://u:hunter2@h/d?sslmode=verify-ca&sslrootcert=/etc/passwd", "options can't be used: "),
        ("postgresql://u:hunter2@h/d?sslmode=require&sslcert=/nowhere", "no such file"),
        ("postgresql://u:hunter2@h/d?sslcert=/x", "no such file"),
        ("postgresql://u:hunter2@h/d?sslnegotiation=direct", "direct TLS requires sslmode=require"),
    ],
)
def test_what_is_wrong_is_named_and_the_password_is_not(url: str, said: str) -> None:
    message = refusal(url)
    assert said in message
    assert not {"hunter2", "ter2", "hun/", "hun#"} & {*message.split()}
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        ("", "prefer"),
        ("sslmode=prefer", "prefer"),
        ("sslmode=allow", "allow"),
        ("sslmode=disable", "disable"),
        ("ssl=disable", "disable"),
    ],
)
def test_weak_modes_are_the_driver_s_own(query: str, mode: str) -> None:
    assert connect_arguments(f"postgresql://h?{query}")["ssl"] == mode


@pytest.mark.parametrize(
    ("query", "verifies", "checks_name"),
    [
        ("sslmode=require", ssl.CERT_NONE, False),
        ("ssl=true", ssl.CERT_NONE, False),
        ("ssl=require", ssl.CERT_NONE, False),
        ("channel_binding=require", ssl.CERT_NONE, False),
        ("sslmode=disable&channel_binding=require", ssl.CERT_NONE, False),
        ("channel_binding=required", ssl.CERT_NONE, False),
        ("sslmode=require&sslnegotiation=direct", ssl.CERT_NONE, False),
        ("sslmode=verify-ca", ssl.CERT_REQUIRED, True),
        ("sslmode=verify-full", ssl.CERT_REQUIRED, True),
        ("sslrootcert=system", ssl.CERT_REQUIRED, True),
        ("sslmode=require&sslrootcert=system", ssl.CERT_REQUIRED, True),
    ],
)
def test_strong_modes_verify_at_least_as_libpq_s_do(
    query: str, verifies: ssl.VerifyMode, checks_name: bool
) -> None:
    context = connect_arguments(f"postgresql://h?{query}")["ssl"]
    assert (context.verify_mode, context.check_hostname) == (verifies, checks_name)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_the_environment_does_not_lower_the_version_of_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSSLMINPROTOCOLVERSION", "TLSv1")
    context = connect_arguments("postgresql://h?sslmode=verify-full")["ssl"]
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("url", "pooled"),
    [
        (NEON, True),
        ("postgresql://h1,ep-x-POOLER.neon.tech/d", True),
        ("postgresql://h/d?pgbouncer=true", True),
        ("postgresql://h/d?pgbouncer=1", True),
        ("postgresql://h/d?pgbouncer=false", False),
        ("postgresql://ep-x.neon.tech/d-pooler", False),
        ("postgresql://u-pooler:p-pooler@h/d", False),
        ("postgresql://pooler.example.com/d", False),
    ],
)
def test_a_transaction_pooler_is_known_by_its_name_or_said(url: str, pooled: bool) -> None:
    assert (connect_arguments(url)["statement_cache_size"] == 0) is pooled


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with (
        passable_directory() as base,
        embedded_server(base, {"fsync": "off"}) as running,
    ):
        yield running


async def fetch(url: str, sql: str) -> Any:
    connection = await asyncpg.connect(**connect_arguments(url))
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def test_the_environment_of_libpq_changes_nothing(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "HOST",
        "HOSTADDR",
        "PORT",
        "USER",
        "DATABASE",
        "SSLMODE",
        "SSLNEGOTIATION",
        "TARGETSESSIONATTRS",
    ):
        monkeypatch.setenv(f"PG{name}", "nonsense")
    monkeypatch.setenv("PGSERVICE", "nonsense")
    assert asyncio.run(fetch(server.url, "SELECT 1")) == 1


def test_a_dead_host_is_passed_over_for_the_next(server: EmbeddedServer) -> None:
    living = quote(str(server.data_dir.parent), safe="")
    url = f"postgresql://postgres@127.0.0.1:1,{living}:5432/postgres?target_session_attrs=read-write"
    assert asyncio.run(fetch(url, "SELECT 1")) == 1


def test_no_host_that_is_writable_is_an_error(server: EmbeddedServer) -> None:
    url = f"{server.url}&target_session_attrs=standby"
    with pytest.raises(asyncpg.exceptions.TargetServerAttributeNotMatched):
        asyncio.run(fetch(url, "SELECT 1"))


def test_application_name_arrives(server: EmbeddedServer) -> None:
    assert asyncio.run(fetch(f"{server.url}&application_name=a%20b", "SHOW application_name")) == "a b"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for the name localhost, and not for 127.0.0.1, signed by an authority of its own."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


class Front:
    """A TLS port in front of the embedded server, which has none. Without a context it declines TLS."""

    def __init__(self, server: EmbeddedServer, context: ssl.SSLContext | None) -> None:
        self.socket = server.data_dir.parent / ".s.PGSQL.5432"
        self.context = context
        self.encrypted = False
        self.tasks: list[asyncio.Task[None] | None] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.append(asyncio.current_task())
        with suppress(OSError, asyncio.IncompleteReadError):
            first = await reader.readexactly(8)
            if first[4:] == (80877103).to_bytes(4):  # SSLRequest
                first = b""
                writer.write(b"S" if self.context else b"N")
                if self.context:
                    await writer.start_tls(self.context)
                    self.encrypted = True
            server = await asyncio.open_unix_connection(self.socket)
            server[1].write(first)
            await asyncio.gather(self.copy(reader, server[1]), self.copy(server[0], writer))
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


def through(front: Front, host: str, query: str) -> bool:
    """Connect, and tell whether it was encrypted."""

    async def connect() -> None:
        front.tasks.clear()
        listening = await asyncio.start_server(front.serve, "127.0.0.1")
        port = listening.sockets[0].getsockname()[1]
        try:
            assert await fetch(f"postgresql://postgres@{host}:{port}/postgres?{query}", "SELECT 1") == 1
        finally:
            listening.close()
            await asyncio.gather(*filter(None, front.tasks))

    asyncio.run(connect())
    return front.encrypted


@pytest.fixture
def tls(server: EmbeddedServer, certificates: Path) -> Front:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    return Front(server, context)


@pytest.fixture
def plain(server: EmbeddedServer) -> Front:
    return Front(server, None)


@pytest.mark.parametrize("query", ["", "sslmode=prefer", "sslmode=require", "channel_binding=require"])
def test_tls_is_used_where_the_server_has_it_without_verifying(tls: Front, query: str) -> None:
    assert through(tls, "127.0.0.1", query)


@pytest.mark.parametrize("query", ["sslmode=disable", "sslmode=allow"])
def test_no_tls_where_the_url_does_not_want_it(tls: Front, query: str) -> None:
    assert not through(tls, "127.0.0.1", query)


def test_prefer_goes_without_tls_where_the_server_has_none(plain: Front) -> None:
    assert not through(plain, "127.0.0.1", "sslmode=prefer")


@pytest.mark.parametrize("query", ["sslmode=require", "sslmode=verify-full", "channel_binding=require"])
def test_a_server_without_tls_is_refused_where_tls_is_required(plain: Front, query: str) -> None:
    with pytest.raises(ConnectionError, match="rejected SSL upgrade"):
        through(plain, "127.0.0.1", query)


@pytest.mark.parametrize("mode", ["require", "verify-ca"])
def test_the_authority_of_the_url_is_enough_without_the_right_name(
    tls: Front,
    certificates: Path,
    mode: str,
) -> None:
    assert through(tls, "127.0.0.1", f"sslmode={mode}&sslrootcert={certificates}/authority.pem")


def test_verify_full_takes_the_right_name_only(tls: Front, certificates: Path) -> None:
    query = f"sslmode=verify-full&sslrootcert={certificates}/authority.pem"
    assert through(tls, "localhost", query)
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        through(tls, "127.0.0.1", query)


@pytest.mark.parametrize("query", ["sslmode=verify-ca", "sslmode=verify-full", "sslrootcert=system"])
def test_an_authority_that_the_system_does_not_know_is_refused(tls: Front, query: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        through(tls, "localhost", query)


@pytest.mark.parametrize("query", ["sslmode=verify-ca", "sslmode=verify-full", "sslrootcert=system"])
def test_an_authority_of_the_system_is_trusted(
    tls: Front,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
) -> None:
    monkeypatch.setenv(
        "SSL_CERT_FILE", str(certificates / "authority.pem")
    )  # OpenSSL's word for the system's roots
    assert through(tls, "localhost", query)
