"""Writes the part of the client's types that `openapi-typescript` makes; needs Node.js and npm."""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from tests.npm import installed
from tests.service import ROOT

HERE: Final = Path(__file__).parent
TYPES: Final = ROOT / "backend" / "web" / "client" / "tasks-api.d.ts"
COMMAND: Final = "python -m tests.browser.client_types"


def renewed() -> str:
    """Return the types with the part below the marker made anew from the OpenAPI document."""
    text = TYPES.read_text()
    ours = text[: text.index("\n", text.index(f"`{COMMAND}`")) + 1]
    return ours + _made(re.findall(r'Schemas\["(\w+)"\]', ours))


def _made(names: list[str]) -> str:
    document = json.loads((ROOT / "backend" / "openapi.json").read_text())
    schemas = _needed(document["components"]["schemas"], names)
    with tempfile.TemporaryDirectory() as directory:
        source, made = Path(directory, "openapi.json"), Path(directory, "made.d.ts")
        source.write_text(json.dumps({**document, "paths": {}, "components": {"schemas": schemas}}))
        subprocess.run([program("openapi-typescript"), source, "-o", made], check=True, capture_output=True)
        return made.read_text()


def _needed(schemas: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the schemas of these names, with those that they refer to."""
    needed: dict[str, Any] = {}
    while names:
        name = names.pop()
        needed[name] = schemas[name]
        names += {*re.findall(r"#/components/schemas/(\w+)", json.dumps(schemas[name]))} - needed.keys()
    return dict(sorted(needed.items()))


def program(name: str) -> Path:
    """Return one of the programs of this directory's lock file."""
    return installed(HERE) / ".bin" / name


if __name__ == "__main__":
    TYPES.write_text(renewed())
