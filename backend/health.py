"""Whether the process serves, whether it can work, and what it has done: for probes and scrapers."""

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from sqlalchemy import literal, select
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from backend import metrics
from backend.answer import Answer
from backend.database import Statement
from backend.database.dependencies import DatabaseDep
from backend.drain import Drain
from backend.error_answers import raises
from backend.errors import ShuttingDownError
from backend.routing import Route

PING = Statement(select(literal(1)))

router = APIRouter(tags=["service"], route_class=Route)


class Health(BaseModel):
    """The service answers."""

    status: Literal["ok"]


@router.get("/health", response_model=Health, summary="Is the process alive?")
async def health() -> Answer:
    """Answer while the process serves; never asks the database, so that a serverless one can sleep."""
    return Answer({"status": "ok"})


async def get_drain(request: Request) -> Drain:
    """Return what tells whether this process is about to end."""
    return request.app.state.drain  # type: ignore[no-any-return]  # Starlette's state is untyped


async def get_gauge(request: Request) -> Callable[[], None]:
    """Return what sets the gauges of this process."""
    return request.app.state.gauge  # type: ignore[no-any-return]  # Starlette's state is untyped


GaugeDep = Annotated[Callable[[], None], Depends(get_gauge)]
DrainDep = Annotated[Drain, Depends(get_drain)]


@router.get("/health/ready", response_model=Health, summary="Can the service work?")
@raises(ShuttingDownError)
async def ready(database: DatabaseDep, drain: DrainDep) -> Answer:
    """Answer 200 when the database answers, else 503; from SIGTERM on 503, so that a proxy sends nobody."""
    if drain.is_draining:
        raise ShuttingDownError
    await database.one(PING)
    return Answer({"status": "ok"})


@router.get(
    "/metrics", summary="What has the service done?", response_model=None, response_class=PlainTextResponse
)
async def read_metrics(gauge: GaugeDep) -> Response:
    """Return what all workers have done and are doing, in Prometheus' text format."""
    gauge()
    text, content_type = metrics.exposition()
    return Response(text, headers={"Content-Type": content_type})
