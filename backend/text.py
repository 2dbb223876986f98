"""The text that users may store: kept as it is sent, with nothing in it that a terminal would obey."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

MAX_LINE_CHARACTERS = 200
MAX_PARAGRAPH_CHARACTERS = 1000

_CONTROL_CHARACTERS = r"\u0000-\u001f\u007f-\u009f"
_CONTROL_BUT_LINE_CHARACTERS = r"\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f"
_CONTROL = re.compile(f"[{_CONTROL_CHARACTERS}]")
_CONTROL_BUT_LINES = re.compile(f"[{_CONTROL_BUT_LINE_CHARACTERS}]")
# For the OpenAPI document alone: what is wrong is told in words, by the validators.
_LINE = rf"^[^{_CONTROL_CHARACTERS}]*[^\s{_CONTROL_CHARACTERS}][^{_CONTROL_CHARACTERS}]*$"
_PARAGRAPH = f"^[^{_CONTROL_BUT_LINE_CHARACTERS}]*$"


def _refuse_control(pattern: re.Pattern[str], value: object) -> object:
    if isinstance(value, str) and pattern.search(value):
        kind, message = "control_character", "Control characters are not allowed"
        raise PydanticCustomError(kind, message)
    return value


def _refuse_all_control(value: object) -> object:
    return _refuse_control(_CONTROL, value)


def _refuse_control_but_lines(value: str) -> str:
    _refuse_control(_CONTROL_BUT_LINES, value)
    return value


UnicodeText = Annotated[str, Field(min_length=0)]
"""Any text but lone surrogates, which pydantic finds only where it has a length to check."""

Line = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_LINE_CHARACTERS),
    # The last of them goes first: trimming would swallow a tab or a line feed at either end.
    BeforeValidator(_refuse_all_control),
    Field(json_schema_extra={"pattern": _LINE}),
]
"""A title or a name: 1 to 200 code points after trimming."""

Paragraph = Annotated[
    str,
    Field(max_length=MAX_PARAGRAPH_CHARACTERS, json_schema_extra={"pattern": _PARAGRAPH}),
    AfterValidator(_refuse_control_but_lines),
]
"""A description: at most 1000 code points; tab, LF and CR are fine."""
