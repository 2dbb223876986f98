"""Every statement of the service, with values that it can be planned with."""

import pkgutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any
from uuid import UUID

import backend
from backend.database import Statement
from backend.tasks.statements import update_values

_MOMENT = datetime(2026, 1, 2, tzinfo=UTC)
_SESSION = UUID(int=7)
_TEXTS = (
    *("caller_id", "user_id", "issuer", "email", "email_key", "new_email", "name", "new_name", "part"),
    *("password_hash", "old_hash", "new_hash", "address", "user_agent", "ip", "kind", "purpose"),
    *("title", "title_key", "description", "idempotency_key", "after_key"),
)
_DIGESTS = ("digest", "spent_digest", "refresh_digest", "idempotency_digest")

VALUES: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, "ada"),
    **dict.fromkeys(_DIGESTS, b"digest"),
    **dict.fromkeys(("caller_session", "session_id"), _SESSION),
    **dict.fromkeys(("session_life", "session_idle_life", "first_pause"), timedelta(days=30)),
    **dict.fromkeys(
        ("uses_cookie", "completed", "unverified", "disabled", "was_mailed", "is_dropped"), False
    ),
    **dict.fromkeys(("task_id", "after_id", "row_limit", "limit", "id"), 7),
    **update_values({"title": "Buy milk", "title_key": "buy milk"}),
    "caller_issuer": "local",
    "created_at": _MOMENT,
    "expected": None,
}
"""A value for each name that a statement takes; a new name is added here."""


def all_statements() -> Iterator[tuple[str, Statement]]:
    """Yield each statement of the modules of `backend`, with its name there; a table's have its keys too."""
    for module in pkgutil.walk_packages(backend.__path__, "backend."):
        if module.name.endswith("statements"):
            for name, value in vars(import_module(module.name)).items():
                yield from _named(f"{module.name.removeprefix('backend.')}.{name}", value)


def _named(name: str, value: object) -> Iterator[tuple[str, Statement]]:
    if isinstance(value, Statement):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _named(f"{name}-{key}", inner)


def values_of(name: str, statement: Statement) -> list[Any]:
    """Return the values of the statement of this name, in its order."""
    moment = {"after_key": _MOMENT} if "'created'" in name else {}
    return statement.arguments(VALUES | moment)
