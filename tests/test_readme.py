"""The README's tables name tests that exist, and each requirement of two ASVS chapters once."""

import re
from collections import Counter

from tests.service import ROOT

REQUIREMENTS = {6: (3, 12, 8, 6, 8, 4, 2, 4), 7: (3, 4, 2, 5, 3, 2)}
"""The number of requirements in each section of a chapter of the ASVS 5.0."""

_NAME = re.compile(r"`(test_\w+)`")
_NUMBERS = re.compile(r"(\d)\.(\d)\.(\d+)(?: to \1\.\2\.(\d+))?")


def rows() -> list[str]:
    """Return the lines of the table of the ASVS."""
    return re.findall(r"^\| [67]\.\d.*$", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_every_test_that_the_readme_names_is_there() -> None:
    named = set(_NAME.findall((ROOT / "README.md").read_text()))
    files = (ROOT / "tests").rglob("test_*.py")
    defined = {name for file in files for name in re.findall(r"def (test_\w+)\(", file.read_text())}
    assert named
    assert named - defined == set()


def test_the_readme_answers_each_requirement_of_the_asvs_once() -> None:
    answered = Counter(
        (int(chapter), int(section), number)
        for row in rows()
        for chapter, section, first, last in _NUMBERS.findall(row.split("|")[1])
        for number in range(int(first), int(last or first) + 1)
    )
    assert answered == Counter(
        (chapter, section, number)
        for chapter, sections in REQUIREMENTS.items()
        for section, most in enumerate(sections, 1)
        for number in range(1, most + 1)
    )
