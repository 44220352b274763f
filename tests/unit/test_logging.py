"""Logs: one format, one stream."""

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
    for name in ("grpc", "httpx"):
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


def test_libraries_that_log_each_request_are_kept_down(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours pass at the level that is set; httpx and grpc only from warnings on."""
    configure_logging(LogSettings(level="info"))

    logging.getLogger("httpx").info("HTTP Request: GET ...")
    logging.getLogger("httpx").warning("slow")
    logging.getLogger("server").info("ready")
    logging.getLogger("server").debug("detail")

    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines] == ["slow", "ready"]
