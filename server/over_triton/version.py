"""One version of a model in service in front of Tritons: what they say of it, its relay, and where it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from server.chat import ChatTemplate
from server.engine.base import Elsewhere
from server.engine.triton.server import ModelKey, TritonServer
from server.errors import Code, ModelLoadFailed, ServingError
from server.pipeline.base import Pipeline
from server.queueing import priorities, queue_policy
from server.repository.foreign import least_in_flight, read_foreign
from server.repository.loading import ServedModel
from server.repository.model_config import ModelConfig
from server.repository.trial import check_postprocessing, example_tensors
from server.scheduler.costs import make_costs
from server.scheduler.flights import Done
from server.scheduler.relay import Relay
from server.scheduler.sequence_relay import SequenceRelay
from server.scheduler.statistics import ModelStatistics
from server.scheduler.window import Bounds, Window
from server.sequences import ControlKind
from server.served import DecoupledServed, Served
from server.tensor import Array, Tensor, TensorSpec
from server.types import InferRequest, InferResponse, ModelMetadata, Outcome, Parameter

_MOST_AT_FIRST = 64
"""Of a window that has learned nothing yet: of what is sent at first, nothing comes back into reach."""
_EXAMPLE_NS = 10_000_000_000
_BUSY = frozenset((Code.UNAVAILABLE, Code.DEADLINE, Code.EXHAUSTED))
"""What is told of an example that Triton had no time for, which says nothing of the pipeline: its first pass may take
minutes, where an engine is built for it."""
_EXAMPLE = "forwardpass-example"
_EXAMPLE_NUMBER = (1 << 31) - 1
"""What the sequence of an example is called; as large as the smallest type for it takes."""
_TRITON = "triton"
"""The one device whose answers are learned: servers are taken to be alike."""


class Place:
    """One Triton as the relay of one version sees it."""

    def __init__(self, server: TritonServer, config: ModelConfig, version: str) -> None:
        self._server = server
        self._version = version
        self._several = config.decoupled
        self._outputs = [spec.name for spec in config.outputs]

    @property
    def name(self) -> str:
        return self._server.name

    @property
    def work_ns(self) -> int:
        return self._server.work_ns

    @work_ns.setter
    def work_ns(self, work_ns: int) -> None:
        self._server.work_ns = work_ns

    def ask(self, request: InferRequest, done: Done) -> Callable[[], None]:
        return self._server.ask(request, self._version, self._outputs, done, several=self._several)


class Version:
    """Made of what one Triton says; others have the same if they say the same."""

    def __init__(
        self,
        key: ModelKey,
        message: Any,
        metadata: Any,
        statistics: ModelStatistics,
        *,
        default_max_queue_size: int,
        most_in_flight: int,
    ) -> None:
        """`message`: a ModelConfig; `metadata`: a ModelMetadataResponse.

        Raises:
            ModelLoadFailed: this server can't stand in front of such a model.
        """
        self.key = key
        self.message = message
        self.config = read_foreign(message)
        self.metadata = metadata_from(metadata)
        self.problem = ""
        """Why there is no pipeline though there is a processing.yaml; empty: there is one, or none is wanted."""
        self.mark: object = None
        """Of the pipeline's files."""
        self._places: dict[TritonServer, Place] = {}
        self._chat: ChatTemplate | None = None
        self.relay = self._relay(statistics, default_max_queue_size, most_in_flight)
        self.served = self._serve(None)

    def _relay(
        self, statistics: ModelStatistics, default_max_queue_size: int, most_in_flight: int
    ) -> Relay | SequenceRelay:
        config, loop = self.config, asyncio.get_running_loop()
        policy, slo_ns = queue_policy(config, default_max_queue_size), int(config.slo_ms * 1_000_000)
        if config.sequence_batching is not None:
            idle_ns = config.sequence_batching.max_sequence_idle_microseconds * 1000
            return SequenceRelay(config.name, policy, idle_ns, statistics, loop, slo_ns=slo_ns)
        batching = config.dynamic_batching
        merges = batching is not None and config.max_batch_size > 1
        return Relay(
            config.name,
            _bounds(config, most_in_flight, merges=merges),
            policy,
            make_costs({_TRITON: {}}, by_length=any(-1 in spec.dims for spec in config.inputs)),
            statistics,
            loop,
            priorities=priorities(config, default_max_queue_size),
            slo_ns=slo_ns,
            merges=merges,
            foresees=not config.decoupled,
            preserve_ordering=batching.preserve_ordering if batching else False,
            fair_by_tenant=config.fair_by_tenant,
        )

    def _serve(self, pipeline: Pipeline | None) -> Served:
        model = ServedModel(*self.key, self.config, Elsewhere(), pipeline, None, {}, chat=self._chat)
        make = DecoupledServed if self.config.decoupled else Served
        return make(model, self.relay, self.relay.statistics)

    def serve_by(self, servers: Iterable[TritonServer]) -> None:
        """Who has it, from now on."""
        self._places = {server: self._places.get(server) or self._place(server) for server in servers}
        self.relay.serve_by(self._places.values())

    def is_served_by(self, server: TritonServer) -> bool:
        """Requests may be sent to that one."""
        return server in self._places

    def windows(self) -> list[tuple[str, Window]]:
        """Of every server that has it, by its name; sequences have none."""
        if isinstance(self.relay, SequenceRelay):
            return []
        return [(server.name, self.relay.window(place)) for server, place in self._places.items()]

    def _place(self, server: TritonServer) -> Place:
        return Place(server, self.config, self.key[1])

    def talk(self, template: ChatTemplate | None) -> None:
        """How a conversation becomes a prompt, where the model takes text."""
        self._chat = template
        self.served = self._serve(self.served.model.pipeline)

    async def give(self, pipeline: Pipeline, server: TritonServer) -> None:
        """Let `predict` use this pipeline, if its example goes all the way on `server`.

        Raises:
            ModelLoadFailed: it does not fit the model.
        """
        if self.config.decoupled:
            problem = "a model that gives several responses to a request makes no predictions"
            raise ModelLoadFailed(self.key[0], "processing.yaml", problem)
        tensors = await asyncio.to_thread(example_tensors, self.config, pipeline)
        outputs = await self._run(tensors, server)
        if outputs is not None:
            await asyncio.to_thread(check_postprocessing, self.config, pipeline, outputs)
        self.served = self._serve(pipeline)

    async def _run(self, tensors: Mapping[str, Array], server: TritonServer) -> Mapping[str, Array] | None:
        """The outputs for these inputs; None if Triton could not be asked, which is not the pipeline's fault."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        now_ns = time.monotonic_ns()
        request = InferRequest(
            self.key[0],
            [Tensor.from_numpy(name, array) for name, array in tensors.items()],
            on_settle=lambda *_: None,
            received_ns=now_ns,
            deadline_ns=now_ns + _EXAMPLE_NS,
            parameters=_whole_sequence(self.config),
        )
        self._place(server).ask(request, outcome.set_result)
        answer = await outcome
        if isinstance(answer, InferResponse):
            return {tensor.name: tensor.numpy() for tensor in answer.outputs}
        if isinstance(answer, ServingError) and answer.code in _BUSY:
            return None
        problem = f"its example is not answered: {answer}"
        raise ModelLoadFailed(self.key[0], "processing.yaml", problem)


def _bounds(config: ModelConfig, most: int, *, merges: bool) -> Bounds:
    """Of the window of one server."""
    least = least_in_flight(config.message)
    first = max(least, min(_MOST_AT_FIRST, least * (config.max_batch_size if merges else 1)))
    return Bounds(min(least, most), min(first, most), most)


def _whole_sequence(config: ModelConfig) -> Mapping[str, Parameter]:
    """The parameters by which one request is a sequence, where the model has such."""
    if config.sequence_batching is None:
        return {}
    control = config.sequence_batching.control(ControlKind.CORRID)
    name: Parameter = _EXAMPLE if control is not None and control.datatype == "BYTES" else _EXAMPLE_NUMBER
    return {"sequence_id": name, "sequence_start": True, "sequence_end": True}


def metadata_from(message: Any) -> ModelMetadata:
    """What a ModelMetadataResponse says."""
    return ModelMetadata(
        message.name,
        tuple(message.versions),
        message.platform,
        tuple(TensorSpec(one.name, one.datatype, tuple(one.shape)) for one in message.inputs),
        tuple(TensorSpec(one.name, one.datatype, tuple(one.shape)) for one in message.outputs),
        None,
    )
