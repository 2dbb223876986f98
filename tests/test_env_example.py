"""`.env.example` has every setting with its default and its reason; the files for Docker are valid."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backend.settings import SECRETS as KEPT_IN_FILES
from backend.settings import Settings
from tests import programs
from tests.service import ROOT

LINES = (ROOT / ".env.example").read_text().splitlines()
EXAMPLES = {match[1]: match[2] for line in LINES if (match := re.fullmatch(r"# ([A-Z_]+)=(.*)", line))}
SETTINGS = {name.upper() for name in Settings.model_fields} | {"NEON_DB_URL"}

COMPOSE = (ROOT / "docker-compose.yml").read_text()
COMPOSE_PASSES_ON = set(re.findall(r"^    ([A-Z_]+): *(?:#.*)?$", COMPOSE, re.MULTILINE))
COMPOSE_READS = COMPOSE_PASSES_ON | set(re.findall(r"\$\{([A-Z_]+)", COMPOSE))
COMPOSE_DECIDES = {"DATABASE_URL", "NEON_DB_URL", "DATA_DIR", "DATABASE_PREPARED_STATEMENTS", "HOST", "PORT"}
SECRETS = {"POSTGRES_PASSWORD": "the-password", "JWT_SECRET": "the-secret"}


def test_every_setting_is_there_and_nothing_that_nobody_reads() -> None:
    assert set(EXAMPLES) == SETTINGS | COMPOSE_READS | {f"{name.upper()}_FILE" for name in KEPT_IN_FILES}


def test_it_is_all_comments_so_that_a_copy_changes_nothing() -> None:
    assert [line for line in LINES if line and not line.startswith("# ")] == []


def test_every_value_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    uncommented = tmp_path / "env"
    uncommented.write_text("".join(f"{name}={value}\n" for name, value in EXAMPLES.items()))
    monkeypatch.chdir(tmp_path)
    defaults = Settings()
    monkeypatch.setitem(Settings.model_config, "env_file", uncommented)
    assert Settings() == defaults
    with_a_default = {name.upper() for name, value in defaults if value not in (None, ())}
    assert {name for name in SETTINGS if EXAMPLES[name]} == with_a_default


def test_the_redis_url_with_a_password_is_one_that_the_settings_take(monkeypatch: pytest.MonkeyPatch) -> None:
    (url,) = re.findall(r"redis://:\S+", "\n".join(LINES))
    monkeypatch.setenv("RATE_LIMIT_STORAGE_URI", url.rstrip(","))
    assert Settings().rate_limit_storage_uri.get_secret_value() == "redis://:password@host:6379/0"


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_setting_has_a_reason_above_it(name: str) -> None:
    paragraphs = "\n".join(LINES).split("\n\n")
    (paragraph,) = [paragraph for paragraph in paragraphs if f"\n# {name}=" in paragraph]
    assert re.match(r"# (?![A-Z_]+=)\w.{20}", paragraph)


def test_compose_passes_on_every_setting_but_those_that_it_decides() -> None:
    assert not SETTINGS - COMPOSE_DECIDES - COMPOSE_READS


def compose(tmp_path: Path, secrets: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Resolve docker-compose.yml with these secrets, and without any `.env`."""
    program = programs.find("docker-compose", hint="apt install docker-compose")
    (tmp_path / "env").touch()
    return subprocess.run(
        [program, "--env-file", tmp_path / "env", "--profile", "development", "config"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **secrets},
        capture_output=True,
        text=True,
        check=False,
    )


def test_compose_with_secrets_is_valid_and_serves_this_machine_alone(tmp_path: Path) -> None:
    config = compose(tmp_path, SECRETS)
    assert (config.returncode, config.stderr) == (0, "")
    ports = re.findall(r"ports:\n( +- .*(?:\n +- .*)*)", config.stdout)
    assert [port.strip() for port in ports] == ["- 127.0.0.1:8000:8000/tcp", "- 127.0.0.1:8001:8000/tcp"]


@pytest.mark.parametrize("missing", sorted(SECRETS))
def test_compose_refuses_to_start_without_a_secret(tmp_path: Path, missing: str) -> None:
    config = compose(tmp_path, {**SECRETS, missing: ""})
    assert config.returncode != 0
    (reason,) = set(re.findall(rf"\$\{{{missing}:\?(.*)\}}", COMPOSE))
    assert missing in config.stderr
    assert config.stderr.strip().endswith(reason)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run(
        [hadolint, ROOT / "backend" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")
