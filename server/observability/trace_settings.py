"""Triton's trace settings: the values, their checks, and a model's own over those of all.

    global values <- changed by requests, null puts back what the server was started with
    a model's     <- only what a request set for it; null takes it away again, so that the global value counts

Source: Triton's extension_trace.md; what its server answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.errors import InvalidRequest, Unsupported
from server.settings import TraceSettings

Change = Sequence[str] | None
"""The values of one setting as a request has them; None clears it."""

_LARGEST = 2**32 - 1
LONGEST_LOG = 10_000
"""Traces that are kept until their file is written; more would be memory that clients decide about."""
_MODE = "triton"


@dataclass(frozen=True, slots=True)
class TraceValues:
    """The settings in effect. `count` of -1 is no limit."""

    timestamps: bool
    rate: int
    count: int
    log_frequency: int

    @classmethod
    def at_start(cls, settings: TraceSettings) -> TraceValues:
        return cls(settings.level == "TIMESTAMPS", settings.rate, settings.count, settings.log_frequency)

    def told(self, file: str) -> dict[str, list[str]]:
        """By Triton's names, in its order."""
        return {
            "trace_level": ["TIMESTAMPS" if self.timestamps else "OFF"],
            "trace_rate": [str(self.rate)],
            "trace_count": [str(self.count)],
            "log_frequency": [str(self.log_frequency)],
            "trace_file": [file],
            "trace_mode": [_MODE],
        }


_FIELDS = {"trace_rate": "rate", "trace_count": "count", "log_frequency": "log_frequency"}
_RANGES = {"trace_rate": (0, _LARGEST), "trace_count": (-1, 2**31 - 1), "log_frequency": (0, LONGEST_LOG)}


def parsed(changes: Mapping[str, Change]) -> dict[str, bool | int | None]:
    """The changes by the field of `TraceValues` that they change; None clears it.

    Raises:
        InvalidRequest: an unknown setting, or a value that is none of its values.
        Unsupported: a level, mode or file that this server does not have, or does not let clients choose.
    """
    found: dict[str, bool | int | None] = {}
    for name, values in changes.items():
        if name == "trace_file":
            raise Unsupported("trace_file", "trace file location can not be updated through network protocol")
        if name == "trace_mode":
            if values is not None and list(values) != [_MODE]:
                raise Unsupported("trace_mode", f"must be '{_MODE}', the only mode of this server")
        elif name == "trace_level":
            found["timestamps"] = None if values is None else _level(values)
        elif name in _FIELDS:
            found[_FIELDS[name]] = None if values is None else _number(name, values)
        else:
            known = ", ".join(TraceValues.at_start(TraceSettings()).told(""))
            raise InvalidRequest("settings", f"there is no trace setting {name[:64]!r}, only {known}")
    return found


def _level(values: Sequence[str]) -> bool:
    if "TENSORS" in values:
        raise Unsupported("trace_level", "TENSORS is not supported, only OFF and TIMESTAMPS")
    if any(value not in ("OFF", "TIMESTAMPS") for value in values) or not values:
        raise InvalidRequest("trace_level", "must be OFF or TIMESTAMPS")
    if "OFF" in values and len(values) > 1:
        raise InvalidRequest("trace_level", "Expect only one trace level 'OFF' is specified")
    return values[0] == "TIMESTAMPS"


def _number(name: str, values: Sequence[str]) -> int:
    if len(values) != 1:
        raise InvalidRequest(name, f"expect only 1 value for '{name}'")
    text, (least, most) = values[0], _RANGES[name]
    try:
        number = int(text) if len(text) <= len(str(_LARGEST)) else _LARGEST + 1
    except ValueError:
        raise InvalidRequest(f"Unable to parse '{name}'", f"must be a whole number, got {text[:64]!r}") from None
    if not least <= number <= most:
        raise InvalidRequest(f"Unable to parse '{name}'", f"value is out of range [ {least}, {most} ], got {text[:64]}")
    return number


def checked(values: TraceValues, file: str) -> TraceValues:
    """Raises InvalidRequest for values that each are good, and together can't be."""
    if values.timestamps and not values.rate:
        raise InvalidRequest("trace_rate", "sample rate must be non-zero")
    if values.timestamps and not file:
        raise InvalidRequest("trace_level", "trace file name is not given, start the server with --trace-file")
    return values
