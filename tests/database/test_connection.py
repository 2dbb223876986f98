"""A start on a database with unusual settings, or with options of other tools in DATABASE_URL."""

from collections.abc import Callable
from pathlib import Path

from tests.conftest import Postgres
from tests.service import JWT_SECRET, running

ODD = {
    "default_transaction_isolation": "serializable",
    "statement_timeout": "1",
    "lock_timeout": "1",
    "TimeZone": "America/New_York",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
}


def with_setting(database: Postgres, name: str, value: str) -> str:
    """Change a setting of the database, and return the URL of it."""
    at = database.url.partition("?")[0].rpartition("/")[2]
    database.sql(f"ALTER DATABASE {at} SET {name} = '{value}'")
    return database.url


def test_settings_of_the_database_change_nothing_in_a_session(
    new_empty_database: Callable[[], Postgres], tmp_path: Path
) -> None:
    """Migrations run too, although a limit of one millisecond per statement would stop the start."""
    database = new_empty_database()
    url = [with_setting(database, name, value) for name, value in ODD.items()][-1]
    with running(tmp_path / "log", DATABASE_URL=url, JWT_SECRET=JWT_SECRET) as service:
        account = service.register()
        task = account.create()
        assert account.client.get(f"/tasks/{task['id']}").json() == task
        assert service.lines(level="WARNING") == []
        assert service.lines(level="ERROR") == []


def test_a_database_that_is_only_read_is_named_at_the_start(
    new_empty_database: Callable[[], Postgres], tmp_path: Path
) -> None:
    database = new_empty_database()
    with running(tmp_path / "first", DATABASE_URL=database.url, JWT_SECRET=JWT_SECRET):
        pass
    url = with_setting(database, "default_transaction_read_only", "on")
    with running(tmp_path / "log", DATABASE_URL=url, JWT_SECRET=JWT_SECRET) as service:
        (line,) = service.lines(level="WARNING")
        assert "default_transaction_read_only is on" in line["event"]


def test_a_start_names_the_options_of_other_tools_in_one_line(
    new_empty_database: Callable[[], Postgres], tmp_path: Path
) -> None:
    url = f"{new_empty_database().url}&connection_limit=1&schema=s3cret"
    with running(tmp_path / "log", DATABASE_URL=url, JWT_SECRET=JWT_SECRET) as service:
        (line,) = [line for line in service.lines(level="INFO") if "DATABASE_URL" in line["event"]]
        assert line["event"].endswith(": connection_limit, schema")
    assert "s3cret" not in service.log.read_text()
