"""Every table of the service, so that Alembic sees them all."""

from backend.auth.models import KnownAddress, RefreshToken, Session, User
from backend.auth.mail.models import MailToken, OutboxMail
from backend.tasks.models import Task

__all__ = ["KnownAddress", "MailToken", "OutboxMail", "RefreshToken", "Session", "Task", "User"]
