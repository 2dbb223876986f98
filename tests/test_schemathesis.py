"""The service against its own OpenAPI document, with requests that schemathesis makes from it (R0-SC-008)."""

import os
import subprocess
import sysconfig
from pathlib import Path

from tests.service import ROOT, Account

MAX_EXAMPLES = 60
"""Of each operation, in each phase: about twenty seconds in all."""


def schemathesis(account: Account, directory: Path, *options: str) -> str:
    """Run all checks in all phases with the account's token; returns the report, fails with it."""
    program = Path(sysconfig.get_path("scripts"), "schemathesis")
    base = str(account.client.base_url).rstrip("/")
    run = subprocess.run(
        [
            program,
            f"--config-file={ROOT / 'tests' / 'schemathesis.toml'}",
            "run",
            f"{base}/openapi.json",
            f"--header=Authorization: {account.client.headers['Authorization']}",
            "--checks=all",
            "--phases=examples,coverage,fuzzing,stateful",
            f"--max-examples={MAX_EXAMPLES}",
            "--generation-deterministic",
            "--no-color",
            *options,
        ],
        cwd=directory,
        env={name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_every_answer_to_generated_requests_is_as_documented(ada: Account, tmp_path: Path) -> None:
    """R0-FR-002, R4-SC-008: no 5xx, what is valid is accepted, what is not refused, answers fit schemas."""
    # Signing out would end the token that all other requests need.
    schemathesis(ada, tmp_path, "--exclude-path=/auth/logout")
    assert ada.client.get("/auth/me").status_code == 200, "the token died on the way"
    assert ada.client.get("/tasks").json() != [], "no valid request got through"


def test_signing_out_is_as_documented(ada: Account, tmp_path: Path) -> None:
    schemathesis(ada, tmp_path, "--include-path=/auth/logout")
    assert ada.client.get("/auth/me").status_code == 401
