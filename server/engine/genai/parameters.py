"""How a text is to be continued: what a request may say of it, and its limits. Pure.

Names and meanings are those of vLLM's SamplingParams, which Triton's vLLM backend takes as ``sampling_parameters``;
they may as well stand among the parameters of the request. Whatever is not here is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from server.errors import InvalidRequest
from server.types import Parameter

MOST_STOPS = 16
LONGEST_STOP = 256
MOST_LOGPROBS = 20
DEFAULT_MAX_TOKENS = 16

_OTHERS = frozenset({"timeout", "priority", "triton_enable_empty_final_response", "sequence_id"})
"""Parameters of a request that are seen to elsewhere."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Of one text."""

    max_tokens: int | None = DEFAULT_MAX_TOKENS
    """None: as many as the context leaves."""
    min_tokens: int = 0
    """No end token, and no stop string, before so many."""
    temperature: float = 1.0
    """0: the likeliest token, always."""
    top_k: int = 0
    """0: all tokens."""
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    """Above 1: less of what is in the prompt or the text."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    """None: another text each time."""
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    add_special_tokens: bool = True
    """In front of the prompt; not for one that a chat template made."""
    logprobs: int | None = None
    """So many of the likeliest tokens are told for each, beside itself."""

    @property
    def greedy(self) -> bool:
        """The likeliest token is chosen, and nothing changes which that is."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def read_sampling(document: bytes | None, parameters: Mapping[str, Parameter]) -> Sampling:
    """From the input ``sampling_parameters`` (an object of JSON; None: it was left out) and a request's parameters.

    Raises:
        InvalidRequest: no such object, a name that is not known or there twice, a value that is out of its range.
    """
    said: dict[str, Any] = {}
    for name, value in _load(document).items():
        _take(said, f"sampling_parameters.{name}", name, value)
    for name, value in parameters.items():
        if name in _OTHERS:
            continue
        if name in said:
            raise InvalidRequest(f"parameters.{name}", "is in sampling_parameters as well")
        _take(said, f"parameters.{name}", name, value)
    return Sampling(**said)


def _load(document: bytes | None) -> dict[str, Any]:
    if document is None:
        return {}
    try:
        loaded = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("sampling_parameters", f"is no JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise InvalidRequest("sampling_parameters", "must be an object of JSON")
    return loaded


def _take(said: dict[str, Any], field: str, name: str, value: Any) -> None:
    reader = _READERS.get(name)
    if reader is None:
        known = ", ".join(_READERS)
        raise InvalidRequest(field[:96], f"is not known; what may be said is {known}")
    try:
        said[name] = reader(value)
    except (ValueError, TypeError, OverflowError):
        raise InvalidRequest(field, f"must be {_MUST_BE[name]}, got {_shown(value)}") from None


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:40] + "..."


def _number(low: float, high: float, *, above: bool = False) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)  # also of a string, as Triton's vLLM backend takes it
        if not math.isfinite(number) or not low <= number <= high or (above and number == low):
            raise ValueError
        return number

    return read


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool):
            raise ValueError
        number = int(value)
        if (isinstance(value, float) and number != value) or not low <= number <= high:
            raise ValueError
        return number

    return read


def _or_none(read: Callable[[Any], int]) -> Callable[[Any], int | None]:
    return lambda value: None if value is None else read(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _top_k(value: Any) -> int:
    return max(0, _whole(-1, 2**31 - 1)(value))


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise ValueError
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= LONGEST_STOP:
            raise ValueError
    return tuple(stops)


_SEED = (-(2**63), 2**63 - 1)
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "max_tokens": _or_none(_whole(1, 2**31 - 1)),
    "min_tokens": _whole(0, 2**31 - 1),
    "temperature": _number(0, 2),
    "top_k": _top_k,
    "top_p": _number(0, 1, above=True),
    "repetition_penalty": _number(0, 10, above=True),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _or_none(_whole(*_SEED)),
    "stop": _stop,
    "include_stop_str_in_output": _flag,
    "ignore_eos": _flag,
    "skip_special_tokens": _flag,
    "add_special_tokens": _flag,
    "logprobs": _or_none(_whole(0, MOST_LOGPROBS)),
}
_MUST_BE: Mapping[str, str] = {
    "max_tokens": "a whole number of 1 or more, or null for what the context leaves",
    "min_tokens": "a whole number of 0 or more",
    "temperature": "a number from 0 to 2",
    "top_k": "a whole number of 1 or more, or 0 or -1 for all tokens",
    "top_p": "a number above 0 and at most 1",
    "repetition_penalty": "a number above 0 and at most 10",
    "presence_penalty": "a number from -2 to 2",
    "frequency_penalty": "a number from -2 to 2",
    "seed": "a whole number of 64 bits, or null",
    "stop": f"a string or a list of at most {MOST_STOPS}, each of 1 to {LONGEST_STOP} characters",
    "include_stop_str_in_output": "true or false",
    "ignore_eos": "true or false",
    "skip_special_tokens": "true or false",
    "add_special_tokens": "true or false",
    "logprobs": f"a whole number from 0 to {MOST_LOGPROBS}, or null",
}
