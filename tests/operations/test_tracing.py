"""With a collector configured, each request is a span, which holds no secret and no text of a user."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.service import JWT_SECRET, PASSWORD, ROOT, Service, environment

OTHER_PARENT = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Accept traces by OTLP over HTTP, and keep the bodies of the requests."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is http.server's
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()


def spans(received: list[bytes]) -> list[Span]:
    exports = (ExportTraceServiceRequest.FromString(body) for body in received)
    return [
        span
        for export in exports
        for resource in export.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def ids_of(span: Span) -> tuple[str, str]:
    return span.trace_id.hex(), span.span_id.hex()


def test_each_request_is_a_span_by_its_route_that_tells_no_secret(
    new_service: Callable[..., Service],
) -> None:
    with collector() as (url, received):
        service = new_service(OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_BSP_SCHEDULE_DELAY="100")
        ada = service.register()
        task = ada.create("A title of hers")
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        ada.client.get(f"/tasks/{task['id']}", headers={"traceparent": parent})
        ada.client.get("/tasks/9223372036854775807")
        preflight = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "TRACE"}
        ada.client.options("/tasks", headers={"traceparent": OTHER_PARENT, **preflight})
        assert service.stop() == 0
    found = {span.name: span for span in spans(received)}
    assert {"POST /auth/register", "POST /tasks", "GET /tasks/{task_id}"} <= set(found)
    traced = [span for span in spans(received) if span.trace_id.hex() == parent.split("-")[1]]
    assert [span.name for span in traced] == ["GET /tasks/{task_id}"]
    (line,) = service.lines(event="http.request", trace_id=traced[0].trace_id.hex())
    assert line["span_id"] == traced[0].span_id.hex()
    (created,) = service.lines(event="task.created")
    assert (created["trace_id"], created["span_id"]) == ids_of(found["POST /tasks"])
    lines = service.lines(trace_id=OTHER_PARENT.split("-")[1])
    assert [line["event"] for line in lines] == ["cors.refused", "http.request"]
    assert lines[0]["refused"] == "TRACE"
    assert len({line["span_id"] for line in lines}) == 1
    assert [line for line in service.lines() if "trace_id" in line and not line.get("request_id")] == []
    attributes = {pair.key: pair.value for pair in traced[0].attributes}
    assert attributes["http.response.status_code"].int_value == 200
    secrets = (
        PASSWORD,
        ada.email,
        ada.tokens["access_token"],
        ada.tokens["refresh_token"],
        "A title of hers",
    )
    assert [secret for secret in secrets if secret.encode() in b"".join(received)] == []


WITHIN_A_SPAN = """
from loguru import logger
from opentelemetry.sdk.trace import TracerProvider
from backend.telemetry import logs

logs.configure("json")
with TracerProvider().get_tracer("tests").start_as_current_span("GET /tasks"):
    logger.info("of a request", request_id="one")
    logger.info("of no request")
logger.info("of a request without a span", request_id="two")
"""


def test_a_line_that_belongs_to_no_request_has_no_trace_even_within_a_span() -> None:
    """A task that outlives the request that started it keeps the request's span."""
    done = subprocess.run(
        [sys.executable, "-c", WITHIN_A_SPAN],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    traced = [line["event"] for line in lines if {"trace_id", "span_id"} & set(line)]
    assert (len(lines), traced) == (3, ["of a request"])


def test_without_a_collector_nothing_of_it_is_loaded() -> None:
    program = (
        "import sys; from backend.app import create_app; create_app(); "
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(DATABASE_URL="postgresql://localhost", JWT_SECRET=JWT_SECRET),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
