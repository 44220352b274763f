"""Warming up a version: every batch size that will be used, in every bucket, on every instance, before the first
caller comes.

A first pass with a new shape allocates, plans memory, and on a GPU picks kernels or builds an engine; that
must not happen to a request. What the passes cost is measured on the way, and is the scheduler's first
knowledge of the model.

Where that is not so, it shows: once the largest batch has run, a CPU takes a new size in its stride. When a
few sizes in a row were no slower the first time than later, the sweep of the sizes in between ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod

import numpy as np

from server.engine.base import Instance
from server.errors import EngineFailure, ModelLoadFailed
from server.repository.model_config import ModelConfig
from server.repository.tensors import misfit
from server.tensor import DATATYPES, Array, TensorSpec
from server.types import Batch

log = logging.getLogger(__name__)

_REPEATS = 5
_REPEAT_NS = 1_000_000
"""Passes of one size and instance are timed no longer than this in all, but once: starting should be quick."""
_COMPARED_NS = 100_000_000
"""The same for powers of two and the largest size, of which the scheduler picks the best one: a choice between
numbers of one sample each is a choice by noise."""
_NEWNESS = 2.0
_NEWNESS_NS = 100_000
"""A first pass of more than so many times the later ones, and so much longer, was slow because its size was new."""
_CALM = 3
"""Sizes in a row whose first passes were not slow, after which no other size is expected to be."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What is run: rows to fill batches with (zeros where there are none), and how long it may take."""

    config: ModelConfig
    version: str
    sample: Mapping[str, Array] | None
    """Real input rows; they also tell real sizes for dims of -1."""
    limit_s: float
    max_input_bytes: int = 512 * 1024 * 1024
    """A batch whose inputs are larger is left cold: warming up must not be what ends the process."""
    clock_ns: Callable[[], int] = time.perf_counter_ns
    filled_with: str = "zeros (1 for each dim of -1)"
    """What the sample is, for whoever must be told that a pass failed."""


def needed_sizes(largest: int, preferred: Sequence[int]) -> Iterator[int]:
    """The sizes to `largest` that are always run, each once: 1, the largest, powers of two, preferred."""
    powers = (1 << exponent for exponent in range(1, largest.bit_length()))
    yield from dict.fromkeys(size for size in (1, largest, *powers, *preferred) if 1 <= size <= largest)


def batch_sizes(largest: int, preferred: Sequence[int]) -> Iterator[int]:
    """Each size to `largest` once, in the order of need: the needed ones, then the rest."""
    needed = list(needed_sizes(largest, preferred))
    yield from needed
    yield from (size for size in range(1, largest + 1) if size not in needed)


Costs = dict[str, dict[object, dict[int, int]]]
"""Nanoseconds of a pass by the instance's device, by the signature of its requests, by its rows."""


def warm_up(instances: Sequence[Instance], plan: WarmUp) -> Costs:
    """Run every batch size, in every bucket, on every instance. What passes cost; what was left cold is not in it.

    Raises:
        ModelLoadFailed: a pass failed, or its outputs are not those of the config.
    """
    sweep = _Sweep(instances, plan)
    preferred = plan.config.preferred_batch_size
    until_ns = plan.clock_ns() + int(plan.limit_s * 1e9)
    row_bytes = {length: max(1, _row_bytes(plan, length)) for length in sweep.lengths}
    largest = min(max(1, plan.config.max_batch_size), plan.max_input_bytes // min(row_bytes.values()))
    needed = set(needed_sizes(max(1, plan.config.max_batch_size), preferred))
    calm = 0
    for size, length in ((size, length) for size in batch_sizes(largest, preferred) for length in sweep.lengths):
        if calm >= _CALM * len(sweep.lengths) and sweep.has(needed):
            return sweep.costs
        left_ns = until_ns - plan.clock_ns()
        if left_ns <= 0 or (sweep.passes == 1 and sweep.last_ns > left_ns):
            break
        # Two passes on each instance.
        if size * row_bytes[length] <= plan.max_input_bytes and 2 * sweep.foreseen_ns(length, size) <= left_ns:
            newness_ns, cost_ns = sweep.measure(length, size)
            slow = newness_ns > max(_NEWNESS_NS, (_NEWNESS - 1) * cost_ns)
            calm = 0 if size in needed or slow else calm + 1
    for length in sweep.lengths:
        _report_cold(plan, length, sweep.whole_ns.get(length, {}))
    return sweep.costs


class _Sweep:
    """What was measured so far."""

    def __init__(self, instances: Sequence[Instance], plan: WarmUp) -> None:
        self._instances = instances
        self._plan = plan
        buckets = plan.config.buckets
        self.lengths: Sequence[int] = buckets.lengths if buckets else (0,)
        """Of rows; 0 where there are no buckets."""
        self.costs: Costs = {}
        self.whole_ns: dict[int, dict[int, int]] = {}
        """By length and rows, one pass on each instance, one after the other."""
        self.passes = 0
        self.last_ns = 0

    def foreseen_ns(self, length: int, rows: int) -> int:
        """A pass on each instance: in proportion to the nearest of fewer rows, else to a shorter one; 0: not known."""
        known = self.whole_ns.get(length, {})
        fewer = max((size for size in known if size <= rows), default=0)
        if fewer:
            return known[fewer] * rows // fewer
        shorter = max((other for other, costs in self.whole_ns.items() if other < length and rows in costs), default=0)
        return self.whole_ns[shorter][rows] * length // shorter if shorter else 0

    def has(self, sizes: Set[int]) -> bool:
        """Whether so many rows were run in each length."""
        return all(sizes <= self.whole_ns.get(length, {}).keys() for length in self.lengths)

    def measure(self, length: int, rows: int) -> tuple[int, int]:
        """By how much the slowest of the first passes was over the later ones, and what those take."""
        config = self._plan.config
        batch = Batch(config.name, self._plan.version, rows, _inputs(self._plan, rows, length))
        samples: dict[str, list[int]] = {}
        newness_ns = 0
        for instance in self._instances:
            first_ns, later_ns = _measure(instance, batch, self._plan, length)
            newness_ns = max(newness_ns, first_ns - min(later_ns))
            samples.setdefault(instance.device, []).extend(later_ns)
        signature = _signature(batch, config, length)
        for device, times in samples.items():
            # The least: what a neighbour on the core adds says nothing of which size is better.
            self.costs.setdefault(device, {}).setdefault(signature, {})[rows] = min(times)
        self.last_ns = sum(min(samples[instance.device]) for instance in self._instances)
        self.whole_ns.setdefault(length, {})[rows] = self.last_ns
        self.passes += 1
        return newness_ns, self.last_ns // len(self._instances)


def _signature(batch: Batch, config: ModelConfig, length: int) -> object:
    """That of requests with such rows, as `request_check` makes it."""
    if length or not any(-1 in spec.dims or spec.optional for spec in config.inputs):
        return length or None
    skip = 1 if config.max_batch_size else 0
    return tuple(batch.inputs[spec.name].shape[skip:] for spec in config.inputs)


def _measure(instance: Instance, batch: Batch, plan: WarmUp, length: int) -> tuple[int, list[int]]:
    """Nanoseconds of the first pass, and of some later ones."""
    started = plan.clock_ns()
    outputs = _run(instance, batch, plan)
    first_ns = plan.clock_ns() - started
    _check_outputs(outputs, batch.rows, plan.config, length)
    compared = batch.rows & (batch.rows - 1) == 0 or batch.rows == plan.config.max_batch_size
    samples: list[int] = []
    while len(samples) < _REPEATS and sum(samples) < (_COMPARED_NS if compared else _REPEAT_NS):
        started = plan.clock_ns()
        _run(instance, batch, plan)
        samples.append(max(1, plan.clock_ns() - started))
    return first_ns, samples


def _run(instance: Instance, batch: Batch, plan: WarmUp) -> Mapping[str, Array]:
    try:
        return instance.run(batch)
    except EngineFailure as error:
        problem = f"warm-up with {batch.rows} rows of {plan.filled_with} failed: {error.detail}"
        raise ModelLoadFailed(
            plan.config.name, f"{plan.version}/{plan.config.default_model_filename}", problem
        ) from error


def _check_outputs(outputs: Mapping[str, Array], rows: int, config: ModelConfig, length: int) -> None:
    """What a file's own shapes left open shows in its first pass."""
    for index, spec in enumerate(config.engine_outputs):
        array = outputs[spec.name]
        if config.max_batch_size and (not array.ndim or array.shape[0] != rows):
            problem = f"'{spec.name}' has shape {list(array.shape)} for a batch of {rows} rows"
        else:
            problem = misfit(array, spec, config.max_batch_size)
        follow = config.buckets.outputs.get(spec.name, ()) if config.buckets else ()
        if not problem and any(array.shape[position + 1] != length for position in follow):
            problem = (
                f"'{spec.name}' has shape {list(array.shape)} where the inputs have length {length}; with "
                "length_buckets each size of -1 must be the length, or padding could not be cut off again"
            )
        if problem:
            fields = config.sequence_batching.fields if config.sequence_batching else {}
            where = fields.get(("output", spec.name), f"output[{index}]")
            raise ModelLoadFailed(config.name, f"config.pbtxt: {where}", f"the model's output {problem}")


def _inputs(plan: WarmUp, rows: int, length: int) -> dict[str, Array]:
    inputs = {spec.name: _input(spec, rows, plan, length) for spec in plan.config.inputs}
    sequences = plan.config.sequence_batching
    if sequences is not None:
        inputs |= sequences.lone_inputs(rows, batched=plan.config.max_batch_size > 0)
    return inputs


def _input(spec: TensorSpec, rows: int, plan: WarmUp, length: int) -> Array:
    position = plan.config.buckets.inputs.get(spec.name) if plan.config.buckets else None
    if (
        plan.sample is not None
        and spec.name in plan.sample
        and (position is None or plan.sample[spec.name].shape[position + 1])
    ):
        array = plan.sample[spec.name]
        if position is not None:
            array = array.take(np.arange(length) % array.shape[position + 1], position + 1)
        return array[np.arange(rows) % len(array)] if plan.config.max_batch_size else array
    dims = tuple((length or 1) if size == -1 else size for size in spec.dims)
    shape = (rows, *dims) if plan.config.max_batch_size else dims
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, dtype=DATATYPES[spec.datatype].numpy)


def _row_bytes(plan: WarmUp, length: int) -> int:
    """Bytes of one row of all inputs (of the whole inputs where there are no rows)."""
    sequences = plan.config.sequence_batching
    total = sum(len(state.initial.data) for state in sequences.states) if sequences else 0
    for spec in plan.config.inputs:
        dims: Sequence[int] = spec.dims
        if plan.sample is not None and spec.name in plan.sample:
            shape = plan.sample[spec.name].shape
            dims = shape[1:] if plan.config.max_batch_size else shape
        if plan.config.buckets is not None and spec.name in plan.config.buckets.inputs:
            dims = tuple(length if size == -1 else size for size in spec.dims)
        total += prod(abs(size) for size in dims) * (DATATYPES[spec.datatype].size or 8)
    return total


def _report_cold(plan: WarmUp, length: int, costs: Mapping[int, int]) -> None:
    cold = _ranges_between(sorted(costs), max(1, plan.config.max_batch_size))
    if cold:
        log.warning(
            "model '%s' version %s: the warm-up did not reach batches of %s rows%s within %g s and %d MiB; "
            "their first passes will be slow",
            plan.config.name,
            plan.version,
            ", ".join(cold),
            f" of length {length}" if length else "",
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
