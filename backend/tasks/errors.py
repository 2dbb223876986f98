"""The refusals of the task routes."""

from backend.web.errors import AppError, FieldError, InvalidRequestError


class TaskNotFoundError(AppError):
    """No task has this id, or none that the surface may speak of."""

    status = 404
    code = "task_not_found"
    detail = "Task not found"


class ConcealedTaskError(TaskNotFoundError):
    """The task exists and is another user's, which the surface does not tell; the log does."""

    is_denial = True


class TaskForbiddenError(AppError):
    """The task exists and is another user's."""

    is_denial = True
    status = 403
    code = "task_forbidden"
    detail = "This task belongs to somebody else"


class InvalidCursorError(InvalidRequestError):
    """The cursor is not ours, or is for another user, sort or order."""

    def __init__(self) -> None:
        super().__init__(
            [FieldError(field="cursor", message="This cursor is not for this list", type="cursor_invalid")]
        )


class InvalidIdempotencyKeyError(InvalidRequestError):
    """The `Idempotency-Key` is empty, too long, or has other characters than visible ASCII."""

    def __init__(self) -> None:
        message = "Send 1 to 255 visible ASCII characters"
        super().__init__(
            [FieldError(field="Idempotency-Key", message=message, type="idempotency_key_invalid")]
        )


class IdempotencyKeyReusedError(AppError):
    """A task of the user's was created with this key and another body."""

    status = 409
    code = "idempotency_key_reused"
    detail = "This Idempotency-Key was sent before with another body"


class PreconditionFailedError(AppError):
    """The task has changed since the client saw it (RFC 9110 section 15.5.13)."""

    status = 412
    code = "precondition_failed"
    detail = "The task has changed meanwhile: read it again"
