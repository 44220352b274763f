"""The metrics of models that write text, made from the scheduler's own counts at each scrape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from server.observability.catalog import Family

if TYPE_CHECKING:
    from server.scheduler.statistics import ModelStatistics


def writing_metrics(models: Sequence[ModelStatistics]) -> Iterator[Metric]:
    """Without samples where no model writes text."""
    first = Family("forwardpass_text_first_token_seconds")
    between = Family("forwardpass_text_between_tokens_seconds")
    prompt_tokens = Family("forwardpass_text_prompt_tokens_total")
    tokens = Family("forwardpass_text_tokens_total")
    running = Family("forwardpass_text_running")
    held = Family("forwardpass_text_held")
    reserved = Family("forwardpass_text_kv_reserved_ratio")
    finished = Family("forwardpass_text_finished_total")
    for model in models:
        counts, labels = model.writing, (model.name, model.version)
        if counts is None:
            continue
        first.add_histogram(labels, counts.first_token, 1e-9)
        between.add_histogram(labels, counts.between_tokens, 1e-9)
        prompt_tokens.add(labels, counts.prompt_tokens)
        tokens.add(labels, counts.tokens)
        running.add(labels, counts.running)
        held.add(labels, counts.held)
        reserved.add(labels, counts.reserved_tokens / (counts.kv_tokens or 1))
        for reason, count in counts.finished.items():
            finished.add((*labels, reason.value), count)
    for family in (first, between, prompt_tokens, tokens, running, held, reserved, finished):
        yield family.metric
