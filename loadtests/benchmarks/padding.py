"""How long should a padded pass be: as its bucket, or as its longest request? On one core, with a small transformer.

    python -m loadtests.benchmarks.padding

Batches of random rows from one bucket each, with random lengths. CPU time of the process; the ways take turns, batch
by batch. The last line is a pass of a shape that comes for the first time over the next one of the same shape.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import numpy as np

from loadtests.cores import cores
from loadtests.flags import counted
from loadtests.models import save_encoder
from loadtests.report import table
from server.engine.base import Instance
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.repository.model_config import read_model_config
from server.types import Batch

BUCKETS = (16, 32, 64, 128)
ROWS = 8


def pass_us(instance: Instance, rows: int, length: int) -> float:
    ids = np.ones((rows, length), np.int64)
    began = time.process_time_ns()
    instance.run(Batch("encoder", "1", rows, {"ids": ids, "mask": ids}))
    return (time.process_time_ns() - began) / 1e3


def measure(instance: Instance, batches: int) -> list[list[str]]:
    rng = np.random.default_rng(0)
    for length in BUCKETS:
        for rows in range(1, ROWS + 1):
            pass_us(instance, rows, length)
    merged: dict[str, list[float]] = {"bucket": [], "longest": [], "alone": []}
    single: dict[str, list[float]] = {"bucket": [], "longest": [], "alone": []}
    for number in range(batches):
        index = int(rng.integers(len(BUCKETS)))
        shortest = BUCKETS[index - 1] + 1 if index else 1
        rows = 1 if number % 2 else int(rng.integers(2, ROWS + 1))
        lengths = rng.integers(shortest, BUCKETS[index] + 1, size=rows)
        took = merged if rows > 1 else single
        took["bucket"].append(pass_us(instance, rows, BUCKETS[index]))
        took["longest"].append(pass_us(instance, rows, int(lengths.max())))
        took["alone"].append(sum(pass_us(instance, 1, int(length)) for length in lengths))
    first = [pass_us(instance, ROWS, length) / pass_us(instance, ROWS, length) for length in range(65, 128, 4)]
    return [
        ["a batch, us", *(f"{mean(values):.0f}" for values in merged.values())],
        ["a request alone, us", *(f"{mean(values):.0f}" for values in single.values())],
        ["a shape's first pass over its second", "", f"{median(first):.2f}", ""],
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=counted, default=600, help="half of them of one request (default: 600)")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {cores()[0]})
    with tempfile.TemporaryDirectory() as folder:
        save_encoder(Path(folder), "encoder")
        config = read_model_config(Path(folder) / "encoder")
        model = OnnxRuntimeEngine(1).load(config.engine_spec(Path(folder) / "encoder", "1"))
        lines = measure(model.instances[0], options.batches)
        model.close()
    sys.stdout.write(table(("padded to the", "bucket", "longest", "none, one by one"), lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
