"""Whether the process serves, whether it can work, and what it has done: for probes and scrapers."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import literal, select
from starlette.responses import PlainTextResponse

from backend import metrics
from backend.database import Statement
from backend.database.dependencies import DatabaseDep
from backend.routing import Answer, Route

PING = Statement(select(literal(1)))

router = APIRouter(tags=["service"], route_class=Route)


class Health(BaseModel):
    """The service answers."""

    status: Literal["ok"]


@router.get("/health", response_model=Health, summary="Is the process alive?")
async def health() -> dict[str, str]:
    """Answer while the process serves; never asks the database, so that a serverless one can sleep."""
    return {"status": "ok"}


@router.get("/health/ready", response_model=Health, summary="Can the service work?")
async def ready(database: DatabaseDep) -> dict[str, str]:
    """Answer 200 when the database answers, else 503."""
    await database.one(PING)
    return {"status": "ok"}


@router.get(
    "/metrics", summary="What has the process done?", response_model=None, response_class=PlainTextResponse
)
async def read_metrics() -> Answer:
    """Return counters and durations by route template, in Prometheus' text format."""
    text, content_type = metrics.exposition()
    return Answer(text, [(b"content-type", content_type.encode())])
