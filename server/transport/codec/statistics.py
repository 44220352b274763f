"""The scheduler's counts of a model -> v2's ModelStatistics. Source: Triton's extension_statistics.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from server.proto.triton import service_pb2 as pb

if TYPE_CHECKING:
    from server.scheduler.statistics import Duration, ModelStatistics


def encode_statistics(models: Iterable[ModelStatistics]) -> Any:
    """A ModelStatisticsResponse."""
    return pb.ModelStatisticsResponse(model_stats=[_model(model) for model in models])


def _model(model: ModelStatistics) -> Any:
    return pb.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=model.last_inference_ms,
        inference_count=model.inference_count,
        execution_count=model.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(model.success),
            fail=_duration(model.fail),
            queue=_duration(model.queue),
            compute_input=_duration(model.compute_input),
            compute_infer=_duration(model.compute_infer),
            compute_output=_duration(model.compute_output),
            cache_hit=_duration(model.cache_hit),
            cache_miss=_duration(model.cache_miss),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for rows, batch in sorted(model.batch_stats.items())
        ],
    )


def _duration(duration: Duration) -> Any:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)
