"""The data plane in front of Tritons: a request's way is the base's; health and metadata are as Tritons say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from server.dataplane import DataPlane
from server.errors import ModelNotReady, ServingError, UnknownModel
from server.lifecycle import Lifecycle, State
from server.observability.log_control import LogControl
from server.observability.tracing import Tracing
from server.over_triton.models import TritonModels
from server.pipeline.base import Pipeline
from server.scheduler.share import Share
from server.served import Served
from server.settings import RepositorySettings
from server.shared_memory.requests import SharedMemory
from server.types import InferRequest, ModelMetadata, PredictRequest, Special


class TritonPlane(DataPlane):
    """Live is who follows the Tritons; ready is who has one that is."""

    def __init__(
        self,
        models: TritonModels,
        lifecycle: Lifecycle,
        settings: RepositorySettings,
        pipeline_threads: int,
        shared_memory: SharedMemory,
        tracing: Tracing,
        logs: LogControl | None,
        forwards: Sequence[str],
    ) -> None:
        """As of `DataPlane`."""
        share = Share(pipeline_threads)
        super().__init__(models, lifecycle, settings, pipeline_threads, shared_memory, tracing, logs, share)
        self._tritons = models
        self.forwards = tuple(dict.fromkeys((*forwards, *self.forwards)))

    def live(self) -> bool:
        return self._tritons.following()

    def ready(self) -> bool:
        """As ever, and at least one Triton says so of itself."""
        return any(server.ready for server in self._tritons.pool.up) and super().ready()

    def model_ready(self, name: str, version: str = "") -> bool:
        try:
            served = self._tritons.resolve(name, version)
        except UnknownModel:
            raise
        except ServingError:
            return False
        return self._lifecycle.state is State.READY and served.batcher.healthy()

    def model_metadata(self, name: str, version: str = "") -> ModelMetadata:
        """In Triton's own words, with the versions that are in service here. Raises UnknownModel, ModelNotReady."""
        found = self._tritons.version(name, version)
        pipeline = found.served.model.pipeline
        versions = tuple(served.model.version for served in self._tritons.versions(name))
        return replace(found.metadata, versions=versions, predict=pipeline.describe() if pipeline else None)

    def _classify(self, request: InferRequest, special: Special, served: Served) -> None:
        """Triton's to do, which has the labels: the request still says so when it is sent there."""

    def _pipeline(self, served: Served, request: PredictRequest) -> Pipeline:
        problem = self._tritons.version(served.model.name, served.model.version).problem
        if problem:
            raise ModelNotReady(served.model.name, served.model.version, f"to predict: {problem}")
        return super()._pipeline(served, request)
