"""Where the time of one call went, for callers that ask: parts without a gap, so that they sum to the total.

A call that asks carries an `Explanation` from its decoding to its answer, and whoever ends a part of the way
marks it there. The parts are written as `Server-Timing`: ``decode;dur=0.12, queue;dur=1.4;desc="window", ...``,
in milliseconds. A call that does not ask carries None, and nothing is measured for it.

Source: W3C Server Timing, "The Server-Timing Header Field".
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from server.errors import InvalidRequest

if TYPE_CHECKING:
    from server.types import Parameter, Timing

REQUEST_KEY = "x-explain"
"""The header, and the key of the metadata, by which a call asks: 1 or true."""
ANSWER_KEY = "server-timing"

PARTS = (
    "receive",
    "decode",
    "preprocess",
    "cache",
    "queue",
    "compute_input",
    "compute",
    "compute_output",
    "postprocess",
    "encode",
    "loop",
)
"""In the order in which they are told. `loop` is what passes between two others: a hand-off between threads, or
the event loop being at something else. All others happen once, and only those that happened are told."""

_WORDS = {"1": True, "true": True, "0": False, "false": False, "": False}
_ENTRY = re.compile(r'([a-z_]+)(?:;dur=([0-9.]+))?(?:;desc="([^"]*)")?')


class WaitReason(StrEnum):
    """What a request waited for most of its time in the queue."""

    NONE = "none"
    """It went with the first pass that could be planned."""
    WINDOW = "window"
    """An instance was idle, and the batch was still open for company."""
    INSTANCE_BUSY = "instance_busy"
    PRIORITY = "priority"
    """Instances were busy, and a request that had come later went before it."""
    OTHER_TENANTS = "other_tenants"
    """As `priority`, and whoever went before it did so for another tenant's share."""
    OTHER_MODELS = "other_models"
    """An instance was idle, and passes of other models had the cores."""
    BUCKET = "bucket"
    """It was passed over for a batch that it could not join, of another bucket or shape; or an instance was idle, and
    those who waited with it were of another."""
    SEQUENCE = "sequence"
    """Its sequence waited for a slot, or a request before it in its sequence was not answered yet."""


class Explanation:
    """The parts of one call, one behind the other: each begins where the one before it ended."""

    __slots__ = ("_clock", "_then", "asked", "batch_rows", "marks", "padding", "received_ns", "waited")

    def __init__(self, received_ns: int, clock: Callable[[], int] = time.monotonic_ns, *, asked: bool = True) -> None:
        """`asked`: by the caller, who is told; else only those of `then` are."""
        self._clock = clock
        self._then: tuple[Callable[[Explanation], None], ...] = ()
        self.asked = asked
        self.received_ns = received_ns
        self.marks: list[tuple[str, int]] = []
        """Which part ended, and when, in order."""
        self.waited = WaitReason.NONE
        """Set by the scheduler."""
        self.batch_rows = 0
        self.padding = 0.0

    def mark(self, part: str, at_ns: int | None = None) -> None:
        """`part` ends now, or ended `at_ns`. A part that comes again is added to."""
        self.marks.append((part, self._clock() if at_ns is None else at_ns))

    def mark_pass(self, enqueued_ns: int, timing: Timing | None) -> None:
        """The request was answered by a forward pass, and the answer is taken up now."""
        if timing is not None:
            at_ns = enqueued_ns + timing.queue_ns
            self.mark("queue", at_ns)
            if timing.prepare_ns:
                at_ns += timing.prepare_ns
                self.mark("preprocess", at_ns)
            for part, ns in (
                ("compute_input", timing.compute_input_ns),
                ("compute", timing.compute_infer_ns),
                ("compute_output", timing.compute_output_ns),
            ):
                at_ns += ns
                self.mark(part, at_ns)
            self.batch_rows = timing.batch_rows
            self.padding = timing.padding
        self.mark("loop")

    def parts_ns(self) -> dict[str, int]:
        """The parts that were marked, in the order of `PARTS`, and behind them their `total`."""
        parts: dict[str, int] = {}
        before_ns = self.received_ns
        for part, at_ns in self.marks:
            parts[part] = parts.get(part, 0) + at_ns - before_ns
            before_ns = at_ns
        return {**{part: parts[part] for part in PARTS if part in parts}, "total": before_ns - self.received_ns}

    def then(self, told: Callable[[Explanation], None]) -> None:
        """Let `told` have it when the answer is written; of a call that fails nobody is told."""
        self._then += (told,)

    def finish(self) -> str:
        """The answer is written: the last part ends. Returns what the caller is told, empty if it did not ask."""
        self.mark("encode")
        for told in self._then:
            told(self)
        return self.server_timing() if self.asked else ""

    def server_timing(self) -> str:
        """The value of `Server-Timing`. Durations keep every nanosecond, so that rounding adds up to nothing."""
        notes = {"queue": f';desc="{self.waited}"'}
        entries = [f"{part};dur={_ms(ns)}{notes.get(part, '')}" for part, ns in self.parts_ns().items()]
        if self.batch_rows:
            entries.insert(-1, f'batch_rows;desc="{self.batch_rows}"')
        if self.padding:
            entries.insert(-1, f'padding;desc="{self.padding:.4g}"')
        return ", ".join(entries)


def _ms(ns: int) -> str:
    return f"{ns // 1_000_000}.{ns % 1_000_000:06d}".rstrip("0").rstrip(".")


def asked_by(text: str) -> bool:
    """Whether the value of `X-Explain` asks; empty, as where there is none, does not. Raises InvalidRequest."""
    asked = _WORDS.get(text.lower())
    if asked is None:
        raise InvalidRequest("X-Explain", "must be 1 or 0")
    return asked


def decoded(
    explanation: Explanation | None, parameters: Mapping[str, Parameter] | None, received_ns: int
) -> Explanation | None:
    """The explanation of a call that is decoded now: the one it has by its header, or a new one if its parameters
    ask; None if nobody does.

    Raises:
        InvalidRequest: the parameter `explain` is no boolean.
    """
    if parameters and "explain" in parameters:
        asked = parameters["explain"]
        if not isinstance(asked, bool):
            raise InvalidRequest("parameters.explain", "must be true or false")
        if asked and explanation is None:
            explanation = Explanation(received_ns)
    if explanation is not None:
        explanation.mark("decode")
    return explanation


@dataclass(frozen=True, slots=True)
class Explained:
    """An explanation as the caller gets it. The `parts_ms` sum to `total_ms`."""

    parts_ms: Mapping[str, float]
    total_ms: float
    waited: str
    """A `WaitReason`, or empty if the call had no pass."""
    batch_rows: int
    """Of the pass; 0 if the call had none."""
    padding: float = 0.0
    """The share of the pass's inputs that was padding, where the model has length buckets."""


def parse_server_timing(text: str) -> Explained:
    """The inverse of `Explanation.server_timing`. Raises ValueError for what is none."""
    durations: dict[str, float] = {}
    notes: dict[str, str] = {}
    for entry in text.split(", "):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise ValueError(f"{ANSWER_KEY}: {entry!r} can't be read")
        name, duration, note = match.groups(default="")
        if duration:
            durations[name] = float(duration)
        notes[name] = note
    if "total" not in durations:
        raise ValueError(f"{ANSWER_KEY}: has no total")
    total_ms = durations.pop("total")
    rows, padding = int(notes.get("batch_rows", 0)), float(notes.get("padding", 0))
    return Explained(durations, total_ms, notes.get("queue", ""), rows, padding)
