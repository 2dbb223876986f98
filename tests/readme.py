"""Returns code blocks of the README, for tests that run them as they stand."""

import re

from tests.service import ROOT


def block(first_line: str, language: str = "js") -> str:
    """Return the fenced block of that language that opens with this line; there is one."""
    found: list[str] = re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (code,) = [code for code in found if code.startswith(f"{first_line}\n")]
    return code
