"""The log on standard output: a line for each event and each request, as JSON or as text for a terminal.

No input breaks a line in two. No exception's message is written, because it may quote a client's input.
This sink is ours because loguru's `serialize` and structlog cost a request 10 to 50 % more instructions.
"""

import json
import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import RawIOBase
from typing import TYPE_CHECKING, Literal

import msgspec
from loguru import logger

from backend.telemetry import metrics, traces

if TYPE_CHECKING:
    from loguru import Message

Line = Mapping[str, object]
LogFormat = Literal["json", "pretty"]

_encode = msgspec.json.Encoder(enc_hook=str).encode
_COLOURS = {"INFO": "\x1b[32m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_RESET, _DIM = "\x1b[0m", "\x1b[2m"
_OF_REQUEST = ("method", "route", "status")
_IN_PLACE = {"timestamp", "level", "event", *_OF_REQUEST, "duration_ms", "exception"}


def as_json(line: Line) -> bytes:
    """Return `line` as one line of JSON in ASCII; U+2028 and other line ends are escaped."""
    encoded = _encode(line)
    if not encoded.isascii():
        encoded = json.dumps(json.loads(encoded)).encode()
    return encoded + b"\n"


def as_pretty(line: Line) -> bytes:
    """Return `line` for a terminal: time, level, event, request, then the other fields."""
    shown = {key: _plain(value) for key, value in line.items() if value is not None}
    at, level, event = line["timestamp"], shown["level"], shown["event"]
    request = " ".join(shown[key] for key in _OF_REQUEST if key in shown)
    took = f" {shown['duration_ms']} ms" if "duration_ms" in shown else ""
    rest = " ".join(f"{key}={value}" for key, value in shown.items() if key not in _IN_PLACE)
    text = f"{_DIM}{at:%H:%M:%S.%f}{_RESET} {_COLOURS.get(level, '')}{level:<8}{_RESET} {event}"
    text += f"  {request}{took}" if request else ""
    text += f"  {_DIM}{rest}{_RESET}" if rest else ""
    return f"{text}\n{line.get('exception', '')}".encode()


def _plain(value: object) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))


class Log:
    """Writes lines to standard output; `configure` creates it."""

    def __init__(self, render: Callable[[Line], bytes]) -> None:
        self._render = render
        stream = sys.stdout.buffer
        if isinstance(stream, RawIOBase):  # because a full disk could cut an unbuffered line
            stream = open(sys.stdout.fileno(), "wb", closefd=False)  # noqa: SIM115  # as long as the process
        self._write, self._flush = stream.write, stream.flush

    def write(self, *lines: Line) -> None:
        """Write these lines, each whole; lines that a full disk or a closed pipe refuses are counted."""
        try:
            for line in lines:
                self._write(self._render(line))
            self._flush()
        except OSError:
            metrics.LOG_LINES_LOST.inc(len(lines))

    def write_message(self, message: "Message") -> None:
        """Write a line that was logged through loguru."""
        entry = message.record
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(entry["time"].timestamp(), UTC),
            "level": entry["level"].name,
            "event": entry["message"],
            **entry["extra"],
        }
        if line.get("request_id"):
            line |= traces.current_ids()
        if entry["exception"] is not None and entry["exception"].value is not None:
            line["exception"] = _where(entry["exception"].value)
        self.write(line)


def configure(log_format: LogFormat | None) -> Log:
    """Return a log that also gets the lines of loguru, the standard library and Uvicorn.

    Without a format it is `pretty` on a terminal and `json` elsewhere.
    """
    is_pretty = sys.stdout.isatty() if log_format is None else log_format == "pretty"
    log = Log(as_pretty if is_pretty else as_json)
    logger.remove()
    logger.add(log.write_message, level="INFO", format="{message}", diagnose=False, backtrace=False)
    logging.captureWarnings(capture=True)
    logging.basicConfig(handlers=[_Intercept(logging.INFO)], level=logging.INFO, force=True)
    # Uvicorn's command line gives these two handlers of their own.
    logging.getLogger("uvicorn").handlers.clear()
    logging.getLogger("uvicorn").propagate = True
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
    logging.getLogger("alembic.runtime.migration").addFilter(lambda line: str(line.msg).startswith("Running"))
    return log


class _Intercept(logging.Handler):
    """Passes records of the standard library to loguru, as loguru's manual describes."""

    def emit(self, record: logging.LogRecord) -> None:
        exception = record.exc_info[1] if record.exc_info else None
        logger.opt(exception=exception).log(record.levelname, "{}", record.getMessage().rstrip())


def _where(error: BaseException) -> str:
    """Return the types and the frames of `error` and of its causes, without any message or value."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        name = f"{type(seen).__module__}.{type(seen).__qualname__}"
        sqlstate = getattr(seen, "sqlstate", None)
        parts.append(f"{name} {sqlstate}" if sqlstate else name)
        parts += [
            f"  {frame.filename}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(seen.__traceback__)
        ]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "\n".join(parts) + "\n"
