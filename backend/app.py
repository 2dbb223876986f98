"""The application: `create_app` makes its parts and connects them."""

import asyncio
import gc
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.telemetry import TelemetryConfig
from loguru import logger
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from backend.auth import router as auth_router
from backend.auth.mail import router as mail_router
from backend.auth.sessions.service import SignIn
from backend.auth.tokens.authentication import Authenticator
from backend.database import Database
from backend.settings import Settings, load_settings
from backend.tasks.paging import Cursors
from backend.tasks.router import task_router
from backend.telemetry import logs, metrics
from backend.web import health
from backend.web.client import add_client
from backend.web.docs import add_docs
from backend.web.drain import Drain
from backend.web.error_responses import handle_error
from backend.web.errors import SELF_CONTAINED, USER_SCOPED
from backend.web.middleware import Boundary
from backend.web.pages import add_pages
from backend.web.proxies import Proxies
from backend.web.routing import Route, literal_first

VERSION = "1.0.0"
DESCRIPTION = """
Sign in and keep tasks. Register or sign in under `/auth`, then send `Authorization: Bearer <access_token>`.

Every error has one shape: `status_code`, `detail` for a person, `code` for a program, `request_id`,
and `errors` with the fields that are wrong where the request is not valid.
"""
LICENCE = {"name": "All rights reserved", "identifier": "LicenseRef-All-rights-reserved"}
"""The repository has no licence; OpenAPI 3.1 requires an SPDX expression as identifier."""
CONTACT = {"name": "The operator of this server"}
TAGS = [
    {"name": "auth", "description": "Accounts, sign-in and the profile"},
    {"name": "tasks", "description": "Your own tasks, for clients that sign in here"},
    {"name": "tasks of a user", "description": "The same tasks, for front ends that sign in elsewhere"},
    {"name": "service", "description": "For probes and scrapers"},
]


class _Application(FastAPI):
    """FastAPI without its own middleware if no route needs it, because that costs each request 4 %."""

    def build_middleware_stack(self) -> ASGIApp:
        """Order the routes, and return the middleware around them; the last one added is outermost."""
        routes = self.router.routes = literal_first(self.router.routes)
        stack: ASGIApp = self.router
        if not all(isinstance(route, Route) and not route.oddities for route in routes):
            stack = AsyncExitStackMiddleware(stack)
        if self.exception_handlers:  # `Boundary` answers exceptions that have no handler
            stack = ExceptionMiddleware(
                stack, handlers={HTTPException: handle_error, **self.exception_handlers}
            )
        for middleware in reversed(self.user_middleware):
            stack = middleware.cls(stack, *middleware.args, **middleware.kwargs)
        return stack


def _telemetry(settings: Settings) -> TelemetryConfig:
    """Return FastAPI's settings of OpenTelemetry: spans if a collector is configured.

    It exports no log records, because they hold messages of exceptions, which may quote a client's input.
    """
    endpoint = settings.otel_exporter_otlp_endpoint
    if endpoint is not None:
        os.environ.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)  # which does not read .env
        os.environ.setdefault("OTEL_SERVICE_NAME", "tasks-api")
    return {
        "tracing": endpoint is not None,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": endpoint is not None,
    }


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application for `settings`, by default those of the environment; raises `SettingsError`."""
    settings = settings or load_settings()
    app = _Application(
        title="Tasks API",
        version=VERSION,
        description=DESCRIPTION,
        license_info=LICENCE,
        contact=CONTACT,
        openapi_tags=TAGS,
        lifespan=_lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        telemetry=_telemetry(settings),
    )
    app.router.route_class = Route
    app.exception_handlers.clear()  # removes FastAPI's, whose answers have another shape
    app.state.settings = settings
    app.state.drain = Drain(
        longest_seconds=min(settings.shutdown_drain_seconds, settings.shutdown_grace_seconds)
    )
    app.state.sign_in = SignIn(settings)
    app.state.gauge = partial(_gauge, app)
    app.state.authenticator = Authenticator(settings, app.state.sign_in.access_tokens)
    app.state.cursors = Cursors(settings)
    own_tasks = replace(SELF_CONTAINED, foreign_task=None if settings.conceal_foreign_tasks else 403)
    for router in (
        task_router("/tasks", own_tasks),
        task_router("/api/{user_id}/tasks", USER_SCOPED, " of a user"),
        auth_router.router,
        auth_router.token_router,
        mail_router.router,
        health.router,
    ):
        # They become routes of the application, because an included router costs 20 % more instructions.
        app.router.routes.extend(router.routes)
    add_docs(app)
    add_pages(app)
    add_client(app)
    log = logs.configure(settings.log_format)
    app.add_middleware(Boundary, log=log, drain=app.state.drain, origins=settings.cors_origins)
    app.add_middleware(Proxies, trusted=settings.forwarded_allow_ips)
    return app


@contextmanager
def _ending_with_its_parent() -> Iterator[None]:
    """Stop this worker process when its parent process is gone, however that ended."""
    parent, loop = multiprocessing.parent_process(), asyncio.get_running_loop()
    if parent is None:
        yield
        return

    def stop() -> None:
        loop.remove_reader(parent.sentinel)
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(parent.sentinel, stop)
    yield
    loop.remove_reader(parent.sentinel)


@contextmanager
def _in_background(work: Coroutine[Any, Any, None]) -> Iterator[None]:
    """Run `work` until the block ends."""
    task = asyncio.create_task(work)
    yield
    task.cancel()


def _gauge(app: FastAPI) -> None:
    """Set the gauges of this process to their current values."""
    metrics.REQUESTS_UNDER_WAY.set(app.state.drain.under_way)
    metrics.POOL_IN_USE.set(app.state.database.pool.in_use)
    metrics.POOL_WAITING.set(app.state.database.pool.waiting)
    metrics.HASHES_WAITING.set(app.state.sign_in.hasher.waiting)


async def _sample(app: FastAPI) -> None:
    """Keep the gauges fresh, because another worker may be asked for the sum of all."""
    while True:
        _gauge(app)
        await asyncio.sleep(metrics.SAMPLE_SECONDS)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings, sign_in = app.state.settings, app.state.sign_in
    async with Database(settings) as database:
        app.state.database = database
        # The objects loaded by now stay. Scanning them would cost the garbage collector tens of milliseconds.
        gc.collect()
        gc.freeze()
        # A mail that is under way at the end is sent after the next start.
        sending = _in_background(sign_in.outbox.run(database))
        with (
            sending,
            _in_background(_sample(app)),
            _in_background(app.state.drain.on_sigterm()),
            _ending_with_its_parent(),
        ):
            logger.info("ready: {}/docs", settings.local_url)
            yield
    sign_in.hasher.close()
