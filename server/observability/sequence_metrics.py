"""The metrics of models that batch sequences, made from the scheduler's own counts at each scrape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from server.observability.catalog import Family

if TYPE_CHECKING:
    from server.scheduler.statistics import ModelStatistics


def sequence_metrics(models: Sequence[ModelStatistics]) -> Iterator[Metric]:
    """Without samples where no model batches sequences."""
    active = Family("forwardpass_sequences_active")
    backlog = Family("forwardpass_sequences_backlog")
    started = Family("forwardpass_sequences_started_total")
    ended = Family("forwardpass_sequences_aborted_total")
    for model in models:
        counts, labels = model.sequences, (model.name, model.version)
        if counts is None:
            continue
        active.add(labels, counts.active)
        backlog.add(labels, counts.backlog)
        started.add(labels, counts.started)
        for cause, count in counts.ended.items():
            ended.add((*labels, cause.value), count)
    yield from (active.metric, backlog.metric, started.metric, ended.metric)
