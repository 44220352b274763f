"""Triton's log settings over our logging: which severities are written, how much detail, in which form.

Source: Triton's extension_logging.md; the names are those that its server answers with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from server.errors import InvalidRequest, Unsupported
from server.observability import audit
from server.observability.audit import audited
from server.observability.logging import JsonFormatter, configure_logging, text_formatter

if TYPE_CHECKING:
    from server.settings import LogSettings

LogValue = bool | int | str

_SEVERITIES = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
_FORMATS = ("default", "ISO8601")
_LARGEST = 2**32 - 1
_NAMES = ("log_file", *_SEVERITIES, "log_verbose_level", "log_format")


class LogControl(logging.Filter):
    """What is written of what the process logs, changed while it runs. Before `install` it only keeps values."""

    def __init__(self, settings: LogSettings, process: str = "") -> None:
        """`process`: which of the server's processes this is; empty where it is but one."""
        super().__init__()
        self._process = process
        least = getattr(logging, settings.level.upper())
        self._json = settings.format == "json"
        self._settings = settings
        self._handler: logging.Handler | None = None
        self._values: dict[str, LogValue] = {"log_file": ""}
        self._values |= {name: severity >= least for name, severity in _SEVERITIES.items()}
        self._values |= {"log_verbose_level": int(least <= logging.DEBUG), "log_format": "default"}

    def install(self) -> None:
        """Send every logger of the process to standard error, as the settings say, now and later."""
        self._handler = configure_logging(self._settings, self._process)
        self._handler.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record of a severity that is switched off by itself is written."""
        if record.name == audit.NAME:
            return True
        if record.levelno < logging.INFO:
            return bool(self._values["log_verbose_level"])
        severity = "log_info" if record.levelno < logging.WARNING else "log_warning"
        return bool(self._values["log_error" if record.levelno >= logging.ERROR else severity])

    def values(self) -> dict[str, LogValue]:
        """Every setting, by Triton's name."""
        return dict(self._values)

    def update(self, changes: Mapping[str, object]) -> None:
        """Change the settings that are named, all of them or none.

        Raises:
            InvalidRequest: an unknown setting, or a value of another type or out of range.
            Unsupported: the log's file, which is chosen by whoever starts the server.
        """
        if not changes:
            return
        with audited("log.change", changes=dict(changes)):
            self.follow(changes)

    def follow(self, changes: Mapping[str, object]) -> None:
        """As `update`, of what is written down already: another process of the server was asked for it."""
        self._values |= {name: _checked(name, value) for name, value in changes.items()}
        if self._handler is None:
            return
        on = [severity for name, severity in _SEVERITIES.items() if self._values[name]]
        level = logging.DEBUG if self._values["log_verbose_level"] else min(on, default=logging.CRITICAL)
        logging.getLogger().setLevel(level)
        iso = self._values["log_format"] == "ISO8601"
        self._handler.setFormatter(
            JsonFormatter(self._process) if self._json else text_formatter(self._process, iso=iso)
        )


def _checked(name: str, value: object) -> LogValue:
    if name == "log_file":
        raise Unsupported("log_file", "log file location can not be updated through network protocol")
    if name in _SEVERITIES:
        if isinstance(value, bool):
            return value
        raise InvalidRequest(name, "must be true or false")
    if name == "log_verbose_level":
        if type(value) is int and 0 <= value <= _LARGEST:
            return value
        raise InvalidRequest(name, f"must be a whole number, 0 to {_LARGEST}")
    if name == "log_format":
        if isinstance(value, str) and value in _FORMATS:
            return value
        raise InvalidRequest("invalid argument for log_format", f"must be one of {', '.join(_FORMATS)}")
    raise InvalidRequest("settings", f"there is no log setting {name[:64]!r}, only {', '.join(_NAMES)}")
