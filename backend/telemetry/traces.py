"""The ids of a request's OpenTelemetry span, for its log lines."""

import sys


def current_ids() -> dict[str, str]:
    """Return `trace_id` and `span_id` in hexadecimal (W3C Trace Context), or nothing without tracing."""
    if "opentelemetry.sdk" not in sys.modules:  # loaded only if a collector is configured
        return {}
    from opentelemetry import trace  # noqa: PLC0415  # as above

    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
