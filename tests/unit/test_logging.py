"""Logs: one format, one stream, and nothing that a client can flood."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from server.observability.logging import JsonFormatter, configure_logging
from server.settings import LogSettings


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("uvicorn", "grpc", "httpx"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_a_json_line_is_one_object_with_its_traceback() -> None:
    """A collector reads line by line: the traceback stands inside, newlines escaped."""
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logging.LogRecord("server", logging.ERROR, __file__, 1, "failed: %s", ("x",), sys.exc_info())

    line = JsonFormatter().format(record)

    entry = json.loads(line)
    assert "\n" not in line
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "server", "failed: x")
    assert "ValueError" in entry["exception"]
    assert entry["time"].endswith("Z")


def test_bad_http_is_not_logged_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Uvicorn warns of each malformed request; only its errors pass, and ours at the level that is set."""
    configure_logging(LogSettings(level="info"))

    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("uvicorn.error").error("broken")
    logging.getLogger("server").info("ready")
    logging.getLogger("server").debug("detail")

    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines] == ["broken", "ready"]
