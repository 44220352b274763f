"""Logs to standard error: readable text, or one JSON object a line. No payloads, no secrets."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings import LogSettings

_QUIET_S, _AGAIN_S = 60.0, 3600.0
_TEXT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"
_KEPT_DOWN = ("grpc", "httpx", "PIL")
"""Libraries that log every request or frame, or in their details what is in a picture: its description, its place."""
_ISO_TEXT = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """`time` is UTC in RFC 3339 with milliseconds; a traceback stands in `exception`; `fields` of a record are the
    line's own."""

    def __init__(self, process: str = "") -> None:
        """`process`: which of the server's processes writes; empty where it is but one."""
        super().__init__()
        self._process = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            **self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class _TextFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        fields: dict[str, object] = getattr(record, "fields", {})
        return " ".join([super().formatMessage(record), *(f"{key}={_word(value)}" for key, value in fields.items())])


def _word(value: object) -> str:
    """As it is where nobody can take it for more than one; a client chose some of them."""
    if isinstance(value, list):
        return json.dumps(value)
    text = str(value)
    return text if text.isascii() and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


def text_formatter(process: str = "", *, iso: bool = False) -> logging.Formatter:
    """Text for people: the time of day; `iso`: date and time in UTC, as ISO 8601. `process` as of `JsonFormatter`."""
    text = _ISO_TEXT if iso else _TEXT
    if process:
        text = text.replace("%(name)s", f"{process} %(name)s")
    if not iso:
        return _TextFormatter(text, "%H:%M:%S")
    formatter = _TextFormatter(text, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    return formatter


class _Seldom(logging.Handler):
    """Hands on what a library says, and not what it says again and again: a logger's words of one severity once, until
    there was a minute without, or an hour is over."""

    def __init__(self) -> None:
        super().__init__()
        self._at: dict[tuple[str, int], tuple[float, float]] = {}
        """By logger and severity: when it was handed on last, and when it came last."""

    def emit(self, record: logging.LogRecord) -> None:
        key, now_s = (record.name, record.levelno), record.created
        told_s, came_s = self._at.get(key, (-math.inf, -math.inf))
        again = now_s - came_s < _QUIET_S and now_s - told_s < _AGAIN_S
        self._at[key] = told_s if again else now_s, now_s
        if not again:
            logging.getLogger().handle(record)


def configure_logging(settings: LogSettings, process: str = "") -> logging.Handler:
    """Send every logger of the process to standard error, once and in one format; by the handler that is returned.

    `process`: which of the server's processes this is, named in each line; empty where it is but one.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if settings.format == "json" else text_formatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name in _KEPT_DOWN:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    # Of a collector that is away it has two lines for each batch.
    spans = logging.getLogger("opentelemetry")
    spans.handlers[:], spans.propagate = [_Seldom()], False
    return handler
