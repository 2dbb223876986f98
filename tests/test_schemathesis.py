"""Answers to requests that schemathesis generates from the OpenAPI document are as documented there."""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.service import ROOT, Account, Service

MAX_EXAMPLES = 12
"""The limit for each operation and phase."""


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
        env={"PATH": os.environ["PATH"], "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


ENDS_THE_SESSION = ("/auth/logout", "/auth/sessions/{session_id}")
"""The operations that run separately, because they end the session that all other requests need."""


@pytest.mark.parametrize(("surface", "route"), [("exclude", "/tasks"), ("include", "/api/{user_id}/tasks")])
def test_every_answer_to_generated_requests_is_as_documented(
    service: Service, ada: Account, tmp_path: Path, surface: str, route: str
) -> None:
    """No response is 5xx, valid requests are accepted, invalid ones are refused, and responses fit schemas.

    Each surface alone: that a task of one can be deleted by the other is more than schemathesis knows.
    """
    kept = [f"--exclude-path={path}" for path in ENDS_THE_SESSION]
    schemathesis(ada, tmp_path, f"--{surface}-path-regex=^/api/", *kept)
    assert ada.client.get("/auth/me").status_code == 200, "the token died on the way"
    assert service.lines(event="task.created", route=route, user_id=ada.id), "no valid request got through"


def test_signing_out_is_as_documented(ada: Account, tmp_path: Path) -> None:
    schemathesis(ada, tmp_path, *(f"--include-path={path}" for path in ENDS_THE_SESSION))
    assert ada.client.get("/auth/me").status_code == 401
