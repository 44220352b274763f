"""A picture of each dashboard, drawn of what a Prometheus has: `python helm/pictures.py http://127.0.0.1:9090 FOLDER`.

No Grafana is needed: the panels' own queries are asked over a range, and drawn plainly. What a panel needs and the
machine lacks is said in its place.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
from panels import BOARDS, Ask, Board, Panel

mpl.use("Agg")
from matplotlib import pyplot as plt

_POINTS = 80


def asked(expr: str, rate_interval: str, *, job: str = ".*", model: str = ".*", triton: str = ".*") -> str:
    """A panel's query as Grafana would send it."""
    values = {"$__rate_interval": rate_interval, "$job": job, "$model": model, "$triton": triton, "$objective": "0.1"}
    for name, value in values.items():
        expr = expr.replace(name, value)
    return expr


def _series(client: httpx.Client, ask: Ask, begin: float, end: float, rate_interval: str) -> list[dict[str, Any]]:
    expr = asked(ask.expr, rate_interval, job="forwardpass", triton="triton")
    parameters = {"query": expr, "start": begin, "end": end, "step": (end - begin) / _POINTS}
    found: list[dict[str, Any]] = client.get("/api/v1/query_range", params=parameters).json()["data"]["result"]
    return found


def _legend(ask: Ask, metric: dict[str, str]) -> str:
    text = ask.legend
    for name, value in metric.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text or ", ".join(f"{value}" for name, value in metric.items() if name != "__name__")


def _draw(axes: Any, panel: Panel, drawn: list[tuple[str, list[float], list[float]]], begin: float) -> None:
    drawn = [
        (name, [at - begin for at in ats], values) for name, ats, values in drawn if any(map(math.isfinite, values))
    ]
    if not drawn:
        missing = f"needs {panel.needs}" if panel.needs else "no data"
        axes.text(0.5, 0.5, missing, ha="center", va="center", transform=axes.transAxes, fontsize=7, color="#777777")
    elif panel.kind == "table":
        text = "\n".join(f"{name}: {values[-1]:g}" for name, _, values in drawn)
        axes.text(0.05, 0.9, text, va="top", transform=axes.transAxes, fontsize=7)
    elif panel.kind == "heatmap":
        _heat(axes, drawn)
    elif panel.kind == "stacked" and len({len(values) for _, _, values in drawn}) == 1:
        axes.stackplot(
            drawn[0][1], [values for _, _, values in drawn], labels=[name for name, _, _ in drawn], alpha=0.8
        )
    else:
        for name, ats, values in drawn:
            axes.plot(ats, values, label=name, linewidth=0.9)
    if panel.kind in ("lines", "stacked", "number") and drawn:
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=4, loc="upper left", ncols=2, framealpha=0.75, edgecolor="none", borderpad=0.2)
    if panel.kind == "table" or not drawn:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_title(f"{panel.title} [{panel.unit}]" if panel.unit != "none" else panel.title, fontsize=7, loc="left")
    axes.tick_params(labelsize=5)


def _heat(axes: Any, drawn: list[tuple[str, list[float], list[float]]]) -> None:
    """Prometheus' buckets are cumulative: each less the one below."""
    rows = sorted(drawn, key=lambda row: float(row[0].replace("+Inf", "inf")))
    shortest = min(len(values) for _, _, values in rows)
    values = [row[2][-shortest:] for row in rows]
    cells = [
        values[0],
        *([a - b for a, b in zip(upper, lower, strict=True)] for lower, upper in pairwise(values)),
    ]
    axes.pcolormesh(rows[0][1][-shortest:], range(len(rows)), cells, cmap="Blues", shading="nearest")
    axes.set_yticks(range(0, len(rows), 3), [row[0] for row in rows][::3])


def picture(client: httpx.Client, board: Board, file: Path, begin: float, end: float, rate_interval: str) -> None:
    height = math.ceil(len(board.panels) / 2)
    figure, axes = plt.subplots(height, 2, figsize=(9, 1.75 * height), dpi=90, squeeze=False)
    for place, panel in zip(axes.flat, board.panels, strict=False):
        drawn = []
        for ask in panel.asks:
            for series in _series(client, ask, begin, end, rate_interval):
                ats, values = zip(*((float(at), float(value)) for at, value in series["values"]), strict=True)
                drawn.append((_legend(ask, series["metric"]), list(ats), list(values)))
        _draw(place, panel, drawn, begin)
    for place in axes.flat[len(board.panels) :]:
        place.axis("off")
    figure.suptitle(board.title, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, pil_kwargs={"optimize": True})
    plt.close(figure)
    _fewer_colours(file)


def _fewer_colours(file: Path) -> None:
    from PIL import Image

    with Image.open(file) as image:
        image.convert("RGB").quantize(64).save(file, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of Prometheus")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=120, help="up to now (default: 120)")
    parser.add_argument("--rate-interval", default="5s", help="of the rates (default: 5s)")
    options = parser.parse_args()
    end = time.time()
    with httpx.Client(base_url=options.url, timeout=30) as client:
        for board in BOARDS:
            file = options.folder / f"{board.uid.removeprefix('forwardpass-')}.png"
            picture(client, board, file, end - options.seconds, end, options.rate_interval)
            sys.stdout.write(f"{file}: {file.stat().st_size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
