"""The access log: one line a request, of all or of a part, with its id and its trace's, and none of its data."""

from __future__ import annotations

import logging
import random

from server.observability.way import Way
from server.observability.whose import ids_of

log = logging.getLogger("server.access")


class AccessLog:
    def __init__(self, ratio: float) -> None:
        """`ratio`: the part of the requests that are answered; those that fail are all logged."""
        self._ratio = ratio

    def wanted(self, *, failed: bool) -> bool:
        return failed or random.random() < self._ratio

    def write(self, way: Way, trace_id: str) -> None:
        """`trace_id`: empty if it belongs to none."""
        queued = [end_ns - begin_ns for name, begin_ns, end_ns in way.stages if name == "queue"]
        compute = way.stage("compute")
        fields: dict[str, str | int | float] = {
            "method": way.method,
            "model": way.model_name,
            "version": way.model_version,
            "code": way.code,
            "duration_ms": _ms(way.duration_ns),
        }
        if queued:  # For preprocessing, and for the pass.
            fields["queue_ms"] = _ms(sum(queued))
        if compute is not None:
            fields["compute_ms"] = _ms(compute[2] - compute[1])
        if way.rows:
            fields["batch_rows"] = way.rows
        log.info("request", extra={"fields": fields | ids_of(way.id, trace_id)})


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)
