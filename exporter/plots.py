"""Pictures for reports, as SVG that stands in the page: the same data gives the same bytes."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from server.tensor import Array

COLORS = ("#3465a4", "#e08a1e", "#4e9a06")
MOST_BARS = 12
MOST_COLUMNS = 24
"""Columns that are drawn; more are told to be there."""
_ACROSS = 4
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "forwardpass",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def learning_curve(epochs: Sequence[Mapping[str, float]]) -> str:
    """Losses by epoch, and the learning rate below."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(7, 3.6))
        losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        for color, name in zip(COLORS, ("train_loss", "validation_loss"), strict=False):
            points = [(one["epoch"] + 1, one[name]) for one in epochs if name in one]
            losses.plot(*zip(*points, strict=True), color=color, label=name.replace("_", " "))
        best = min((one for one in epochs if "validation_loss" in one), key=lambda one: one["validation_loss"])
        losses.axvline(best["epoch"] + 1, color="#999", linewidth=0.8, linestyle=":", label="kept")
        losses.set_ylabel("loss")
        losses.legend(frameon=False)
        rates.plot([one["epoch"] + 1 for one in epochs], [one["learning_rate"] for one in epochs], color="#555")
        rates.set_ylabel("rate")
        rates.set_xlabel("epoch")
        return _svg(figure)


def columns(found: Mapping[str, Mapping[str, Array]]) -> str:
    """A small picture for each column: how its values are spread in each split, each split's rows being 1."""
    shown = list(found.items())[:MOST_COLUMNS]
    lines = -(-len(shown) // _ACROSS)
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 1.9 * lines))
        axes = figure.subplots(lines, _ACROSS, squeeze=False).flatten()
        for axis, (name, splits) in zip(axes, shown, strict=False):
            axis.set_title(name[:40], fontsize=8)
            axis.set_yticks([])
            (_spread if _numeric(splits) else _bars)(axis, splits)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        axes[0].legend(frameon=False, fontsize=7)
        return _svg(figure)


def _numeric(splits: Mapping[str, Array]) -> bool:
    return all(values.dtype.kind in "fiu" for values in splits.values())


def _spread(axis: Any, splits: Mapping[str, Array]) -> None:
    """Up to the outermost thousandths, so that one value does not hide all others."""
    known = np.concatenate([values[np.isfinite(values)] for values in splits.values()])
    if not known.size:
        return
    low, high = np.quantile(known, (0.001, 0.999))
    bins = np.linspace(low, high if high > low else low + 1, 21)
    for color, (name, values) in zip(COLORS, splits.items(), strict=False):
        kept = np.clip(values[np.isfinite(values)], bins[0], bins[-1])
        if kept.size:
            axis.hist(kept, bins, weights=np.full(kept.size, 1 / kept.size), histtype="step", color=color, label=name)


def _bars(axis: Any, splits: Mapping[str, Array]) -> None:
    counts = {name: Counter("missing" if v is None else str(v) for v in values) for name, values in splits.items()}
    total: Counter[str] = sum(counts.values(), Counter())
    names = [name for name, _ in sorted(total.items(), key=lambda one: (-one[1], one[0]))[:MOST_BARS]]
    places = np.arange(len(names))
    for index, (color, (split, found)) in enumerate(zip(COLORS, counts.items(), strict=False)):
        shares = [found[name] / max(1, found.total()) for name in names]
        axis.bar(places + 0.27 * (index - 1), shares, 0.25, color=color, label=split)
    axis.set_xticks(places, [name[:14] for name in names], rotation=45, ha="right", fontsize=6)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
