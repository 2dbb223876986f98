"""The client's types match the OpenAPI document, and `tsc --strict` compiles programs that use them."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.browser.client_types import COMMAND, HERE, TYPES, program, renewed
from tests.service import Service

STRICT = ("--strict", "--noEmit", "--module", "esnext", "--moduleResolution", "bundler")
ES2022 = ("--target", "es2022", "--lib", "es2022,dom,dom.asynciterable")
FILES = {"tasks-api.js": "text/javascript", "tasks-api.d.ts": "application/typescript"}


@pytest.fixture
def served(service: Service, tmp_path: Path) -> Path:
    """A directory with what the service serves under `/client/`."""
    for name in FILES:
        (tmp_path / name).write_text(service.client().get(f"/client/{name}").text)
    return tmp_path


def complaints(name: str, directory: Path) -> list[str]:
    """Return what `tsc --strict` finds in one of the programs here, a line for each error."""
    (directory / name).write_text((HERE / name).read_text())
    command = [str(program("tsc")), *STRICT, *ES2022, name]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if not line.startswith(" ")]


def test_the_types_are_those_of_the_document() -> None:
    assert TYPES.read_text() == renewed(), f"renew them by `{COMMAND}`"


def test_a_program_that_uses_every_export_compiles(served: Path) -> None:
    exports = r"^export (?:async )?(?:const|function\*?|class|type|interface) (\w+)"
    values = re.findall(exports, (served / "tasks-api.js").read_text(), re.MULTILINE)
    head = (served / "tasks-api.d.ts").read_text().partition(COMMAND)[0]
    declared = re.findall(exports, head, re.MULTILINE)
    assert set(values) < set(declared)
    used = set(re.findall(r"\w+", (HERE / "right.ts").read_text().partition("} from")[0]))
    assert set(declared) <= used
    assert complaints("right.ts", served) == []


def test_a_program_that_is_wrong_does_not_compile(served: Path) -> None:
    lines = (HERE / "wrong.ts").read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("// wrong")}
    found = complaints("wrong.ts", served)
    assert {int(number) for line in found for number in re.findall(r"^wrong\.ts\((\d+),", line)} == wrong
    assert all(line.startswith("wrong.ts(") for line in found)


def test_the_module_needs_no_other(served: Path) -> None:
    assert not re.search(r"\bimport\b(?!\.meta\.url)", (served / "tasks-api.js").read_text())


@pytest.mark.parametrize(("name", "media_type"), FILES.items())
def test_the_client_is_served_with_an_etag_and_a_cache_life(
    service: Service, name: str, media_type: str
) -> None:
    client, url = service.client(), f"/client/{name}"
    answer = client.get(url)
    assert answer.headers["Content-Type"].partition(";")[0] == media_type
    assert answer.headers["Cache-Control"] == "public, max-age=3600"
    tag = answer.headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(url, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
