"""The requests and responses of the task routes, as the OpenAPI document shows them."""

from datetime import datetime
from typing import Annotated, Literal, Self

import msgspec
from pydantic import MISSING, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from backend.web.text import Line, Paragraph

MAX_PAGE = 1000

Status = Literal["all", "pending", "completed"]
Sort = Literal["created", "title"]
Order = Literal["asc", "desc"]

Title = Annotated[Line, Field(examples=["Buy milk"])]
Description = Annotated[Paragraph, Field(examples=["Two litres"])]


class TaskCreate(BaseModel):
    """A new task."""

    model_config = ConfigDict(strict=True)

    title: Title
    description: Annotated[Description | None, Field(examples=["Two litres"])] = None
    completed: bool = Field(default=False, description="`false` if it is not sent", examples=[False])


class TaskUpdate(BaseModel):
    """Changes to a task: at least one field. Fields that are not sent stay; `description: null` clears it."""

    model_config = ConfigDict(strict=True, json_schema_extra={"minProperties": 1})

    title: Title | MISSING = MISSING
    description: Annotated[Description | MISSING | None, Field(examples=["Two litres"])] = MISSING
    completed: Annotated[bool | MISSING, Field(examples=[True])] = MISSING

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_fields_set:
            kind, message = "nothing_to_change", "Send at least one field to change"
            raise PydanticCustomError(kind, message)
        return self


class TaskRead(BaseModel):
    """A task."""

    id: int = Field(json_schema_extra={"format": "int64"}, examples=[1])
    user_id: str = Field(examples=["01a1f95c-de9c-72e4-af2f-cb076b07b635"])
    title: str = Field(examples=["Buy milk"])
    description: str | None = Field(examples=["Two litres"])
    completed: bool = Field(examples=[False])
    created_at: datetime = Field(examples=["2026-11-20T09:30:00Z"])
    updated_at: datetime = Field(
        description="The time of the last change of a value", examples=["2026-11-20T09:45:00Z"]
    )


TaskRow = msgspec.defstruct("TaskRow", TaskRead.model_fields, gc=False)
"""A task's row for JSON. A struct takes a third of a dict's time to create and to encode."""


def _digits(value: object) -> object:
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        kind, message = "int_parsing", "Input should be a whole number"
        raise PydanticCustomError(kind, message)
    return value


class TaskQuery(BaseModel):
    """A query for a list of tasks: a filter, an order and a page."""

    model_config = ConfigDict(frozen=True)

    status: Status = Field(default="all", description="Only tasks still to do, or only done ones")
    sort: Sort = Field(default="created", description="By creation, or by title without regard to case")
    order: Order = Field(
        default="asc", description="Ascending or descending; ties are ordered by id in the same direction"
    )
    limit: Annotated[int, BeforeValidator(_digits)] = Field(
        default=MAX_PAGE,
        ge=1,
        le=MAX_PAGE,
        description="The most tasks in the answer; if more follow, `Link` leads to them",
    )
    cursor: str = Field(
        default="",
        description="The next page's position, from the last answer's `Link`; empty is the beginning",
    )
