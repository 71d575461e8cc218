"""Log lines: one formatter for people and one for programs, and which request or job a line is about.

Nobody but this package decides what a line looks like. Control characters and line breaks in whatever is logged are
escaped, keys of the service are blotted out, and of an exception the types and places are told but not the message,
which may quote a row or a statement with its parameters. Where it is an OSError, the system's words are told too.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from agent.exceptions import SettingsError
from server.settings import ServerSettings

_KEY = re.compile(r"(rw_[0-9a-f]{12}_)[\w-]+", re.ASCII)
_context: ContextVar[Mapping[str, str] | None] = ContextVar("rewright_log_context", default=None)


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Within: every line says these, such as `request_id` or `job_id`. Tasks that are begun within inherit them."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def set_up_logging(settings: ServerSettings) -> None:
    """Send what this process logs where the settings say; doing it again replaces what was set up before.

    Raises:
        SettingsError: the file cannot be written.
    """
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if settings.log_file is not None:
        try:
            handler = logging.handlers.WatchedFileHandler(settings.log_file, encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"server.log_file {settings.log_file}: cannot be written: {error.strerror}") from error
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    root = logging.getLogger()
    for other in [h for h in root.handlers if isinstance(h.formatter, JsonLines | TextLines)]:
        root.removeHandler(other)
        other.close()
    root.addHandler(handler)
    logging.getLogger("rewright").setLevel(logging.INFO)


class JsonLines(logging.Formatter):
    """One JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if told := _exception(record):
            line["exception"] = told
        return _without_keys(json.dumps(line, default=str))


class TextLines(logging.Formatter):
    """`TIME LEVEL MESSAGE name=value ...`; the lines of an exception are indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_printable(str(value))}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {_printable(record.getMessage())}{fields}"
        line += "".join(f"\n    {_printable(told)}" for told in _exception(record))
        return _without_keys(line)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a line says beside its message: the context, then what the caller passed as `extra={"fields": ...}`."""
    return {**(_context.get() or {}), **getattr(record, "fields", {})}


def _exception(record: logging.LogRecord) -> list[str]:
    """The types and places of the exception and of what it came from, the outermost first."""
    error = record.exc_info[1] if record.exc_info else None
    told: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        words = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
        told.append(f"{'from ' if told else ''}{type(error).__module__}.{type(error).__qualname__}{words}")
        told += [
            f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return told


def _printable(text: str) -> str:
    """The text on one line, with escapes for what is not visible."""
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)


def _without_keys(line: str) -> str:
    return _KEY.sub(r"\1[hidden]", line)
