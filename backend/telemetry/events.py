"""What happened during a request, recorded where it happens and written by the middleware at the end.

Names are static and fields are plain values, so that no input can change the shape of the log.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256

from loguru import logger


class Event(StrEnum):
    """The events that the log tells of."""

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
    """One request as the log will tell it."""

    request_id: str
    user_id: str | None = None
    events: list[tuple[Event, dict[str, object]]] = field(default_factory=list)


_current: ContextVar[RequestRecord] = ContextVar("request_record")


def begin(request_id: str) -> RequestRecord:
    """Open the record of the request that the current task serves."""
    record_ = RequestRecord(request_id)
    _current.set(record_)
    return record_


def record(event: Event, **fields: object) -> None:
    """Note that `event` happened; it is logged once the final status is known.

    A field `level` stands instead of the level that such an event has by itself.
    """
    _current.get().events.append((event, fields))


def write(event: Event, user_id: str | None, *, level: str = "INFO", **fields: object) -> None:
    """Write the line of an event that belongs to no request."""
    unknown = dict.fromkeys(("request_id", "ip", "method", "route", "status", "duration_ms"))
    shown_id = None if user_id is None else logged_id(user_id)
    logger.bind(**unknown, user_id=shown_id, **fields).log(level, event.value)


def identify(user_id: str) -> None:
    """Note whose request this is, as `logged_id` has it."""
    _current.get().user_id = logged_id(user_id)


def logged_id(user_id: str) -> str:
    """Return the id as logs have it: a hash, where an issuer names users by email."""
    return f"sha256:{sha256(user_id.encode()).hexdigest()[:16]}" if "@" in user_id else user_id


def request_id() -> str:
    """Return the id that the answer and the log lines of this request carry."""
    return _current.get().request_id
