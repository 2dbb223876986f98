"""Clients generated from the OpenAPI document are well typed and work; a linter finds no fault in it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.npm import installed
from tests.service import PASSWORD, ROOT, Account, Service

HERE = Path(__file__).parent
DOCUMENT = ROOT / "backend" / "openapi.json"
FAULTS_OF_THE_GENERATOR = """
[mypy]
strict = True
[mypy-tasks_client.client]
# openapi-python-client 0.29.1 passes on the arguments of `__exit__` as objects.
disable_error_code = arg-type
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a program to its end, which has to be a good one, and return what it printed."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {"PATH": path, "HOME": str(cwd), **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package that openapi-python-client makes, and a program that uses it."""
    directory = tmp_path_factory.mktemp("python")
    options: Sequence[str | Path] = ("--path", DOCUMENT, "--output-path", "tasks_client", "--meta", "none")
    run("openapi-python-client", "generate", *options, "--fail-on-warning", cwd=directory)
    shutil.copy(HERE / "keep_tasks.py", directory)
    return directory


def test_openapi_python_client_makes_a_client_that_mypy_finds_strictly_typed(python_client: Path) -> None:
    (python_client / "mypy.ini").write_text(FAULTS_OF_THE_GENERATOR)
    run("mypy", "tasks_client", "keep_tasks.py", cwd=python_client)


def test_a_python_client_signs_in_and_creates_changes_clears_lists_and_deletes(
    python_client: Path, ada: Account
) -> None:
    url = str(ada.client.base_url).rstrip("/")
    run(sys.executable, "keep_tasks.py", url, ada.email, PASSWORD, cwd=python_client)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tools of `package.json` and `program.ts`."""
    directory = tmp_path_factory.mktemp("node")
    (directory / "node_modules").symlink_to(installed(HERE, "optional", "peer"))
    for name in ("package.json", "program.ts"):
        shutil.copy(HERE / name, directory)
    return directory


def test_the_typescript_program_has_every_operation() -> None:
    program = (HERE / "program.ts").read_text()
    operations = {
        f'api.{method.upper()}("{path}"'
        for path, methods in json.loads(DOCUMENT.read_text())["paths"].items()
        for method in methods
    }
    assert {operation for operation in operations if operation not in program} == set()


def test_a_strict_typescript_program_over_all_operations_compiles_and_runs(
    node: Path, service: Service
) -> None:
    """Wrong values of each kind are in it, too, and have to be errors."""
    run("node", "node_modules/openapi-typescript/bin/cli.js", DOCUMENT, "--output", "api.d.ts", cwd=node)
    options = ("--strict", "--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler")
    run("node", "node_modules/typescript/bin/tsc", *options, "program.ts", cwd=node)
    run("node", "program.js", service.url, cwd=node)


def test_redocly_finds_no_fault_by_its_recommended_rules(node: Path) -> None:
    options = ("--extends", "recommended", "--format", "json")
    quiet = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    found = run("node", "node_modules/@redocly/cli/bin/cli.js", "lint", *options, DOCUMENT, cwd=node, **quiet)
    assert json.loads(found)["problems"] == []
