"""Records the tasks of one user from the service's responses; a check compares them with a list.

A write without an answer happened once or not at all. The user never touches its task again, so that it
has two possible states for ever.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.operations.soak.journal import UnansweredError

Task = dict[str, Any]


@dataclass
class Books:
    """The tasks of one user."""

    user_id: str
    tasks: dict[int, Task] = field(default_factory=dict)
    """The tasks by id, as their last responses had them."""
    _in_doubt: dict[int, list[Task | None]] = field(default_factory=dict)
    """The possible states of uncertain tasks, by id. None means that the task may be deleted."""
    _perhaps_created: dict[str, Task] = field(default_factory=dict)
    """The sent fields of creations without a response, by their unique titles."""

    @contextmanager
    def creating(self, sent: Task) -> Iterator[None]:
        """Record a possible creation when the block raises `UnansweredError`."""
        try:
            yield
        except UnansweredError:
            self._perhaps_created[sent["title"]] = sent
            raise

    @contextmanager
    def writing(self, task_id: int, changes: Task | None) -> Iterator[None]:
        """Record a possible change, or deletion (None), when the block raises `UnansweredError`."""
        try:
            yield
        except UnansweredError:
            before = self.tasks.pop(task_id)
            self._in_doubt[task_id] = [before, None if changes is None else before | changes]
            raise

    def problems(self, found: list[Task]) -> Iterator[str]:
        """Yield each difference between the tasks found for the user and the books."""
        by_id = {task["id"]: task for task in found}
        if len(by_id) < len(found):
            yield "a task is there twice"
        for task in found:
            if task["user_id"] != self.user_id:
                yield f"somebody else's task: {task}"
        for task_id, task in self.tasks.items():
            if by_id.get(task_id) != task:
                yield f"{by_id.get(task_id)} is not as acknowledged: {task}"
        for task_id, states in self._in_doubt.items():
            if _content(by_id.get(task_id)) not in map(_content, states):
                yield f"{by_id.get(task_id)} is none of {states}"
        yield from self._problems_of_others(
            [task for task in found if task["id"] not in self.tasks.keys() | self._in_doubt.keys()]
        )

    def _problems_of_others(self, found: list[Task]) -> Iterator[str]:
        for title, times in Counter(task["title"] for task in found).items():
            if times > 1:
                yield f"what was sent once is there {times} times: {title}"
        for task in found:
            sent = self._perhaps_created.get(task["title"])
            if sent is None or _content(task) != _content(sent):
                yield f"never sent, or acknowledged as deleted: {task}"


def _content(task: Task | None) -> Task | None:
    """Return the fields that the user sets, because the time of an unanswered write is unknown."""
    return task and {name: task[name] for name in ("title", "description", "completed")}
