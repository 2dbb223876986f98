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
