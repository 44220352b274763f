"""The command: what is there, what is tried, what is written."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from server.load.limits import Limits
from server.load.payloads import NoPayload, payloads
from server.pipeline.base import PROCESSING_FILE
from server.proto.triton import model_config_pb2 as pb
from server.repository.config_text import CONFIG_FILE, parse_text, write_model_config
from server.repository.golden import read_raw
from server.tuning.certify import recertify
from server.tuning.choices import applied, present
from server.tuning.search import Tried, tune
from server.tuning.trial import Bench, on_cores

TUNED_FILE = "config.pbtxt.tuned"
"""A name that a certificate passes over."""
TABLE_FILE = "tuning.md"
HEADER = ("tried", "requests/s", "p50 ms", "p99 ms", "")
_BAR = 24


@dataclass(frozen=True)
class Asked:
    folder: Path
    """Of the model."""
    limits: Limits
    budget_s: float
    call: str
    """infer, predict, or nothing: predict where the model can be asked so."""
    window_s: float
    served_on: Sequence[int]
    asked_from: Sequence[int]
    """Cores."""
    apply: bool = False
    """Put the best config in the place of the one that is there."""


def tune_model(asked: Asked, progress: TextIO) -> list[Tried]:
    """All that was tried; the table of it and the best config are written into the model's folder.

    Raises:
        NoPayload: the model has no golden inputs to be asked with.
        ModelLoadFailed: its config is not one.
        OSError: its folder can't be read or written.
        Failed: the config that is there can't be served.
        KeyboardInterrupt: it was ended. What was tried so far is written, and the config that is there stays.
    """
    config = parse_text((asked.folder / CONFIG_FILE).read_text(), asked.folder.name)
    call = asked.call or _call_of(asked.folder)
    made = payloads("rest", call, asked.folder.name, asked.folder.parent)
    if config.model_transaction_policy.decoupled or config.WhichOneof("scheduling_choice") not in (
        None,
        "dynamic_batching",
    ):
        raise NoPayload(f"{asked.folder.name}: decoupled models, sequences and ensembles are not tuned")
    bar = Bar(asked.budget_s, progress)
    bench = Bench(asked.folder, config, made, asked.limits, asked.window_s, asked.served_on, bar.over)
    found: list[Tried] = []

    def tell(one: Tried) -> None:
        found.append(one)
        bar.tell(one)

    batches = config.HasField("dynamic_batching")
    try:
        with on_cores(asked.asked_from):
            tune(present(config), len(asked.served_on), batches, bench.attempt, bar.over, tell)
    except KeyboardInterrupt:
        if found:
            write(replace(asked, apply=False), call, config, found)
        raise
    finally:
        bar.end()
    write(asked, call, config, found)
    return found


def _call_of(folder: Path) -> str:
    return "predict" if (folder / PROCESSING_FILE).exists() and read_raw(folder) else "infer"


def split(cores: int) -> tuple[list[int], list[int]]:
    """The cores of the server, `cores` of them, and the generator's; of 0 the generator has the last one."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return usable[: cores or max(1, len(usable) - 1)], usable[-1:]


def best_of(found: Sequence[Tried]) -> Tried | None:
    """None: nothing holds."""
    return next((one for one in reversed(found) if one.better), None)


def write(asked: Asked, call: str, config: pb.ModelConfig, found: Sequence[Tried]) -> None:
    """Raises OSError, ModelLoadFailed."""
    best = best_of(found)
    tuned = asked.folder / TUNED_FILE
    if best is not None and best.choice != found[0].choice:
        write_model_config(applied(config, best.choice), tuned)
        if asked.apply:
            tuned.replace(asked.folder / CONFIG_FILE)
            recertify(asked.folder)
    else:
        tuned.unlink(missing_ok=True)  # Of an earlier search, which this one does not agree with.
    cells = rows(found)
    lines = [HEADER, ("---", "---:", "---:", "---:", "---"), *cells]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    head = f"# {asked.folder.name}: {call} within {asked.limits}, on {len(asked.served_on)} cores\n\n"
    (asked.folder / TABLE_FILE).write_text(head + table + "\n" + verdict(found) + "\n")


def rows(found: Sequence[Tried]) -> list[tuple[str, ...]]:
    """Of the table."""
    best = best_of(found)
    return [
        (
            str(one.choice),
            f"{one.rate:,.0f}" if one.rate else f"< {one.at.rate:,.0f}" if one.at else "",
            *(f"{one.at.latency_ms.get(q, float('nan')):.2f}" if one.at else "" for q in (50.0, 99.0)),
            "; ".join(filter(None, ["best" if one is best else "", one.note])),
        )
        for one in found
    ]


def verdict(found: Sequence[Tried]) -> str:
    """The last line."""
    best, first = best_of(found), found[0]
    if best is None:
        return "Nothing that was tried holds the objective."
    if best.choice == first.choice:
        tried = len({one.choice for one in found})
        return f"The config that is there is the best of {tried}: {best.rate:,.0f} requests/s."
    more = f", {best.rate / first.rate:.2f} times the {first.rate:,.0f} before" if first.rate else ""
    workers = f"; serve it with --workers {best.choice.workers}" if best.choice.workers > 1 else ""
    return f"The best one, {TUNED_FILE}, holds {best.rate:,.0f} requests/s{more}{workers}."


class Bar:
    """The time budget as a bar; where nobody watches, a line for each configuration."""

    def __init__(self, budget_s: float, out: TextIO = sys.stderr) -> None:
        self._budget_s = budget_s
        self._began_s = time.monotonic()
        self._out = out
        self._count = 0
        self._best = 0.0
        self._drawn = out.isatty()
        self._draw()

    def over(self) -> bool:
        self._draw()
        return time.monotonic() - self._began_s >= self._budget_s

    def tell(self, one: Tried) -> None:
        self._count += 1
        if one.better:
            self._best = one.rate
        if not self._drawn:
            rate = f"{one.rate:,.0f}/s" if one.rate else "no better"
            self._out.write(f"{one.choice}: {' '.join(filter(None, [rate, one.note]))}\n")
            self._out.flush()
        self._draw()

    def _draw(self) -> None:
        if not self._drawn:
            return
        part = min(1.0, (time.monotonic() - self._began_s) / self._budget_s)
        full = round(part * _BAR)
        left_s = (1 - part) * self._budget_s
        self._out.write(
            f"\r[{'#' * full}{'.' * (_BAR - full)}] {part:4.0%}  {self._count} tried, best {self._best:,.0f}/s, "
            f"{left_s:.0f} s left \x1b[K"
        )
        self._out.flush()

    def end(self) -> None:
        if self._drawn:
            self._out.write("\r\x1b[K")
            self._out.flush()
