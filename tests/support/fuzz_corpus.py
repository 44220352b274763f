"""What fuzzing with coverage came by, kept small in the repository: for each target a text of lines in base64.

They are seeds of the next run, and the suite feeds each of them once (`unit/test_fuzz_targets.py`).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "fuzz" / "corpus"
MOST_BYTES = 8192
"""Of a target, before base64."""


def kept(target: str) -> list[bytes]:
    """Empty for a target that none was kept of."""
    file = FOLDER / f"{target}.txt"
    return [b64decode(line) for line in file.read_text().split()] if file.exists() else []


def keep(target: str, inputs: Iterable[bytes]) -> int:
    """The smallest of them, as many as there is room for; how many."""
    chosen, left = [], MOST_BYTES
    for one in sorted({*inputs} - {b""}, key=lambda one: (len(one), one)):
        left -= len(one)
        if left < 0:
            break
        chosen.append(b64encode(one).decode())
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{target}.txt").write_text("".join(f"{line}\n" for line in chosen))
    return len(chosen)
