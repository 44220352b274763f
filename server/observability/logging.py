"""Logs to standard error: readable text, or one JSON object a line. No payloads, no secrets."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings import LogSettings

_TEXT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"
_ISO_TEXT = "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """`time` is UTC in RFC 3339 with milliseconds; a traceback stands in `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def text_formatter(*, iso: bool = False) -> logging.Formatter:
    """Text for people: the time of day; `iso`: date and time in UTC, as ISO 8601."""
    if not iso:
        return logging.Formatter(_TEXT, "%H:%M:%S")
    formatter = logging.Formatter(_ISO_TEXT, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    return formatter


def configure_logging(settings: LogSettings) -> logging.Handler:
    """Send every logger of the process to standard error, once and in one format; by the handler that is returned."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else text_formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    # Libraries that log every request or frame at info. Uvicorn's level is set where it is started.
    for name in ("grpc", "httpx"):
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    return handler
