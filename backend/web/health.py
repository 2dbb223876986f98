"""Routes for probes and scrapers: liveness, readiness and metrics."""

import hmac
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from sqlalchemy import literal, select
from starlette.requests import Request
from starlette.responses import Response

from backend.database import Statement
from backend.telemetry import metrics
from backend.web.bearer import InvalidTokenError, bearer_token
from backend.web.database import DatabaseDep
from backend.web.error_documentation import raises
from backend.web.errors import ShuttingDownError
from backend.web.json_response import Answer
from backend.web.routing import Route

PING = Statement(select(literal(1)))

router = APIRouter(tags=["service"], route_class=Route)


class Health(BaseModel):
    """The service answers."""

    status: Literal["ok"]


@router.get("/health", response_model=Health, summary="Is the process alive?")
async def health() -> Answer:
    """Answer 200 while the process serves. The database is not asked, so that a serverless one can sleep."""
    return Answer({"status": "ok"})


async def admit_scraper(request: Request) -> None:
    """Check the bearer token if `METRICS_TOKEN` is set; raises `UnauthorizedError`."""
    wanted = request.app.state.settings.metrics_token
    if wanted is None:
        return
    sent = bearer_token(request).encode("latin-1")
    if not hmac.compare_digest(sent, wanted.get_secret_value().encode()):
        raise InvalidTokenError(reason="metrics_token")


ScraperDep = Annotated[None, Depends(admit_scraper)]


@router.get("/health/ready", response_model=Health, summary="Can the service work?")
@raises(ShuttingDownError)
async def ready(database: DatabaseDep, request: Request) -> Answer:
    """Answer 200 if the database answers, else 503. From SIGTERM on 503, so that proxies send no more."""
    if request.app.state.drain.is_draining:
        raise ShuttingDownError
    await database.one(PING)
    return Answer({"status": "ok"})


@router.get(
    "/metrics",
    summary="What has the service done?",
    response_class=Response,  # with that of plain text, FastAPI would document errors in plain text
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def read_metrics(_: ScraperDep, request: Request) -> Response:
    """Return the metrics of all workers in Prometheus' text format.

    Where the service has a `METRICS_TOKEN`, that is needed as a bearer token; else the answer is 401.
    """
    request.app.state.gauge()
    text, content_type = await metrics.exposition()
    return Response(text, headers={"Content-Type": content_type})
