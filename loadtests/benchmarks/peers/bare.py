"""ONNX Runtime alone, in a process of its own: no server can answer faster than the model runs.

    python -m loadtests.benchmarks.peers.bare MODEL.onnx --row ROW.npy --seconds 2
    python -m loadtests.benchmarks.peers.bare MODEL.onnx --picture PICTURE.jpg --batch 32

Prints JSON: rows a second, and the percentiles of a pass (with decoding and resizing, where pictures are given).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from loadtests.benchmarks.peers.apps.onnx_model import Model
from loadtests.flags import positive

SIZES = (1, 2, 4, 8, 16, 32, 64)
_SHORT_S = 0.3


def passes(run: Callable[[], object], seconds: float) -> list[float]:
    """How long each pass took, in seconds."""
    run()
    times = []
    until = time.perf_counter() + seconds
    began = time.perf_counter()
    while began < until:
        run()
        ended = time.perf_counter()
        times.append(ended - began)
        began = ended
    return times


def runner(
    model: Model, row: np.ndarray | None, picture: bytes | None, draft: bool, batch: int
) -> Callable[[], object]:
    if picture is not None:
        return lambda: model.labels([picture] * batch, draft)
    assert row is not None
    rows = np.repeat(row, batch, axis=0)
    return lambda: model.rows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--row", type=Path, help="an .npy file with one row")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--draft", action="store_true", help="a JPEG is reduced while it is decoded")
    parser.add_argument("--batch", type=int, default=0, help="rows of a pass; 0: the best of 1 to 64 (default)")
    parser.add_argument("--seconds", type=positive, default=2)
    options = parser.parse_args(arguments)
    if (options.row is None) == (options.picture is None):
        parser.error("one of --row and --picture is needed")
    model = Model(options.onnx)
    row = np.load(options.row) if options.row else None
    picture = options.picture.read_bytes() if options.picture else None

    def rate(size: int) -> float:
        return size / float(np.median(passes(runner(model, row, picture, options.draft, size), _SHORT_S)))

    batch = options.batch or max(SIZES, key=rate)
    times = passes(runner(model, row, picture, options.draft, batch), options.seconds)
    p50, p99 = np.percentile(times, (50, 99)) * 1e3
    result = {"batch": batch, "rows_per_s": batch * len(times) / sum(times), "p50_ms": p50, "p99_ms": p99}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
