"""The errors of the task routes."""

from backend.web.errors import AppError


class TaskNotFoundError(AppError):
    """The caller has no task with this id."""

    status = 404
    code = "task_not_found"
    detail = "Task not found"


class ConcealedTaskError(TaskNotFoundError):
    """The task exists and is another user's, which the log tells and the response does not."""

    is_denial = True


class TaskForbiddenError(AppError):
    """The task exists and is another user's."""

    is_denial = True
    status = 403
    code = "task_forbidden"
    detail = "This task belongs to somebody else"


class IdempotencyKeyReusedError(AppError):
    """The user has created a task with this key and another body."""

    status = 409
    code = "idempotency_key_reused"
    detail = "This Idempotency-Key was sent before with another body"


class PreconditionFailedError(AppError):
    """The task has changed since the client read it (RFC 9110 section 15.5.13)."""

    status = 412
    code = "precondition_failed"
    detail = "The task has changed meanwhile: read it again"
