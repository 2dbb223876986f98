"""A typical FastAPI application: an ORM session and a query for the user per request, `response_model`."""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any

import asyncpg
import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from backend.auth.models import User
from backend.database.url import connect_arguments
from backend.tasks.models import Task
from backend.tasks.schemas import TaskRead

app = FastAPI()
app.add_middleware(
    CORSMiddleware, allow_origins=["http://localhost:3000"], allow_methods=["*"], allow_headers=["*"]
)
engine = create_async_engine(
    "postgresql+asyncpg://",
    async_creator=lambda: asyncpg.connect(**connect_arguments(os.environ["DATABASE_URL"])),
    pool_size=10,
)


class TaskCreate(BaseModel):
    """A new task."""

    title: str = Field(min_length=1, max_length=200)
    description: str | None = Field(default=None, max_length=1000)
    completed: bool = False


class TaskUpdate(BaseModel):
    """Changes to a task."""

    title: str | None = Field(default=None, min_length=1, max_length=200)
    description: str | None = Field(default=None, max_length=1000)
    completed: bool | None = None


async def get_session() -> AsyncIterator[AsyncSession]:
    """Open a session for one request."""
    async with AsyncSession(engine) as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]
TokenDep = Annotated[str, Depends(OAuth2PasswordBearer("auth/token"))]


async def get_current_user(session: SessionDep, token: TokenDep) -> User:
    """Return the user of the token."""
    try:
        claims = jwt.decode(
            token,
            os.environ["JWT_SECRET"],
            algorithms=["HS256"],
            audience="tasks-api",
            issuer="tasks-api",
        )
    except jwt.PyJWTError:
        raise HTTPException(401, "Could not validate credentials") from None
    user = await session.get(User, claims["sub"])
    if user is None:
        raise HTTPException(401, "Could not validate credentials")
    return user


UserDep = Annotated[User, Depends(get_current_user)]


async def _task(session: AsyncSession, user: User, task_id: int) -> Task:
    task = await session.get(Task, (task_id, user.id))
    if task is None:
        raise HTTPException(404, "Task not found")
    return task


@app.get("/tasks", response_model=list[TaskRead])
async def list_tasks(session: SessionDep, user: UserDep, limit: int = 1000, offset: int = 0) -> Any:
    """List."""
    mine = select(Task).where(Task.user_id == user.id).order_by(col(Task.created_at), col(Task.id))
    return (await session.exec(mine.offset(offset).limit(limit))).all()


@app.post("/tasks", status_code=201, response_model=TaskRead)
async def create_task(session: SessionDep, user: UserDep, data: TaskCreate) -> Any:
    """Create."""
    now = datetime.now(UTC)
    own: dict[str, Any] = {"user_id": user.id, "title_key": data.title.casefold()}
    return await _save(session, Task(**data.model_dump(), **own, created_at=now, updated_at=now))


@app.get("/tasks/{task_id}", response_model=TaskRead)
async def read_task(session: SessionDep, user: UserDep, task_id: int) -> Any:
    """Read."""
    return await _task(session, user, task_id)


@app.put("/tasks/{task_id}", response_model=TaskRead)
async def update_task(session: SessionDep, user: UserDep, task_id: int, data: TaskUpdate) -> Any:
    """Change."""
    task = await _task(session, user, task_id)
    task.sqlmodel_update(data.model_dump(exclude_unset=True))
    task.title_key = task.title.casefold()
    task.updated_at = datetime.now(UTC)
    return await _save(session, task)


@app.patch("/tasks/{task_id}/complete", response_model=TaskRead)
async def toggle_task(session: SessionDep, user: UserDep, task_id: int) -> Any:
    """Toggle."""
    task = await _task(session, user, task_id)
    task.completed = not task.completed
    task.updated_at = datetime.now(UTC)
    return await _save(session, task)


async def _save(session: AsyncSession, task: Task) -> Task:
    session.add(task)
    await session.commit()
    await session.refresh(task)
    return task
