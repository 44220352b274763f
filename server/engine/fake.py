"""An engine that follows a script: latency by rows, failures, hangs, NaN. For tests and simulations.

Its answers depend on each row alone (the row's sum, in every element of every output), so that rows that
were swapped, dropped or mixed up between requests show.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from server.bfloat16 import BF16, narrowed, widened
from server.engine.base import EngineSpec
from server.errors import DeviceLost, EngineFailure, ModelLoadFailed
from server.tensor import DATATYPES, Array
from server.types import Batch

Act = Literal["answer", "fail", "hang", "nan", "lost"]
Answer = Callable[[EngineSpec, Batch], Mapping[str, Array]]
Answers = Callable[[EngineSpec, Batch], Iterable[Mapping[str, Array]]]


def row_sums(spec: EngineSpec, batch: Batch) -> dict[str, Array]:
    """The default answer: each output element is the sum of its row over all inputs (BYTES: of the lengths)."""
    sums = np.zeros(batch.rows, dtype=np.float64)
    for array in batch.inputs.values():
        flat = array.reshape(batch.rows, -1)
        values = np.vectorize(len, otypes=[float])(flat) if flat.dtype.kind == "O" and flat.size else flat
        sums += (widened(values) if values.dtype == BF16 else values).astype(np.float64).sum(axis=1)
    outputs: dict[str, Array] = {}
    for output in spec.outputs:
        dims = tuple(1 if size == -1 else size for size in output.dims)
        whole = np.broadcast_to(sums.reshape(-1, *[1] * len(dims)), (batch.rows, *dims))
        if output.datatype == "BYTES":
            array = np.array([f"{value:g}".encode() for value in whole.reshape(-1)], dtype=object).reshape(whole.shape)
        elif output.datatype == "BF16":
            array = narrowed(whole)
        else:
            array = whole.astype(DATATYPES[output.datatype].numpy)
        outputs[output.name] = array if spec.max_batch_size else np.asarray(array[0])
    return outputs


def counted(spec: EngineSpec, batch: Batch) -> Iterable[dict[str, Array]]:
    """The default responses of a decoupled model: as many as the first element of its first input says; each output
    is the answer's, with the number of the response, from 0, added (BYTES: in its place)."""
    first = next(iter(batch.inputs.values())).reshape(-1)[0]
    outputs = row_sums(spec, batch)
    for number in range(int(first)):
        yield {
            name: np.full_like(array, str(number).encode())
            if array.dtype.kind == "O"
            else array + array.dtype.type(number)
            for name, array in outputs.items()
        }


@dataclass
class Script:
    """What the engine does, shared by all its models. May be changed while it runs.

    `acts` are used up one a forward pass, in the order in which passes start; then every pass answers.
    """

    latency_s: Callable[[int], float] = lambda rows: 0.0
    acts: Iterable[Act] = ()
    load_problem: str = ""
    """Not empty: loading fails with this sentence."""
    on_load: Callable[[], None] = lambda: None
    """Called by each load, on its thread; may hold it up."""
    answer: Answer = row_sums
    answers: Answers = counted
    """Of decoupled models. Each response takes an act, and the latency."""
    sleep: Callable[[float], None] = time.sleep
    release: threading.Event = field(default_factory=threading.Event)
    """Set it to let passes that hang go on; they then answer."""


class FakeEngine:
    """Follows `script`; `batches` are those that it was given, in the order in which their passes started."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.batches: list[Batch] = []
        self.loaded: list[FakeModel] = []
        self.given_up = 0
        """Passes of decoupled models that were closed before their ends."""
        self._acts = iter(self.script.acts)
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return "fake"

    def load(self, spec: EngineSpec) -> FakeModel:
        """Reads no file. Raises ModelLoadFailed if the script says so."""
        self.script.on_load()
        if self.script.load_problem:
            raise ModelLoadFailed(spec.model_name, f"{spec.model_version}/{spec.path.name}", self.script.load_problem)
        model = FakeModel(self, spec)
        self.loaded.append(model)
        return model

    def play(self, acts: Iterable[Act]) -> None:
        """Put `acts` in the place of what is left of the script's own."""
        with self._lock:
            self._acts = iter(acts)

    def next_act(self, batch: Batch) -> Act:
        """Note the batch and take the next act of the script."""
        with self._lock:
            self.batches.append(batch)
            return next(self._acts, "answer")


class FakeModel:
    def __init__(self, engine: FakeEngine, spec: EngineSpec) -> None:
        self.spec = spec
        self.closed = False
        names = [
            f"{group.name or f'{spec.model_name}_{index}'}_{copy}_fake"
            for index, group in enumerate(spec.instance_groups)
            for copy in range(group.count)
        ]
        self._instances = [FakeInstance(engine, spec, name) for name in names]

    @property
    def instances(self) -> Sequence[FakeInstance]:
        return self._instances

    def close(self) -> None:
        """Raises RuntimeError when called twice: the contract says once."""
        if self.closed:
            raise RuntimeError(f"model '{self.spec.model_name}' is closed twice")
        self.closed = True


class FakeInstance:
    threads = 1

    def __init__(self, engine: FakeEngine, spec: EngineSpec, name: str) -> None:
        self.name = name
        self.device = "cpu"
        self._engine = engine
        self._spec = spec

    def renew(self) -> FakeInstance:
        """One for the place of this, which hangs; the script goes on. Raises ModelLoadFailed as `FakeEngine.load`."""
        self._engine.load(self._spec)
        return FakeInstance(self._engine, self._spec, self.name)

    def run(self, batch: Batch) -> Mapping[str, Array]:
        """One scripted pass. Raises EngineFailure where the script says ``fail`` or ``lost``."""
        return self._play(batch, lambda: self._engine.script.answer(self._spec, batch))

    def stream(self, batch: Batch) -> Generator[Mapping[str, Array]]:
        """A scripted pass of a decoupled model, one act for each response; `closed` counts those that were given up."""
        try:
            for outputs in self._engine.script.answers(self._spec, batch):
                yield self._play(batch, lambda outputs=outputs: outputs)  # type: ignore[misc]
        except GeneratorExit:
            self._engine.given_up += 1
            raise

    def _play(self, batch: Batch, answer: Callable[[], Mapping[str, Array]]) -> Mapping[str, Array]:
        script = self._engine.script
        act = self._engine.next_act(batch)
        seconds = script.latency_s(batch.rows)
        if seconds > 0:
            script.sleep(seconds)
        if act == "fail":
            raise EngineFailure(batch.model_name, f"{self.name}: scripted failure") from RuntimeError("scripted")
        if act == "lost":
            raise DeviceLost(batch.model_name, f"{self.name}: CUDA failure 700: scripted")
        if act == "hang":
            script.release.wait()
        outputs = answer()
        if act == "nan":
            return {name: _poisoned(array) for name, array in outputs.items()}
        return outputs


def _poisoned(array: Array) -> Array:
    if array.dtype == BF16:
        return narrowed(np.full(array.shape, np.nan))
    return np.full_like(array, np.nan) if array.dtype.kind == "f" else array
