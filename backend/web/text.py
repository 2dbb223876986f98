"""Types for text that users store. It is kept as sent; control characters are refused."""

import re
from functools import partial
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

MAX_LINE_CHARACTERS = 200
MAX_PARAGRAPH_CHARACTERS = 1000

_WHITE_SPACE = r"\u0009-\u000d\u001c-\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""The characters that `str.strip` removes."""
_CONTROL_CHARACTERS = r"\u0000-\u001f\u007f-\u009f"
_CONTROL_BUT_LINE_CHARACTERS = r"\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f"
_CONTROL = re.compile(f"[{_CONTROL_CHARACTERS}]")
_CONTROL_BUT_LINES = re.compile(f"[{_CONTROL_BUT_LINE_CHARACTERS}]")
# Patterns for the OpenAPI document alone, because the validators have clearer messages.
_END = f"[^{_WHITE_SPACE}{_CONTROL_CHARACTERS}]"
_LINE = f"^[{_WHITE_SPACE}]*{_END}([^{_CONTROL_CHARACTERS}]*{_END})?[{_WHITE_SPACE}]*$"
_PARAGRAPH = f"^[^{_CONTROL_BUT_LINE_CHARACTERS}]*$"


def trim(value: object) -> object:
    """Return a string without white space at both ends; return any other value as it is."""
    return value.strip() if isinstance(value, str) else value


def _refuse_control(pattern: re.Pattern[str], value: str) -> str:
    if pattern.search(value):
        kind, message = "control_character", "Control characters are not allowed"
        raise PydanticCustomError(kind, message)
    return value


UnicodeText = Annotated[str, Field(min_length=0)]
"""A string without lone surrogates. Pydantic looks for them only where it checks a length."""

Line = Annotated[
    str,
    Field(min_length=1, max_length=MAX_LINE_CHARACTERS, json_schema_extra={"pattern": _LINE}),
    BeforeValidator(trim),
    AfterValidator(partial(_refuse_control, _CONTROL)),
]
"""A title or a name: 1 to 200 code points after trimming, without control characters."""

Paragraph = Annotated[
    str,
    Field(max_length=MAX_PARAGRAPH_CHARACTERS, json_schema_extra={"pattern": _PARAGRAPH}),
    AfterValidator(partial(_refuse_control, _CONTROL_BUT_LINES)),
]
"""A description: at most 1000 code points, without control characters but tab, LF and CR."""
