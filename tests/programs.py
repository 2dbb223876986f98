"""Programs that are not ours: a test that drives one skips where it is missing, but never in CI."""

import os
import shutil

import pytest


def find(*names: str, hint: str) -> str:
    """Return the path of the first of these programs that is there; `hint` says how to get one."""
    for name in names:
        if path := shutil.which(name):
            return path
    message = f"{' or '.join(names)} not found: {hint}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
