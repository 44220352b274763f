"""Tables for tests of the recipes for rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from server.pipeline.columns import NumericColumn


def write_csv(path: Path, rows: int, rare: bool) -> Path:
    """Rows whose label follows from both kinds of columns, with missing cells and some noise."""
    generator = np.random.default_rng(3)
    size, noise = generator.normal(5, 2, rows), generator.normal(0, 1, rows)
    shape = generator.choice(["round", "square"], rows)
    score = size - 5 + np.where(shape == "round", 2.0, -2.0) + 0.3 * noise
    label = np.where(score > np.quantile(score, 0.95 if rare else 0.5), "big", "small")
    cells = [
        f"{'' if n % 11 == 0 else round(size[n], 3)},{round(noise[n], 3)},{'' if n % 13 == 0 else shape[n]},{label[n]}"
        for n in range(rows)
    ]
    path.write_text("\n".join(["size,noise,shape,label", *cells, "broken", cells[1]]) + "\n", encoding="utf-8")
    return path


NUMBER_COLUMN = NumericColumn(name="size", mean=0.0, std=1.0, minimum=0.0, maximum=9.0, typical=3.0)
