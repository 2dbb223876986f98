"""The events of a request: code records one where it happens, and the middleware logs them at the end.

Names are static and fields are plain values, so that no input can change the shape of the log.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256

from loguru import logger


class Event(StrEnum):
    """The names of events in the log."""

    REGISTERED = "auth.registered"
    LOGIN = "auth.login"
    LOGIN_FAILED = "auth.login_failed"
    REFRESHED = "auth.refreshed"
    REFRESH_REUSED = "auth.refresh_reused"
    LOGOUT = "auth.logout"
    SESSION_REVOKED = "auth.session_revoked"
    PASSWORD_CHANGED = "auth.password_changed"  # noqa: S105
    PASSWORD_RESET = "auth.password_reset"  # noqa: S105
    EMAIL_VERIFIED = "auth.email_verified"
    EMAIL_CHANGED = "auth.email_changed"
    ACCOUNT_DELETED = "auth.account_deleted"
    ACCOUNT_DISABLED = "auth.account_disabled"
    ACCOUNT_ENABLED = "auth.account_enabled"
    MAIL_SENT = "mail.sent"
    MAIL_FAILED = "mail.failed"
    DENIED = "auth.denied"
    RATE_LIMITED = "auth.rate_limited"
    TASK_CREATED = "task.created"
    TASK_UPDATED = "task.updated"
    TASK_COMPLETED = "task.completed"
    TASK_REOPENED = "task.reopened"
    TASK_DELETED = "task.deleted"


@dataclass(slots=True)
class RequestRecord:
    """The fields of one request that its log lines need."""

    request_id: str
    user_id: str | None = None
    events: list[tuple[Event, dict[str, object]]] = field(default_factory=list)


_current: ContextVar[RequestRecord] = ContextVar("request_record")


def begin(request_id: str) -> RequestRecord:
    """Return a new record, which becomes the record of the current asyncio task."""
    new = RequestRecord(request_id)
    _current.set(new)
    return new


def record(event: Event, **fields: object) -> None:
    """Add an event to the current request; a field `level` replaces the event's usual level."""
    _current.get().events.append((event, fields))


def write(event: Event, user_id: str | None, *, level: str = "INFO", **fields: object) -> None:
    """Write the line of an event that belongs to no request."""
    unknown = dict.fromkeys(("request_id", "ip", "method", "route", "status", "duration_ms"))
    shown_id = None if user_id is None else logged_id(user_id)
    logger.bind(**unknown, user_id=shown_id, **fields).log(level, event.value)


def identify(user_id: str) -> None:
    """Set the user of the current request, in the form of `logged_id`."""
    _current.get().user_id = logged_id(user_id)


def logged_id(user_id: str) -> str:
    """Return the id for the log: a hash if it holds an email, because some issuers use emails as ids."""
    return f"sha256:{sha256(user_id.encode()).hexdigest()[:16]}" if "@" in user_id else user_id


def request_id() -> str:
    """Return the id of the current request, which its response and its log lines carry."""
    return _current.get().request_id
