"""Logging: one line per event on stderr, for a person on a terminal, for a machine elsewhere.

Rule: standard `logging` loggers everywhere (``logging.getLogger(__name__)``), this module
only says how a record becomes a line, and `configure` is called once per process, by its
main function.  Facts travel as ``extra={"blob": …}``, never inside the sentence, so that a
log can be searched by them.  Nothing logs per call above debug level.  Importable by every
layer; imports none of ours.

Why not structlog: what it would add (bound loggers, processor chains) is not used here, and
grpc and asyncio log through `logging` anyway, so its formatter would be needed all the same.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; any other came in as `extra`."""

_BARE = re.compile(r"[^\s\"=\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
"""A value that needs no quotes in the text format."""

_RESERVED = frozenset({"time", "level", "event", "logger", "pid", "traceback"})


def configure(
    format: str,
    level: str,
    *,
    stream: TextIO | None = None,
    fields: Mapping[str, Any] | None = None,
) -> None:
    """Sends this process's log to `stream` (default: stderr) as lines of `format`.

    `format` is ``json``, ``text`` or ``auto`` (text where the stream is a terminal);
    `level` a level's lower-case name; `fields` are added to every line.
    """
    stream = sys.stderr if stream is None else stream
    if format == "auto":
        format = "text" if stream.isatty() else "json"
    handler = logging.StreamHandler(stream)
    formatter = TextFormatter if format == "text" else JsonFormatter
    handler.setFormatter(formatter(fields or {}))
    number = logging.getLevelNamesMapping()[level.upper()]
    # Debugging the server is not debugging its libraries, whose lines would bury ours.
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), force=True)
    logging.getLogger("cas").setLevel(number)
    logging.captureWarnings(True)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, event, then the record's facts."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self._fields = dict(fields)

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            "pid": record.process,
            **self._fields,
            **_facts(record),
        }
        if traceback := _traceback(self, record):
            line["traceback"] = traceback
        # ASCII only: a log line must survive whatever encoding the next program expects.
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """``time LEVEL event key=value …``; a traceback follows as one quoted value."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self._fields = dict(fields)

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {**self._fields, **_facts(record)}
        if traceback := _traceback(self, record):
            facts["traceback"] = traceback
        pairs = "".join(f" {key}={_value(value)}" for key, value in facts.items())
        event = _escape(record.getMessage())
        return f"{_time(record)} {record.levelname:<7} {event}{pairs}"


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    """What `extra` brought, under names that cannot hide the line's own."""
    return {
        f"{key}_" if key in _RESERVED else key: value
        for key, value in vars(record).items()
        if key not in _STANDARD
    }


def _time(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)


def _escape(text: str) -> str:
    """`text` without anything that could end the line or colour the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
