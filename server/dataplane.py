"""What both transports call: infer, predict, metadata, health, statistics, model control.

`submit` is the hot way: plain calls, from the transport into a model's queue, in one loop tick. `predict` and `begin`
go round it, by `server.predictions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

from server import __version__
from server.chat import ChatTemplate
from server.classification import Classes, classify
from server.errors import ControlNotAllowed, InvalidRequest, ServingError, UnknownModel, Unsupported
from server.lifecycle import Lifecycle, State
from server.observability.audit import audited
from server.observability.following import Call
from server.observability.log_control import LogControl
from server.observability.trace_settings import Change
from server.observability.tracing import Tracing
from server.observability.whose import of
from server.offload import Offload
from server.pipeline.base import Pipeline, needs_inputs
from server.predictions import Predictions, tell
from server.proto.triton import model_config_pb2
from server.repository.certificate import Manifest
from server.repository.completed import completed
from server.repository.repository import NOT_LOADED, UNLOADED
from server.scheduler.share import Share
from server.scheduler.statistics import ModelStatistics
from server.served import Served
from server.settings import LogSettings, ModelControlMode, RepositorySettings, SharedMemorySettings, TraceSettings
from server.shared_memory.requests import SharedMemory, Submit
from server.tensor import TensorSpec
from server.types import (
    IndexEntry,
    InferRequest,
    ModelMetadata,
    PredictRequest,
    PredictResponse,
    ServerMetadata,
    Special,
)

if TYPE_CHECKING:
    from server.security.gate import Gate

SERVER_NAME = "forwardpass"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "sequence",
    "sequence(string_id)",
    "statistics",
    "trace",
    "logging",
    "predict",
)
"""Triton's names for the extensions of v2 that are served; `predict` is ours."""


_model_of = attrgetter("model_name", "model_version", "special")


class Models(Protocol):
    """The versions in service, and the way in and out of it: `ModelControl`, or what a process knows of another's."""

    def resolve(self, name: str, version: str = "") -> Served: ...
    def versions(self, name: str) -> list[Served]: ...
    def __iter__(self) -> Iterator[Served]: ...
    def index(self, repository_name: str = "") -> list[IndexEntry]: ...
    async def load(
        self, name: str, parameters: Mapping[str, object] | None = None, repository_name: str = ""
    ) -> None: ...
    async def unload(self, name: str, *, with_composing: bool = False) -> None: ...


class DataPlane:
    """The surface of the server behind its transports. All methods run on the event loop."""

    def __init__(
        self,
        models: Models,
        lifecycle: Lifecycle,
        settings: RepositorySettings,
        pipeline_threads: int,
        shared_memory: SharedMemory | None = None,
        tracing: Tracing | None = None,
        logs: LogControl | None = None,
        share: Share | None = None,
    ) -> None:
        """`shared_memory`: of the clients; None: they may not use any. `tracing`, `logs`: which they may change.
        `share`: of the cores between the models, also for making raw inputs ready."""
        self._models = models
        self._lifecycle = lifecycle
        self._settings = settings
        self._pipelines = Offload(pipeline_threads, "pipeline")
        self.gate: Gate | None = None
        """Who may ask; None: everybody may, for everything."""
        self.tracing = tracing or Tracing(TraceSettings())
        self._predictions = Predictions(self._pipelines, self.tracing, self.cancel, share)
        following = self.tracing.following
        self.forwards: Sequence[str] = following.forwards if following is not None else ()
        """Names of the metadata that goes along with requests: to another server that runs the models, and to those
        who follow requests."""
        self.logs = logs or LogControl(LogSettings())
        self.shared_memory = shared_memory or SharedMemory(SharedMemorySettings(), enabled=False)

    # --- requests ---------------------------------------------------------------------------------

    def submit(self, requests: Sequence[InferRequest]) -> None:
        """Take in requests that arrived together. Each is settled exactly once, maybe before this returns."""
        for same in _by_model(requests):
            name, version, special = _model_of(same[0])
            try:
                served = self._models.resolve(name, version)
            except ServingError as error:
                self._refuse(same, error)
            else:
                if special is None:
                    stages = served.stages
                    stages.left -= len(same)
                    if stages.left < 0:
                        stages.choose(same)
                    if self.tracing.active:
                        self.tracing.watch(same, name, served.model.version, served.statistics)
                    served.submit(same)
                    continue
                for request in same:
                    if self._prepared(request, special, served, self.submit):
                        served.submit((request,))

    def stream(self, requests: Sequence[InferRequest]) -> None:
        """As `submit`, of callers that take several responses: each request's `caller` is a `Taker`."""
        for request in requests:
            special = request.special
            try:
                served = self._models.resolve(request.model_name, request.model_version)
                if special is not None:
                    served.check_special(special)
            except ServingError as error:
                self._refuse((request,), error)
                continue
            if special is not None:
                if self._prepared(request, special, served, self.stream):
                    served.stream(request)
                continue
            if self.tracing.active:
                self.tracing.watch((request,), request.model_name, served.model.version, served.statistics)
            served.stream(request)

    def _refuse(self, requests: Sequence[InferRequest], error: ServingError) -> None:
        """Those of one name, which nothing in service goes by."""
        if self.tracing.active:
            self.tracing.watch(requests, requests[0].model_name, "")
        for request in requests:
            request.settle(error)

    def _prepared(self, request: InferRequest, special: Special, served: Served, again: Submit) -> bool:
        """Whether the request can go on now; else it comes back by `again`, with its tensors."""
        if special.shared is not None:
            request.special = Special(None, special.classes) if special.classes else None
            self.shared_memory.take(request, special.shared, again)
            return False
        self._classify(request, special, served)
        if self.tracing.active:
            self.tracing.watch((request,), served.model.name, served.model.version, served.statistics)
        return True

    def _classify(self, request: InferRequest, special: Special, served: Served) -> None:
        """Let the request settle with its outputs as the classes that it asks for."""
        config = served.model.config
        classify(request, Classes(special.classes, config.labels, config.max_batch_size > 0), self._pipelines)

    def decoupled(self, name: str, version: str = "") -> bool:
        """Whether the model may give several responses, or none, to a request; False if it is not in service."""
        try:
            return self._models.resolve(name, version).model.config.decoupled
        except ServingError:
            return False

    def cancel(self, request: InferRequest) -> None:
        """The caller went away: the request is settled as Cancelled, and not executed if it still waits."""
        if request.holder is not None:
            request.holder.cancel(request)

    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Raw inputs to answers, one for each input.

        Raises:
            ServingError: as `InferRequest`s are settled, and what the model's pipeline finds wrong.
        """
        following = self.tracing.following
        call = None if following is None else Call(following, request)
        try:
            return await self._predict(request, call)
        except BaseException as error:
            if call is not None:
                call.fail(error)
            of(error, request)
            raise

    def begin(
        self, request: PredictRequest, answered: Callable[[PredictResponse | BaseException], None]
    ) -> InferRequest | None:
        """As `predict`, in plain calls: no task and no future is made for it. `answered` is called once, maybe before
        this returns, and never raises; what is returned can be cancelled, and `answered` hears of that as well.

        None, and nothing was done: it is one for `predict`, because somebody follows it, or a thread makes its answer.

        Raises:
            ServingError: it can't be taken in; then `answered` is not called.
        """
        if self.tracing.following is not None:
            return None
        try:
            served = self._models.resolve(request.model_name, request.model_version)
            pipeline = self._pipeline(served, request)
        except ServingError as error:
            of(error, request)
            raise
        if needs_inputs(pipeline):
            return None
        served.__enter__()
        try:
            return self._predictions.begin(served, pipeline, request, partial(tell, served, answered))
        except BaseException:
            served.__exit__()
            raise

    def hopeless(self, model_name: str, size: int, received_ns: int, deadline_ns: int) -> ServingError | None:
        """Why a prediction of the model, whose one input has about `size` bytes, is refused before it is read; it is
        counted then. None: it has to be read, and asked for by `predict` or `begin`."""
        if self.tracing.following is not None:
            return None  # Somebody is to hear of each, and of all that it says.
        try:
            preparing = self._models.resolve(model_name).preparing
        except ServingError:
            return None
        return None if preparing is None else preparing.hopeless(size, received_ns, deadline_ns)

    async def _predict(self, request: PredictRequest, call: Call | None = None) -> PredictResponse:
        """`call`: by which it is followed."""
        with self._models.resolve(request.model_name, request.model_version) as served:
            return await self._predictions.answer(served, self._pipeline(served, request), request, call)

    def _pipeline(self, served: Served, request: PredictRequest) -> Pipeline:
        pipeline = served.model.pipeline
        if pipeline is None:
            instead = "PredictStream" if served.model.config.decoupled else "infer"
            raise Unsupported("predict", f"model '{request.model_name}' has no processing.yaml: use {instead}")
        rows, most = len(request.inputs), max(served.model.config.max_batch_size, 1)
        if not 1 <= rows <= most:
            raise InvalidRequest(
                "inputs", f"must be 1 to {most} (max_batch_size of model '{request.model_name}'), got {rows}"
            )
        return pipeline

    # --- health and metadata ----------------------------------------------------------------------

    def live(self) -> bool:
        """The loop answers (it does, if this runs) and every engine thread beats."""
        return all(served.healthy() for served in self._models)

    def ready(self) -> bool:
        """In service, with every queue moving; under strict readiness also with every model loaded."""
        if self._lifecycle.state is not State.READY or not self.live():
            return False
        return not self._settings.strict_readiness or all(_as_wanted(entry) for entry in self._models.index())

    def draining(self) -> bool:
        """The server shuts down, so that nothing will be ready again."""
        return self._lifecycle.state >= State.DRAINING

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether the model answers now. Raises UnknownModel."""
        try:
            served = self._models.resolve(name, version)
        except UnknownModel:
            raise
        except ServingError:
            return False
        return self._lifecycle.state is State.READY and served.healthy()

    def server_metadata(self) -> ServerMetadata:
        return ServerMetadata(SERVER_NAME, __version__, (*EXTENSIONS, *self.shared_memory.extensions()))

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """Of the version that is named, else of all in service. Raises UnknownModel, ModelNotReady."""
        named = self._models.resolve(name, version)
        model, told = named.model, [named] if version else self._models.versions(name)
        config = model.config
        return ModelMetadata(
            name=model.name,
            versions=tuple(served.model.version for served in told),
            platform=config.platform,
            inputs=_with_batch(config.inputs, config.max_batch_size),
            outputs=_with_batch(config.outputs, config.max_batch_size),
            predict=model.pipeline.describe() if model.pipeline else None,
        )

    def pipeline(self, name: str, version: str = "") -> Pipeline | None:
        """What `predict` runs, None where the model has no processing.yaml. Raises UnknownModel, ModelNotReady."""
        return self._models.resolve(name, version).model.pipeline

    def chat_template(self, name: str) -> ChatTemplate | None:
        """Of a model that writes text, None where it has none. Raises UnknownModel, ModelNotReady."""
        return self._models.resolve(name).model.chat

    def manifest(self, name: str, version: str = "") -> Manifest | None:
        """The model's certificate, None where it has none. Raises UnknownModel, ModelNotReady."""
        return self._models.resolve(name, version).model.manifest

    def model_config(self, name: str, version: str = "") -> model_config_pb2.ModelConfig:
        """What config.pbtxt says, completed by what is so where it says nothing. Raises UnknownModel, ModelNotReady."""
        model = self._models.resolve(name, version).model
        return completed(model.config, model.devices)

    def statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        """What this process counted of every version in service, or of those that `name` and `version` name.

        Raises:
            UnknownModel: there is no such model in service.
        """
        if not name:
            return [served.statistics for served in self._models]
        if version:
            return [self._models.resolve(name, version).statistics]
        self._models.resolve(name)
        return [served.statistics for served in self._models.versions(name)]

    async def total_statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        """As `statistics`, of all processes of the server together; raises the same."""
        return self.statistics(name, version)

    def trace_settings(self, model_name: str, changes: Mapping[str, Change]) -> dict[str, list[str]]:
        """Change trace settings, and tell them; of all models where `model_name` is empty.

        Raises:
            UnknownModel: the repository has no such model.
            InvalidRequest, Unsupported: a change that can't be made; then none is.
        """
        if model_name and all(entry.name != model_name for entry in self._models.index()):
            raise UnknownModel(model_name)
        if changes:
            with audited("trace.change", model=model_name, changes=dict(changes)):
                self.tracing.update(changes, model_name)
        return self.tracing.told(model_name)

    # --- model control ----------------------------------------------------------------------------

    @property
    def control_mode(self) -> ModelControlMode:
        """Clients may load and unload models where it is explicit."""
        return self._settings.control_mode

    def repository_index(self, ready: bool = False, repository_name: str = "") -> list[IndexEntry]:
        """Every model and version with its state; with `ready` only those in service. Raises UnknownRepository."""
        return [entry for entry in self._models.index(repository_name) if not ready or entry.state == "READY"]

    async def current_index(self, ready: bool = False, repository_name: str = "") -> list[IndexEntry]:
        """As `repository_index`, asked where the repository is looked after; raises the same."""
        return self.repository_index(ready, repository_name)

    async def load_model(
        self, name: str, parameters: Mapping[str, object] | None = None, repository_name: str = ""
    ) -> None:
        """Load a model as its folder says, or as the `parameters` do (see `server.repository.override`).

        Raises:
            ControlNotAllowed: the mode is not explicit.
            UnknownModel, UnknownRepository, InvalidRequest, PayloadTooLarge, ModelLoadFailed: see `ModelControl.load`.
        """
        with audited("model.load", model=name, repository=repository_name, parameters=",".join(parameters or ())):
            self._demand_explicit()
            await self._models.load(name, parameters, repository_name)

    async def unload_model(self, name: str, *, unload_dependents: bool = False, repository_name: str = "") -> None:
        """Raises ControlNotAllowed (not in explicit mode), UnknownModel, UnknownRepository."""
        with audited("model.unload", model=name, repository=repository_name, unload_dependents=unload_dependents):
            self._demand_explicit()
            if repository_name and all(entry.name != name for entry in self._models.index(repository_name)):
                raise UnknownModel(name)
            await self._models.unload(name, with_composing=unload_dependents)

    def _demand_explicit(self) -> None:
        if self._settings.control_mode != "explicit":
            raise ControlNotAllowed(self._settings.control_mode)

    def close(self) -> None:
        """Let the threads of pipelines and shared memory end."""
        self._pipelines.close()
        self.shared_memory.close()


def _by_model(requests: Sequence[InferRequest]) -> Sequence[Sequence[InferRequest]]:
    """The requests, cut where the next one is for another model or otherwise special. Those of one form are not."""
    form = requests[0].form if requests else None
    if form is not None and [request.form for request in requests].count(form) == len(requests):
        return (requests,)
    return [list(group) for _, group in groupby(requests, _model_of)]


def _as_wanted(entry: IndexEntry) -> bool:
    """It serves, or nobody asked for it; as in Triton, what was unloaded keeps no server from being ready."""
    return entry.state in ("READY", "UNLOADING") or entry.reason in (UNLOADED, NOT_LOADED)


def _with_batch(specs: tuple[TensorSpec, ...], max_batch_size: int) -> tuple[TensorSpec, ...]:
    if not max_batch_size:
        return specs
    return tuple(TensorSpec(spec.name, spec.datatype, (-1, *spec.dims)) for spec in specs)
