"""What a comparison finds, line by line, and the table of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["same", "DIFFERS", "noted"]
"""noted: they differ where two engines may."""

HEADER = ("WHAT", "EMBEDDED", "TRITON", "VERDICT")
_WIDEST = 60


@dataclass(frozen=True, slots=True)
class Line:
    what: str
    embedded: str
    triton: str
    verdict: Verdict


def told(what: str, embedded: object, triton: object, *, may_differ: bool = False) -> Line:
    """A line about two things that are equal if they are the same."""
    verdict: Verdict = "same" if embedded == triton else "noted" if may_differ else "DIFFERS"
    return Line(what, str(embedded), str(triton), verdict)


def differences(lines: Sequence[Line]) -> int:
    return sum(line.verdict == "DIFFERS" for line in lines)


def cells(lines: Sequence[Line]) -> list[tuple[str, str, str, str]]:
    """Rows for a table; a cell that is too wide for one is cut, unless the two differ in it."""
    return [(line.what, _cell(line, line.embedded), _cell(line, line.triton), line.verdict) for line in lines]


def _cell(line: Line, text: str) -> str:
    return text if line.verdict != "same" or len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
