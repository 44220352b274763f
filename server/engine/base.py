"""What the scheduler knows of an engine, and what an engine knows of a model.

An engine is synchronous and blocking: `Instance.run` is called by one thread at a time, from the thread
that the scheduler gave it, and sees a batch, never a request. To add an engine, write a class with
`load`; nothing else in the server names an engine but `app.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from server.tensor import Array, Tensor, TensorSpec
from server.types import Batch, Parameter


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """`count` instances on each of `gpus` (on the CPU: `count` in all). Source: ModelInstanceGroup."""

    kind: str = "KIND_AUTO"
    count: int = 1
    gpus: tuple[int, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Source: ModelOptimizationPolicy.ExecutionAccelerators.Accelerator."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """The part of a model's config that concerns its engine, and the file of one version."""

    model_name: str
    model_version: str
    path: Path
    """The model file itself, for example ``model_repository/digits/1/model.onnx``."""
    max_batch_size: int
    """0: the model has no batch dimension."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    instance_groups: tuple[InstanceGroup, ...] = (InstanceGroup(),)
    gpu_accelerators: tuple[Accelerator, ...] = ()
    cpu_accelerators: tuple[Accelerator, ...] = ()
    graph_level: int = 0
    """optimization.graph.level, as Triton's ORT backend reads it: 0 all, 1 extended, -1 basic, 2 none."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    backend: str = ""
    """The config's own word for who runs it."""
    decoupled: bool = False
    """The model gives any number of responses to a request: its instances are `StreamingInstance`s."""
    fields: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """The config's field of a tensor that is not in its lists, by ``input`` or ``output`` and name."""


class Instance(Protocol):
    """One copy of a model on one device, able to run one batch at a time."""

    @property
    def name(self) -> str:
        """Unique within the model, for logs and metrics, for example ``digits_0_cpu``."""

    @property
    def threads(self) -> int:
        """Threads of this machine's cores that a pass keeps busy; 0 where it runs on a GPU or elsewhere."""

    @property
    def device(self) -> str:
        """``cpu``, ``gpu0``: instances of one device take the same time for the same batch."""

    def run(self, batch: Batch) -> Mapping[str, Array]:
        """One forward pass; the outputs by name, each of `batch.rows` rows.

        The arrays are given away: answers are views on them, so the engine never writes to them again.

        Raises:
            EngineFailure: whatever the engine's own exception was (kept as the cause).
        """


class StreamingInstance(Instance, Protocol):
    """One of a model that gives any number of responses to a request."""

    def stream(self, batch: Batch) -> Generator[Mapping[str, Array]]:
        """A pass of one request: the outputs of each of its responses, each as those of `run`.

        It is closed before its end where nobody takes any more. Raises EngineFailure: as `run`.
        """


class Job(Protocol):
    """A prompt that was checked and made into tokens, and the text that follows it. Equal to itself alone."""

    max_tokens: int
    """Of the text, at most."""
    length: int
    """Tokens of the prompt and the text that were taken in, until the text is over."""
    made: int
    """Tokens of the text so far."""
    finish: str
    """Why the text ended, ``stop`` or ``length``; empty while it goes on."""

    @property
    def prompt_tokens(self) -> int: ...


class WritingStep(Protocol):
    """What one step of a `WritingInstance` did. Whoever is in `failed`, or has a `finish`, has left."""

    @property
    def pieces(self) -> Sequence[tuple[Any, Sequence[Tensor]]]:
        """Jobs, at most once each, and the outputs of a response; of an ended one those of its last."""

    @property
    def wrote(self) -> Sequence[Any]:
        """Jobs that have a token more."""

    @property
    def failed(self) -> Sequence[Any]:
        """Jobs for which the model gave no numbers."""

    @property
    def prefilled(self) -> int:
        """Tokens of prompts that were taken in."""

    @property
    def prefill_ns(self) -> int:
        """The part of its time that this took."""


class WritingInstance(Instance, Protocol):
    """One that writes many texts at once, each a token a step; they join and leave between steps.

    `prepare` may be called by any thread, everything else by one at a time. Jobs are its own.
    """

    rows: int
    """Jobs that may be in it at the same time."""
    kv_tokens: int
    """Tokens of all their prompts and texts together; whoever joins keeps to it."""

    def takes_in(self, waiting: int, running: int) -> int:
        """Tokens of prompts, 1 or more, that a step takes in, while so many wait to be taken in and so many run."""

    def prepare(
        self, inputs: Mapping[str, Array], parameters: Mapping[str, Parameter], outputs: Sequence[str] = ()
    ) -> Job:
        """Raises InvalidRequest: what is wrong with the request."""

    @property
    def busy(self) -> bool:
        """A step would do something."""

    def join(self, job: Any) -> None: ...
    def leave(self, job: Any) -> None:
        """Free its memory. Does nothing for one that has left."""

    def hold(self, job: Any) -> None:
        """It keeps its memory and gets no token, until `go_on`. Nothing to one without a token, or that has left."""

    def go_on(self, job: Any) -> None: ...
    def step(self) -> WritingStep:
        """Raises EngineFailure."""


class EngineModel(Protocol):
    """A loaded version of a model."""

    @property
    def instances(self) -> Sequence[Instance]:
        """At least one, but of `Elsewhere`."""

    def close(self) -> None:
        """Free memory and devices. No `run` may be under way; called once."""


class Elsewhere:
    """The engine model of a version that is run by others, processes or models: there is nothing of it here.

    `devices` are those of its instances there, where that is known.
    """

    instances: Sequence[Instance] = ()

    def __init__(self, devices: Sequence[str] = ()) -> None:
        self.devices = tuple(devices)

    def close(self) -> None:
        """There is nothing to free."""


class Engine(Protocol):
    @property
    def name(self) -> str:
        """For metadata and logs, for example ``onnxruntime``."""

    def load(self, spec: EngineSpec) -> EngineModel:
        """Load one version, blocking. The engine checks the file's own tensors against the spec.

        Raises:
            ModelLoadFailed: the file is corrupt, its tensors differ from the config, a device or an
                execution provider that the config demands is missing, or a parameter is unknown.
        """
