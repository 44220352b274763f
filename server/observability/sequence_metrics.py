"""The metrics of models that batch sequences, made from the scheduler's own counts at each scrape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from server.scheduler.statistics import ModelStatistics

_LABELS = ("model", "version")


def sequence_metrics(models: Sequence[ModelStatistics]) -> Iterator[Metric]:
    """Without samples where no model batches sequences."""
    active = GaugeMetricFamily("forwardpass_sequences_active", "Sequences that hold a slot", labels=_LABELS)
    backlog = GaugeMetricFamily("forwardpass_sequences_backlog", "Sequences that wait for a slot", labels=_LABELS)
    started = CounterMetricFamily("forwardpass_sequences_started_total", "Sequences given a slot", labels=_LABELS)
    ended = CounterMetricFamily(
        "forwardpass_sequences_aborted_total", "Sequences over before their ends, by cause", labels=(*_LABELS, "cause")
    )
    for model in models:
        counts, labels = model.sequences, (model.name, model.version)
        if counts is None:
            continue
        active.add_metric(labels, counts.active)
        backlog.add_metric(labels, counts.backlog)
        started.add_metric(labels, counts.started)
        for cause, count in counts.ended.items():
            ended.add_metric((*labels, cause.value), count)
    yield from (active, backlog, started, ended)
