"""Warming up a version: every batch size that will be used, on every instance, before the first caller comes.

A first pass with a new shape allocates, plans memory, and on a GPU picks kernels or builds an engine; that
must not happen to a request. What the passes cost is measured on the way, and is the scheduler's first
knowledge of the model.

Where that is not so, it shows: once the largest batch has run, a CPU takes a new size in its stride. When a
few sizes in a row were no slower the first time than later, the sweep of the sizes in between ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median

import numpy as np

from server.engine.base import Instance
from server.errors import EngineFailure, ModelLoadFailed
from server.repository.model_config import ModelConfig
from server.repository.tensors import misfit
from server.types import DATATYPES, Array, Batch, TensorSpec

log = logging.getLogger(__name__)

_REPEATS = 5
_REPEAT_NS = 1_000_000
"""A pass that takes longer than this is timed once: its cost is far above the noise, and starting should be quick."""
_NEWNESS = 2.0
_NEWNESS_NS = 100_000
"""A first pass of more than so many times the later ones, and so much longer, was slow because its size was new."""
_CALM = 3
"""Sizes in a row whose first passes were not slow, after which no other size is expected to be."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What is run: rows to fill batches with (golden rows, else zeros), and how long it may take."""

    config: ModelConfig
    version: str
    sample: Mapping[str, Array] | None
    """Real input rows; they also tell real sizes for dims of -1."""
    limit_s: float
    max_input_bytes: int = 512 * 1024 * 1024
    """A batch whose inputs are larger is left cold: warming up must not be what ends the process."""
    clock_ns: Callable[[], int] = time.perf_counter_ns


def needed_sizes(largest: int, preferred: Sequence[int]) -> Iterator[int]:
    """The sizes to `largest` that are always run, each once: 1, the largest, powers of two, preferred."""
    powers = (1 << exponent for exponent in range(1, largest.bit_length()))
    yield from dict.fromkeys(size for size in (1, largest, *powers, *preferred) if 1 <= size <= largest)


def batch_sizes(largest: int, preferred: Sequence[int]) -> Iterator[int]:
    """Each size to `largest` once, in the order of need: the needed ones, then the rest."""
    needed = list(needed_sizes(largest, preferred))
    yield from needed
    yield from (size for size in range(1, largest + 1) if size not in needed)


def warm_up(instances: Sequence[Instance], plan: WarmUp) -> dict[int, int]:
    """Run the batch sizes on every instance. The median cost in ns by rows; sizes that were not run are not in it.

    Raises:
        ModelLoadFailed: a pass failed, or its outputs are not those of the config.
    """
    batching = plan.config.dynamic_batching
    preferred = batching.preferred_batch_size if batching else ()
    until_ns = plan.clock_ns() + int(plan.limit_s * 1e9)
    costs: dict[int, int] = {}
    largest = max(1, plan.config.max_batch_size)
    affordable = plan.max_input_bytes // max(1, _row_bytes(plan))
    needed = set(needed_sizes(largest, preferred))
    calm = 0
    for size in batch_sizes(min(largest, affordable), preferred):
        if calm >= _CALM and needed <= costs.keys():
            return costs
        left_ns = until_ns - plan.clock_ns()
        if left_ns <= 0:
            break
        # Two passes on each instance, foreseen in proportion to the nearest smaller size.
        known = max((rows for rows in costs if rows <= size), default=0)
        foreseen_ns = 2 * len(instances) * costs[known] * size // known if known else 0
        if foreseen_ns > left_ns:
            continue
        batch = Batch(plan.config.name, plan.version, size, _inputs(plan, size))
        costs[size], slow_ns = _measure(instances, batch, plan)
        calm = 0 if size in needed or slow_ns > max(_NEWNESS_NS, (_NEWNESS - 1) * costs[size]) else calm + 1
        if len(costs) == 1 and len(instances) * costs[size] > until_ns - plan.clock_ns():
            break
    _report_cold(plan, costs)
    return costs


def _measure(instances: Sequence[Instance], batch: Batch, plan: WarmUp) -> tuple[int, int]:
    """The median cost in ns, and by how much the slowest of the first passes was over it."""
    samples: list[int] = []
    first_ns = 0
    for instance in instances:
        started = plan.clock_ns()
        outputs = _run(instance, batch, plan)
        first_ns = max(first_ns, plan.clock_ns() - started)
        _check_outputs(outputs, batch.rows, plan.config)
        for _ in range(_REPEATS):
            started = plan.clock_ns()
            _run(instance, batch, plan)
            samples.append(plan.clock_ns() - started)
            if samples[-1] > _REPEAT_NS:
                break
    cost_ns = int(median(samples))
    return cost_ns, first_ns - cost_ns


def _run(instance: Instance, batch: Batch, plan: WarmUp) -> Mapping[str, Array]:
    try:
        return instance.run(batch)
    except EngineFailure as error:
        filled = "golden rows" if plan.sample else "zeros (1 for each dim of -1)"
        problem = f"warm-up with {batch.rows} rows of {filled} failed: {error.detail}"
        raise ModelLoadFailed(
            plan.config.name, f"{plan.version}/{plan.config.default_model_filename}", problem
        ) from error


def _check_outputs(outputs: Mapping[str, Array], rows: int, config: ModelConfig) -> None:
    """What a file's own shapes left open shows in its first pass."""
    for index, spec in enumerate(config.outputs):
        array = outputs[spec.name]
        if config.max_batch_size and (not array.ndim or array.shape[0] != rows):
            problem = f"'{spec.name}' has shape {list(array.shape)} for a batch of {rows} rows"
        else:
            problem = misfit(array, spec, config.max_batch_size)
        if problem:
            raise ModelLoadFailed(config.name, f"config.pbtxt: output[{index}]", f"the model's output {problem}")


def _inputs(plan: WarmUp, rows: int) -> dict[str, Array]:
    return {spec.name: _input(spec, rows, plan) for spec in plan.config.inputs}


def _input(spec: TensorSpec, rows: int, plan: WarmUp) -> Array:
    if plan.sample is not None:
        array = plan.sample[spec.name]
        return array[np.arange(rows) % len(array)] if plan.config.max_batch_size else array
    dims = tuple(1 if size == -1 else size for size in spec.dims)
    shape = (rows, *dims) if plan.config.max_batch_size else dims
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, dtype=DATATYPES[spec.datatype].numpy)


def _row_bytes(plan: WarmUp) -> int:
    """Bytes of one row of all inputs (of the whole inputs where there are no rows)."""
    total = 0
    for spec in plan.config.inputs:
        dims: Sequence[int] = spec.dims
        if plan.sample is not None:
            shape = plan.sample[spec.name].shape
            dims = shape[1:] if plan.config.max_batch_size else shape
        total += prod(abs(size) for size in dims) * (DATATYPES[spec.datatype].size or 8)
    return total


def _report_cold(plan: WarmUp, costs: Mapping[int, int]) -> None:
    cold = _ranges_between(sorted(costs), max(1, plan.config.max_batch_size))
    if cold:
        log.warning(
            "model '%s' version %s: the warm-up did not reach batches of %s rows within %g s and %d MiB; "
            "their first passes will be slow",
            plan.config.name,
            plan.version,
            ", ".join(cold),
            plan.limit_s,
            plan.max_input_bytes >> 20,
        )


def _ranges_between(warm: Sequence[int], largest: int) -> list[str]:
    ranges = []
    for before, after in zip([0, *warm], [*warm, largest + 1], strict=True):
        if after - before == 2:
            ranges.append(f"{before + 1}")
        elif after - before > 2:
            ranges.append(f"{before + 1}-{after - 1}")
    return ranges
