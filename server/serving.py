"""From a loaded version to one that serves: the batcher that its config asks for, and what stands around it."""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from server.engine.base import WritingInstance
from server.ensembles import Ensemble
from server.pipeline.base import fills
from server.queueing import priorities, queue_policy
from server.repository.repository import ServedModel
from server.request_check import RequestCheck
from server.scheduler.batcher import Batcher
from server.scheduler.caching import CachingBatcher
from server.scheduler.costs import Costs, make_costs
from server.scheduler.decoupled import DecoupledBatcher
from server.scheduler.ensemble import EnsembleBatcher
from server.scheduler.plan import Limits
from server.scheduler.queue import QueuePolicy
from server.scheduler.raw import RawPasses
from server.scheduler.response_cache import ResponseCache
from server.scheduler.sequence_batcher import SequenceBatcher
from server.scheduler.share import Share
from server.scheduler.statistics import ModelStatistics
from server.scheduler.writing import WritingBatcher
from server.sequences import SequenceBatching
from server.served import DecoupledServed, EnsembleServed, ModelBatcher, SequenceServed, Served

log = logging.getLogger(__name__)


def costs_of(model: ServedModel) -> Costs:
    """What its passes cost, as the warm-up found it."""
    config = model.config
    return make_costs(
        {instance.device: model.costs_ns.get(instance.device, {}) for instance in model.engine_model.instances},
        by_length=any(-1 in spec.dims for spec in config.inputs),
        buckets=config.buckets.lengths if config.buckets else (),
        max_batch_size=config.max_batch_size,
    )


class Serving:
    """How versions are served here. Called on the event loop."""

    def __init__(
        self, default_max_queue_size: int, share: Share | None, cache: ResponseCache | None, hang_s: float = 0.0
    ) -> None:
        """`cache`: of the answers of the models that ask for it; None: no answer is kept. `hang_s`: see `Batcher`."""
        self._hang_s = hang_s
        self._default_max_queue_size = default_max_queue_size
        self._share = share
        self._cache = cache

    def serve(self, model: ServedModel, statistics: ModelStatistics) -> Served:
        """By the batcher that its requests need: of an ensemble, of sequences, with several responses, or any other."""
        config = model.config
        if config.ensemble is not None:
            return self._ensemble(model, config.ensemble, statistics)
        if config.sequence_batching is not None:
            return self._sequences(model, config.sequence_batching, statistics)
        if config.writes_text:
            return self._writing(model, statistics)
        if config.decoupled:
            return self._decoupled(model, statistics)
        batching = config.dynamic_batching
        # A model without dynamic_batching runs each request alone: Triton's default scheduler.
        limits = Limits(
            max_batch_size=config.max_batch_size if batching else 0,
            preferred_batch_size=batching.preferred_batch_size if batching else (),
            max_queue_delay_ns=batching.max_queue_delay_microseconds * 1000 if batching else 0,
        )
        batcher = Batcher(
            model.name,
            model.version,
            model.engine_model.instances,
            limits,
            queue_policy(config, self._default_max_queue_size),
            costs_of(model),
            statistics,
            asyncio.get_running_loop(),
            priorities=priorities(config, self._default_max_queue_size),
            slo_ns=_slo_ns(model),
            preserve_ordering=batching.preserve_ordering if batching else False,
            share=self._share,
            fair_by_tenant=config.fair_by_tenant,
            buckets=config.buckets,
            hang_s=self._hang_s,
            raw=self._raw_passes(model),
        )
        return Served(model, self._with_cache(model, batcher, statistics), statistics)

    def _raw_passes(self, model: ServedModel) -> RawPasses | None:
        """Where the only core decodes and runs the engine, passes may do both; whose tensors are all alike."""
        config, pipeline = model.config, model.pipeline
        one_core = self._share is not None and self._share.tokens == 1
        if pipeline is None or not one_core or any(-1 in spec.dims or spec.optional for spec in config.inputs):
            return None
        if any(not instance.threads for instance in model.engine_model.instances):
            return None  # Its device does the one while the core does the other.
        return RawPasses(model.name, pipeline.preprocess, fills(pipeline), RequestCheck(config))

    def _with_cache(self, model: ServedModel, batcher: Batcher, statistics: ModelStatistics) -> ModelBatcher:
        """As in Triton, a model whose answers are to be kept is served without where the server keeps none."""
        if not model.config.response_cache:
            return batcher
        if self._cache is None:
            log.warning(
                "model '%s' has a response_cache, and the server keeps no answers (--cache-size-bytes)", model.name
            )
            return batcher
        return CachingBatcher(batcher, model.version, self._cache, statistics, slo_ns=_slo_ns(model))

    def _decoupled(self, model: ServedModel, statistics: ModelStatistics) -> DecoupledServed:
        config, size = model.config, self._default_max_queue_size
        batcher = DecoupledBatcher(
            model.name,
            model.version,
            model.engine_model.instances,
            queue_policy(config, size),
            statistics,
            asyncio.get_running_loop(),
            priorities=priorities(config, size),
            slo_ns=_slo_ns(model),
            share=self._share,
            fair_by_tenant=config.fair_by_tenant,
        )
        return DecoupledServed(model, batcher, statistics)

    def _writing(self, model: ServedModel, statistics: ModelStatistics) -> DecoupledServed:
        config, size = model.config, self._default_max_queue_size
        [instance] = model.engine_model.instances
        batcher = WritingBatcher(
            model.name,
            model.version,
            cast("WritingInstance", instance),
            queue_policy(config, size),
            statistics,
            asyncio.get_running_loop(),
            priorities=priorities(config, size),
            slo_ns=_slo_ns(model),
            fair_by_tenant=config.fair_by_tenant,
        )
        return DecoupledServed(model, batcher, statistics)

    def _sequences(
        self, model: ServedModel, sequences: SequenceBatching, statistics: ModelStatistics
    ) -> SequenceServed:
        batcher = SequenceBatcher(
            model.name,
            model.version,
            model.engine_model.instances,
            sequences,
            model.config.max_batch_size,
            QueuePolicy(max_queue_size=self._default_max_queue_size),
            costs_of(model),
            statistics,
            asyncio.get_running_loop(),
            outputs=[spec.name for spec in model.config.outputs],
            slo_ns=_slo_ns(model),
            share=self._share,
        )
        return SequenceServed(model, batcher, statistics)

    def _ensemble(self, model: ServedModel, ensemble: Ensemble, statistics: ModelStatistics) -> EnsembleServed:
        batcher = EnsembleBatcher(
            model.name,
            model.version,
            ensemble,
            {spec.name: spec.dims for spec in model.config.outputs},
            statistics,
            batched=model.config.max_batch_size > 0,
            max_queue_size=self._default_max_queue_size,
            slo_ns=_slo_ns(model),
        )
        return EnsembleServed(model, batcher, statistics)


def _slo_ns(model: ServedModel) -> int:
    return int(model.config.slo_ms * 1_000_000)
