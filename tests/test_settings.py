"""The settings: a wrong one stops the start with one line that names it, and no line shows a secret."""

import os
from pathlib import Path

import pytest

from backend.settings import Settings, SettingsError, load_settings
from tests.conftest import Postgres
from tests.service import command as run

SECRET = "a canary that sings when it is seen in 32 bytes"
SHORT = "canary"
GOOD = {"DATABASE_URL": f"postgresql://ada:{SHORT}@db.example.com/tasks", "JWT_SECRET": SECRET}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove this machine's settings, and let only the test's own `.env` be read."""
    for name in os.environ:
        if name.lower() in {*Settings.model_fields, "neon_db_url"}:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def load(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Settings:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return load_settings()


# Invalid settings

WRONG = [
    ("PORT", "eight thousand"),
    ("PORT", "-1"),
    ("PORT", "65536"),
    ("PORT", "80\n81"),
    ("WORKERS", "0"),
    ("WORKERS", "1.5"),
    ("BCRYPT_ROUNDS", "3"),
    ("BCRYPT_ROUNDS", "32"),
    ("ACCESS_TOKEN_MINUTES", "0"),
    ("SESSION_DAYS", "0"),
    ("SESSION_DAYS", "1e3"),
    ("SESSION_IDLE_DAYS", "-14"),
    ("PASSWORD_MIN_LENGTH", "129"),
    ("DATABASE_POOL_SIZE", "0"),
    ("DATABASE_TIMEOUT_SECONDS", "0"),
    ("DATABASE_TIMEOUT_SECONDS", "nan"),
    ("DATABASE_TIMEOUT_SECONDS", "inf"),
    ("DATABASE_PREPARED_STATEMENTS", "maybe"),
    ("CONCEAL_FOREIGN_TASKS", "perhaps"),
    ("LOG_FORMAT", "xml"),
    ("MAIL_URL", "canary"),
    ("MAIL_URL", "smtp://canary:0"),
    ("MAIL_URL", "smtp://canary?tls=1"),
    ("MAIL_URL", "smtp://ada:canary@relay.example?starttls=off"),
    ("MAIL_URL", "file://canary/folder"),
    ("MAIL_FROM", "canary"),
    ("MAIL_FROM", "canary@example.com, eve@example.com"),
    ("MAIL_FROM", "Ada <canary@example.com>, Eve <eve@example.com>"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "canary"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "canary:4318"),
    ("APP_URL", "javascript:canary"),
    ("BETTER_AUTH_URL", "http://256.256.256.256"),
    ("BETTER_AUTH_URL", "http://xn--a"),
    ("EMAIL_VERIFICATION", "canary"),
    ("ROOT_PATH", "canary"),
    ("ROOT_PATH", "/canary/"),
    ("CORS_ORIGINS", "example.com"),
    ("CORS_ORIGINS", "https://example.com/path"),
    ("CORS_ORIGINS", "https://example.com, nonsense"),
    ("CORS_ORIGINS", "https://*.vercel.app"),
    ("CORS_ORIGINS", "https://*"),
    ("CORS_ORIGINS", "https://exa mple.com"),
    ("CORS_ORIGINS", "https://exa\tmple.com"),
    ("CORS_ORIGINS", "https://example.com:99999"),
    ("CORS_ORIGINS", "https://example.com:port"),
    ("CORS_ORIGINS", "https://example.com/"),
    ("CORS_ORIGINS", "https://example.com\\"),
    ("CORS_ORIGINS", "https://ada@example.com"),
    ("CORS_ORIGINS", "https://example.com?"),
    ("CORS_ORIGINS", "https://exam<ple.com"),
    ("CORS_ORIGINS", "https://xn--\u00fc.example"),
    ("CORS_ORIGINS", "https://[::1"),
    ("CORS_ORIGINS", "https://"),
    ("CORS_ORIGINS", "https:///"),
    ("CORS_ORIGINS", "ftp://example.com"),
    ("CORS_ORIGINS", "null"),
    ("FORWARDED_ALLOW_IPS", "traefik"),
    ("FORWARDED_ALLOW_IPS", "localhost"),
    ("FORWARDED_ALLOW_IPS", "127.0.0.1/33"),
    ("FORWARDED_ALLOW_IPS", "10.0.0.5/8"),
    ("FORWARDED_ALLOW_IPS", "10.0.0.0/8;127.0.0.1"),
    ("FORWARDED_ALLOW_IPS", "10.0.0.0/8 127.0.0.1"),
    ("FORWARDED_ALLOW_IPS", "127.0.0.1,*"),
    ("FORWARDED_ALLOW_IPS", "127.0.0.1:8000"),
    ("FORWARDED_ALLOW_IPS", "[::1]"),
    ("FORWARDED_ALLOW_IPS", "::ffff:10.0.0.0/8"),
    ("FORWARDED_ALLOW_IPS", "10.0.0.*"),
    ("JWT_SECRET", SHORT),
    ("JWT_SECRET", "x" * 31),
    ("JWT_SECRET", "é" * 15),
    ("JWT_SECRET", "\udcff" * 32),
    ("JWT_PREVIOUS_SECRETS", SHORT),
    ("JWT_PREVIOUS_SECRETS", f"{SECRET},{SHORT}"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_setting_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        load(monkeypatch, **{**GOOD, name: value})
    message = str(raised.value)
    assert message.startswith(f"{name}: ")
    assert message.isprintable()
    for secret in (SECRET, SHORT):
        assert secret not in message


@pytest.mark.parametrize(
    ("first", "second", "settings"),
    [
        ("DATABASE_URL", "NEON_DB_URL", {**GOOD, "NEON_DB_URL": f"postgresql://ada:{SHORT}@other/tasks"}),
        ("BETTER_AUTH_SECRET", "JWT_SECRET", {**GOOD, "BETTER_AUTH_SECRET": SECRET}),
        (
            "BETTER_AUTH_SECRET",
            "JWT_SECRET",
            {**GOOD, "JWT_PREVIOUS_SECRETS": "x" * 32, "BETTER_AUTH_SECRET": "x" * 32},
        ),
        ("EMAIL_VERIFICATION", "MAIL_URL", {**GOOD, "EMAIL_VERIFICATION": "required"}),
    ],
)
def test_settings_that_contradict_each_other_are_both_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, first: str, second: str, settings: dict[str, str]
) -> None:
    with pytest.raises(SettingsError) as raised:
        load(monkeypatch, **settings)
    message = str(raised.value)
    assert message.startswith(first)
    assert second in message
    assert message.isprintable()
    assert SECRET not in message
    assert SHORT not in message


@pytest.mark.parametrize(
    "settings",
    [
        {"SESSION_DAYS": "7"},
        {"SESSION_DAYS": "3", "SESSION_IDLE_DAYS": "5"},
        {"SHUTDOWN_GRACE_SECONDS": "2"},
        {"SHUTDOWN_GRACE_SECONDS": "2", "SHUTDOWN_DRAIN_SECONDS": "3"},
        {**GOOD, "NEON_DB_URL": GOOD["DATABASE_URL"]},
        {"BETTER_AUTH_URL": "https://app.example.com", "BETTER_AUTH_ISSUER": "app"},
        {"BETTER_AUTH_SECRET": SECRET, "BETTER_AUTH_AUDIENCE": "app"},
    ],
)
def test_a_default_gives_way_to_what_is_set_and_contradicts_nothing(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    assert load(monkeypatch, **settings)


def test_a_database_of_ones_own_needs_a_secret_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"^JWT_SECRET: is required"):
        load(monkeypatch, DATABASE_URL=GOOD["DATABASE_URL"])


@pytest.mark.parametrize("name", ["DATABASE_URL", "NEON_DB_URL"])
def test_the_database_has_two_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    settings = load(monkeypatch, JWT_SECRET=SECRET, **{name: GOOD["DATABASE_URL"]})
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == GOOD["DATABASE_URL"]


# Valid settings


def test_without_any_setting_there_are_the_defaults_of_the_contract() -> None:
    settings = load_settings()
    assert (settings.database_url, settings.jwt_secret, settings.data_dir) == (None, None, Path(".data"))
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)
    assert (settings.jwt_issuer, settings.jwt_audience) == ("tasks-api", "tasks-api")
    assert (settings.access_token_minutes, settings.bcrypt_rounds) == (15, 12)
    assert (settings.session_days, settings.session_idle_days) == (30, 14)
    assert settings.password_min_length == 8
    assert settings.cors_origins == ("http://localhost:3000", "http://localhost")
    assert (settings.database_pool_size, settings.database_timeout_seconds) == (10, 5)
    assert settings.database_prepared_statements == "auto"
    assert (settings.conceal_foreign_tasks, settings.log_format) == (False, None)
    assert settings.jwt_previous_secrets == ()


def test_secrets_are_measured_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    for secret in ("x" * 32, "é" * 16):
        assert load(monkeypatch, **{**GOOD, "JWT_SECRET": secret}).jwt_secret is not None


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://app.example.com:80", "http://app.example.com"),
        ("http://app.example.com:443", "http://app.example.com:443"),
        ("https://App.Example.COM", "https://app.example.com"),
        ("HTTPS://app.example.com:08443", "https://app.example.com:8443"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("https://B\u00dcCHER.example:443", "https://xn--bcher-kva.example"),
        ("https://stra\u00dfe.example", "https://xn--strae-oqa.example"),
        ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000"),
        ("http://my_app.internal:3000", "http://my_app.internal:3000"),
        ("http://localhost", "http://localhost"),
        ("*", "*"),
    ],
)
def test_origins_are_kept_as_browsers_send_them(
    monkeypatch: pytest.MonkeyPatch, written: str, sent: str
) -> None:
    assert load(monkeypatch, **GOOD, CORS_ORIGINS=written).cors_origins == (sent,)


@pytest.mark.parametrize(
    "proxies", ["*", "127.0.0.1", "127.0.0.1, ::1,", "10.0.0.0/8,fd00::/8", "::ffff:10.0.0.1", "0.0.0.0/0"]
)
def test_proxies_are_addresses_and_networks(monkeypatch: pytest.MonkeyPatch, proxies: str) -> None:
    assert load(monkeypatch, **GOOD, FORWARDED_ALLOW_IPS=proxies).forwarded_allow_ips == proxies


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "x" * 32
    settings = load(
        monkeypatch,
        **GOOD,
        CORS_ORIGINS=" https://a.example.com ,https://b.example.com:8443,, ",
        JWT_PREVIOUS_SECRETS=f"{SECRET},{other}",
    )
    assert settings.cors_origins == ("https://a.example.com", "https://b.example.com:8443")
    assert [secret.get_secret_value() for secret in settings.jwt_previous_secrets] == [SECRET, other]


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = {name.upper(): "" for name in (*Settings.model_fields, "neon_db_url")}
    assert load(monkeypatch, **empty) == Settings.model_validate({})


def test_a_dotenv_file_is_read_and_the_environment_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(
        f"# Ours\nDATABASE_URL='{GOOD['DATABASE_URL']}'\nJWT_SECRET=\"{SECRET}\"\n"
        "PORT=1\nHOST=0.0.0.0\nWORKERS=\nUNKNOWN=x\n"
    )
    settings = load(monkeypatch, PORT="2", HOST="")
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == GOOD["DATABASE_URL"]
    assert (settings.port, settings.host, settings.workers) == (2, "0.0.0.0", 1)  # noqa: S104


@pytest.mark.parametrize("in_file", ["DATABASE_URL", "NEON_DB_URL"])
@pytest.mark.parametrize("in_environment", ["DATABASE_URL", "NEON_DB_URL"])
def test_a_database_of_the_environment_goes_before_one_of_the_dotenv_file_whatever_its_name(
    monkeypatch: pytest.MonkeyPatch, in_file: str, in_environment: str
) -> None:
    Path(".env").write_text(f"{in_file}=postgresql://other.example.com/tasks\nJWT_SECRET={SECRET}\n")
    settings = load(monkeypatch, **{in_environment: GOOD["DATABASE_URL"]})
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == GOOD["DATABASE_URL"]


def test_no_secret_is_in_the_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = repr(load(monkeypatch, **GOOD, JWT_PREVIOUS_SECRETS=SECRET))
    assert "port=8000" in shown
    assert SECRET not in shown
    assert SHORT not in shown


# Settings of whole processes


def failing_start(command: str = "serve", **settings: str) -> tuple[int, list[str]]:
    """Run a command that ends by itself; return its exit code and the lines of its output."""
    ended = run(command, DATABASE_START_TIMEOUT_SECONDS="0", **settings)
    return ended.returncode, (ended.stdout + ended.stderr).splitlines()


UNREACHABLE = f"postgresql://ada:{SHORT}@127.0.0.1:1/tasks?sslmode=disable"


@pytest.mark.parametrize(
    ("command", "name", "settings"),
    [
        ("serve", "PORT", {**GOOD, "PORT": "eight thousand"}),
        ("serve", "JWT_SECRET", {"DATABASE_URL": GOOD["DATABASE_URL"]}),
        ("serve", "JWT_SECRET", {**GOOD, "JWT_SECRET": SHORT}),
        ("serve", "DATABASE_URL", {**GOOD, "DATABASE_URL": f"mysql://ada:{SHORT}@db.example.com/tasks"}),
        ("serve", "DATABASE_URL", {**GOOD, "DATABASE_URL": f"postgresql://ada:{SHORT}@h:port/tasks"}),
        ("serve", "database", {**GOOD, "DATABASE_URL": UNREACHABLE}),
        (
            "serve",
            "RATE_LIMIT_STORAGE_URI",
            {**GOOD, "RATE_LIMIT_STORAGE_URI": f"redis://:{SHORT}@h?ssl_cert_reqs=none"},
        ),
        ("serve", "FORWARDED_ALLOW_IPS", {**GOOD, "FORWARDED_ALLOW_IPS": "traefik"}),
        ("serve", "CORS_ORIGINS", {**GOOD, "CORS_ORIGINS": "https://*.vercel.app"}),
        ("migrate", "database", {**GOOD, "DATABASE_URL": UNREACHABLE}),
        ("migrate", "BCRYPT_ROUNDS", {**GOOD, "BCRYPT_ROUNDS": "99"}),
        ("openapi", "PORT", {"PORT": "eight thousand"}),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_line(
    command: str, name: str, settings: dict[str, str]
) -> None:
    code, lines = failing_start(command, **settings)
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0].startswith("tasks-api: ")
    assert name in lines[0]
    assert SECRET not in lines[0]
    assert SHORT not in lines[0]


def test_a_data_directory_that_is_a_file_ends_the_start_with_one_line() -> None:
    Path("file").touch()
    code, lines = failing_start(DATA_DIR="file")
    assert (code, len(lines)) == (1, 1), lines
    assert "file" in lines[0]


@pytest.mark.parametrize("host", ["no address", "192.0.2.1"], ids=["no address", "another machine's"])
def test_a_host_that_it_cannot_listen_at_ends_the_start_and_is_named(database: Postgres, host: str) -> None:
    code, lines = failing_start(DATABASE_URL=database.url, JWT_SECRET=SECRET, HOST=host)
    assert code != 0
    assert any("HOST" in line for line in lines), lines
    assert SECRET not in "".join(lines)


def test_a_wrong_line_of_a_dotenv_file_ends_the_start_with_one_line() -> None:
    Path(".env").write_text(f"DATABASE_URL={GOOD['DATABASE_URL']}\nJWT_SECRET={SHORT}\n")
    code, lines = failing_start()
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0].startswith("tasks-api: JWT_SECRET: ")
    assert SHORT not in lines[0]


def test_a_dotenv_file_that_is_no_text_ends_the_start_with_one_line() -> None:
    Path(".env").write_bytes(b"JWT_SECRET=\xff\xfe\n")
    code, lines = failing_start()
    assert (code, len(lines)) == (1, 1), lines
    assert ".env" in lines[0]


# Secrets from files


def test_secrets_may_stand_in_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {
        "DATABASE_URL": GOOD["DATABASE_URL"],
        "JWT_SECRET": SECRET,
        "JWT_PREVIOUS_SECRETS": f"{SECRET[::-1]},{SECRET * 2}",
        "BETTER_AUTH_SECRET": f"not {SECRET}",
        "RATE_LIMIT_STORAGE_URI": "redis://:canary@localhost:6379",
    }
    for name, value in values.items():
        (tmp_path / name).write_text(f"{value}\n")
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / name))
    from_files = load_settings()
    for name, value in values.items():
        monkeypatch.delenv(f"{name}_FILE")
        monkeypatch.setenv(name, value)
    assert from_files == load_settings()


def test_a_dotenv_file_may_name_the_file_of_a_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / ".env").write_text("JWT_SECRET_FILE=secret\n")
    secret = load_settings().jwt_secret
    assert secret is not None
    assert secret.get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"JWT_SECRET_FILE": "nowhere"}, "JWT_SECRET_FILE: cannot be read: No such file or directory"),
        ({"JWT_SECRET_FILE": "garbled"}, "JWT_SECRET_FILE: cannot be read: invalid start byte"),
        ({"JWT_SECRET_FILE": "short"}, "JWT_SECRET: must be at least 32 bytes long"),
        (
            {"DATABASE_URL_FILE": "short", "NEON_DB_URL": GOOD["DATABASE_URL"], "JWT_SECRET": SECRET},
            "DATABASE_URL: is set twice, DATABASE_URL_FILE being set as well",
        ),
        (
            {"JWT_SECRET_FILE": "short", "JWT_SECRET": SECRET},
            "JWT_SECRET: is set twice, JWT_SECRET_FILE being set as well",
        ),
    ],
)
def test_a_file_that_is_wrong_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, str], complaint: str
) -> None:
    (tmp_path / "garbled").write_bytes(b"\xff" * 40)
    (tmp_path / "short").write_text(SHORT)
    with pytest.raises(SettingsError) as error:
        load(monkeypatch, **settings)
    assert str(error.value).startswith(complaint)
    assert SHORT not in str(error.value)
