"""The log on standard output: one line per event and per request, JSON or for a person to read.

No input breaks a line in two, and no exception's message is written: it may quote what a client sent.
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


def as_json(line: Line) -> bytes:
    """Return `line` as one line of JSON; `LINE SEPARATOR` and its kind are escaped like a line feed is."""
    encoded = _encode(line)
    if not encoded.isascii():
        encoded = json.dumps(json.loads(encoded)).encode()
    return encoded + b"\n"


def as_pretty(line: Line) -> bytes:
    """Return `line` for a terminal: time, level, event, request, then what the event adds."""
    shown = {key: value for key, value in line.items() if value is not None}
    at, level = shown.pop("timestamp"), str(shown.pop("level"))
    request = " ".join(str(shown.pop(key)) for key in ("method", "route", "status") if key in shown)
    took = f" {shown.pop('duration_ms')} ms" if "duration_ms" in shown else ""
    rest = " ".join(
        f"{key}={_plain(value)}" for key, value in shown.items() if key not in {"event", "exception"}
    )
    colour = _COLOURS.get(level, "")
    text = f"{_DIM}{at:%H:%M:%S.%f}{_RESET} {colour}{level:<8}{_RESET} {_plain(shown['event'])}"
    text += f"  {_plain(request)}{took}" if request else ""
    text += f"  {_DIM}{rest}{_RESET}" if rest else ""
    return (text + "\n" + str(shown.get("exception", ""))).encode()


def _plain(value: object) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))


class Log:
    """Where lines go; one per process, set up by `configure`."""

    def __init__(self, render: Callable[[Line], bytes]) -> None:
        self._render = render
        stream = sys.stdout.buffer
        if isinstance(stream, RawIOBase):  # PYTHONUNBUFFERED: a full disk would take a part of a line
            stream = open(sys.stdout.fileno(), "wb", closefd=False)  # noqa: SIM115  # as long as the process
        self._write, self._flush = stream.write, stream.flush

    def write(self, *lines: Line) -> None:
        """Write these lines, each whole; a full disk or a closed pipe keeps no request from its answer."""
        try:
            for line in lines:
                self._write(self._render(line))
            self._flush()
        except OSError:
            metrics.LOG_LINES_LOST.inc(len(lines))

    def write_message(self, message: "Message") -> None:
        """Write what was logged through loguru, in the form of every other line."""
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
    """Send loguru's lines, the standard library's and Uvicorn's to one log, and return it."""
    is_pretty = sys.stdout.isatty() if log_format is None else log_format == "pretty"
    log = Log(as_pretty if is_pretty else as_json)
    logger.remove()
    logger.add(log.write_message, level="INFO", format="{message}", diagnose=False, backtrace=False)
    logging.captureWarnings(capture=True)
    logging.basicConfig(handlers=[_Intercept()], level=logging.INFO, force=True)
    for name in ("uvicorn", "uvicorn.error", "alembic"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
    logging.getLogger("alembic.runtime.migration").addFilter(_tells_of_a_migration)
    logging.getLogger("uvicorn.access").disabled = True
    return log


def now() -> datetime:
    """Return the time of a log line, in UTC."""
    return datetime.now(UTC)


def _tells_of_a_migration(record: logging.LogRecord) -> bool:
    return str(record.msg).startswith("Running")


class _Intercept(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.INFO:
            return
        exception = record.exc_info[1] if record.exc_info else None
        logger.opt(exception=exception).log(record.levelname, "{}", record.getMessage().rstrip())


def _where(error: BaseException) -> str:
    """Return the type of `error`, its causes' and their frames, but none of their messages or values."""
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
