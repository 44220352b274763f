"""A soak, from the start of the server to the verdict."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np

from loadtests.cores import cores
from loadtests.models import Network
from loadtests.process import Server, rss_bytes, serving
from loadtests.soak.chaos import ACTS, Chaos, misbehave
from loadtests.soak.models import ABRUPT, PICTURES, SPOILT, STEADY, save
from loadtests.soak.steady import WAYS, Asked, ask
from loadtests.soak.verdict import Counted, Rule, all_answered, all_settled, at_most, equal, leaks, memory
from loadtests.soak.watch import Sample, Watcher

_REST_S = 60.0
"""How long the server may take to let go of everything, once nobody asks any more."""
_SAMPLES = 900
_HELD = 0.8
"""The part of the pace that must have been held: less is no soak."""


@dataclass(frozen=True)
class Plan:
    seconds: float = 1800
    capacity_seconds: float = 10
    load: float = 0.45
    """Of the measured capacity."""
    acts_per_s: float = 15
    growth: float = 0.05
    """How much of itself the resident memory may grow by."""
    seed: int = 0
    workers: int = 1
    """As the server's flag."""
    tiny: bool = False
    """A model that costs next to nothing, for a short run."""


@dataclass(frozen=True)
class Seen:
    """What a soak has seen."""

    capacity: float
    rate: float
    """Steady calls a second, in the soak."""
    asked: Asked
    chaos: Chaos
    before: Sample
    samples: Sequence[Sample]
    after: Sample
    counted: dict[str, Counted]
    complaints: list[str]
    """Lines of the server's log that are errors."""


def soak(plan: Plan, folder: Path, resident: Callable[[int], int] = rss_bytes) -> Seen:
    """Start a server of models of its own in `folder`, and see."""
    network = save(folder / "models", tiny=plan.tiny)
    with serving(folder / "models", folder, tuple(cores()), "--workers", str(plan.workers)) as server:
        return asyncio.run(_see(server, network, plan, folder, resident))


async def _see(server: Server, network: Network, plan: Plan, folder: Path, resident: Callable[[int], int]) -> Seen:
    asked = Asked(server.grpc, server.http, *_example(folder, network))
    chaos = Chaos(asked, Random(plan.seed))
    watcher = Watcher(server, time.monotonic, resident)
    capacity = await ask(asked, plan.capacity_seconds, math.inf)
    before = await watcher.rested(_REST_S)
    watching = asyncio.create_task(watcher.watch(max(0.1, plan.seconds / _SAMPLES)))
    until = asyncio.get_running_loop().time() + plan.seconds
    rate, _ = await asyncio.gather(
        ask(asked, plan.seconds, plan.load * capacity), misbehave(chaos, until, plan.acts_per_s)
    )
    watching.cancel()
    after = await watcher.rested(_REST_S, before.open_files)
    counted = {model: _counted(server, model) for model in (STEADY, PICTURES, SPOILT, ABRUPT)}
    complaints = re.findall(r"^.*(?:\bERROR\b|\bCRITICAL\b|Traceback).*$", (folder / "server.log").read_text(), re.M)
    return Seen(capacity, rate, asked, chaos, before, watcher.samples, after, counted, complaints)


def _example(folder: Path, network: Network) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A row, and what the model makes of it."""
    import onnxruntime

    row = np.random.default_rng(0).normal(size=(1, *network.dims)).astype(np.float32)
    session = onnxruntime.InferenceSession(folder / "models" / STEADY / "1" / "model.onnx")
    return row, session.run(None, {"x": row})[0]


def _counted(server: Server, model: str) -> Counted:
    stats = httpx.get(f"http://{server.http}/v2/models/{model}/stats").raise_for_status().json()["model_stats"][0]
    inference = stats["inference_stats"]
    return Counted(
        *(int(inference.get(which, {}).get("count", 0)) for which in ("success", "fail")),
        int(stats.get("inference_count", 0)),
    )


def judge(seen: Seen, plan: Plan) -> list[Rule]:
    """All rules."""
    asked = {
        model: sum(seen.asked.calls[way] for way, (_, to) in WAYS.items() if to == model) for _, model in WAYS.values()
    }
    return [
        *memory(seen.samples, plan.growth),
        *leaks(seen.before, seen.samples, seen.after),
        equal("steady calls without their right answer", seen.asked.calls.total() - seen.asked.right.total(), 0),
        equal("faults that steady callers met", seen.asked.failed, 0),
        equal("acts of chaos that the server took wrongly", seen.chaos.failed, 0),
        equal("kinds of acts that were done", len(seen.chaos.acts), len(ACTS)),
        *(rule for model, number in asked.items() for rule in all_answered(model, number, seen.counted[model])),
        all_settled(SPOILT, seen.chaos.sent[SPOILT], seen.counted[SPOILT], arrived=True),
        all_settled(ABRUPT, seen.chaos.sent[ABRUPT], seen.counted[ABRUPT], arrived=False),
        equal("errors in the server's log", len(seen.complaints), 0),
        at_most("part of the pace that was missed", 1 - seen.rate / (plan.load * seen.capacity), 1 - _HELD),
    ]
