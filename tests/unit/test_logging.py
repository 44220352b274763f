"""Logs: one format, one stream."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest
from PIL import ExifTags, Image

from server.errors import ServingError
from server.observability.log_control import LogControl
from server.observability.logging import JsonFormatter, configure_logging
from server.pipeline.image import ImageSteps
from server.settings import LogSettings
from server.types import ImageInput
from tests.support.models import SMALL_SPEC


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("grpc", "httpx", "PIL"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    spans = logging.getLogger("opentelemetry")
    spans.handlers[:], spans.propagate = [], True


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


def test_what_is_in_a_picture_is_in_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the level: the library that reads it tells its description in its details."""
    picture, described, file = Image.new("L", (20, 20), 255), Image.Exif(), io.BytesIO()
    picture.putpixel((9, 9), 0)
    described[ExifTags.Base.ImageDescription] = "what a patient said"
    picture.save(file, "JPEG", exif=described)
    configure_logging(LogSettings(level="debug"))

    assert ImageSteps(SMALL_SPEC).row(ImageInput(file.getvalue()), "picture").size

    assert "patient" not in capsys.readouterr().err


def test_a_collector_that_stays_away_is_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The library says so every few seconds; again it is told after an hour, or when there was quiet between."""
    configure_logging(LogSettings())
    # One of its loggers that nobody has; on its own it has a filter, from when it is imported, which goes by the clock.
    library = logging.getLogger("opentelemetry.exporter.of_a_test")

    def fail(at_s: int) -> None:
        record = library.makeRecord(library.name, logging.ERROR, "", 0, "failed at %d", (at_s,), None)
        record.created = at_s
        library.handle(record)

    for at_s in (0, 3, 50, 100, *range(200, 4000, 10)):
        fail(at_s)
    library.warning("and another severity")

    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines] == [
        *("failed at 0", "failed at 200", "failed at 3800"),
        "and another severity",
    ]


def written(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is written of one record of each severity."""
    log = logging.getLogger("server")
    for severity in ("debug", "info", "warning", "error"):
        getattr(log, severity)(severity)
    lines = capsys.readouterr().err.splitlines()
    return [line.rsplit(": ", 1)[1] for line in lines if "audit: " not in line]


def test_severities_are_switched_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Each by its name, at once; a verbose level above 0 writes details."""
    control = LogControl(LogSettings(level="info"))
    control.install()
    assert written(capsys) == ["info", "warning", "error"]
    for changes, lines in (
        ({"log_warning": False}, ["info", "error"]),
        ({"log_info": False}, ["error"]),
        ({"log_error": False}, []),
        ({"log_verbose_level": 2}, ["debug"]),
        ({"log_verbose_level": 0, "log_info": True, "log_error": True}, ["info", "error"]),
    ):
        control.update(changes)
        assert written(capsys) == lines


@pytest.mark.parametrize(
    ("level", "values"),
    [("debug", (True, True, True, 1)), ("warning", (False, True, True, 0)), ("error", (False, False, True, 0))],
)
def test_they_begin_as_the_server_was_started(level: str, values: tuple[object, ...]) -> None:
    """The level of the settings, in Triton's words."""
    told = LogControl(LogSettings(level=level)).values()
    assert tuple(told[name] for name in ("log_info", "log_warning", "log_error", "log_verbose_level")) == values
    assert (told["log_file"], told["log_format"]) == ("", "default")


def test_the_format_is_changed_and_changed_back(capsys: pytest.CaptureFixture[str]) -> None:
    """ISO8601 has the date, in UTC; JSON stays JSON, whose time is ISO 8601 anyway."""
    control = LogControl(LogSettings())
    control.install()
    for name, pattern in (
        ("ISO8601", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO "),
        ("default", r"\d\d:\d\d:\d\d\.\d{3} INFO "),
    ):
        control.update({"log_format": name})
        assert "action=log.change" in capsys.readouterr().err
        logging.getLogger("server").info("x")
        assert re.match(pattern, capsys.readouterr().err)
    control = LogControl(LogSettings(format="json"))
    control.install()
    control.update({"log_format": "ISO8601"})
    assert "anyone" in capsys.readouterr().err
    logging.getLogger("server").info("x")
    assert json.loads(capsys.readouterr().err)["message"] == "x"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log_file": "x"}, "log file location can not be updated through network protocol"),
        ({"log_format": "x"}, "invalid argument for log_format"),
        ({"log_format": True}, "invalid argument for log_format"),
        ({"log_info": 1}, "log_info: must be true or false"),
        ({"log_info": None}, "log_info: must be true or false"),
        ({"log_verbose_level": -1}, "log_verbose_level"),
        ({"log_verbose_level": True}, "log_verbose_level"),
        ({"log_verbose_level": 2**32}, "log_verbose_level"),
        ({"log_info": False, "log_warnings": False}, "there is no log setting 'log_warnings'"),
    ],
)
def test_what_can_not_be_set_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    """Nothing is accepted in silence, and nothing of a request with a mistake is done."""
    control = LogControl(LogSettings())
    before = control.values()
    with pytest.raises(ServingError) as caught:
        control.update(changes)
    assert words in caught.value.public_message
    assert control.values() == before
