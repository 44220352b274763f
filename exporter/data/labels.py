"""How many rows a label must have, for tables, texts and pictures alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import LabelsError

MIN_ROWS = 10
RARE_ROWS = 20
_LISTED = 10
"""Of the labels that an error names."""


def check(what: str, labels: Sequence[str], targets: NDArray[np.integer[Any]], lost: str = "") -> list[str]:
    """Notes for the report on labels with few rows. `what` has them, and `lost` is said behind an error.

    Raises:
        LabelsError: fewer than 2 labels, or fewer than `MIN_ROWS` rows of one; names them.
    """
    if len(labels) < 2:
        raise LabelsError(f"{what} has {len(labels)} labels after clean-up, at least 2 are needed{lost}")
    counts = dict(zip(labels, np.bincount(targets, minlength=len(labels)).tolist(), strict=True))
    few = [f"{label!r} has {count}" for label, count in counts.items() if count < MIN_ROWS]
    if few:
        problem = f"too few rows of some labels after clean-up, {MIN_ROWS} are needed"
        more = f" and {len(few) - _LISTED} more" if len(few) > _LISTED else ""
        raise LabelsError(f"{what}: {problem}: {', '.join(few[:_LISTED])}{more}{lost}")
    rare = [f"{label!r} {count}" for label, count in counts.items() if count < RARE_ROWS]
    return [f"labels with fewer than {RARE_ROWS} rows, whose metrics mean little: {', '.join(rare)}"] if rare else []
