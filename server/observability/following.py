"""Requests followed from their receipt to their answer, for spans and for the access log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from server.errors import Cancelled
from server.explain import Explanation
from server.observability.access import AccessLog
from server.observability.spans import Spans, Watched
from server.observability.trace_context import FORWARDED, context_of, onward
from server.observability.way import Way, way_of_call
from server.types import Metadata, PredictRequest

if TYPE_CHECKING:
    from server.scheduler.statistics import ModelStatistics
    from server.settings import Settings


class Following:
    """The two that are told of whole requests. On the event loop."""

    forwards = FORWARDED
    """What transports hand on of the callers' metadata."""

    def __init__(self, spans: Spans | None, access: AccessLog | None, *, passes_on: bool = False) -> None:
        """`passes_on`: another server runs the models, and is told which span it is asked below."""
        self._spans = spans
        self._access = access
        self._passes_on = passes_on and spans is not None

    def begin(self, metadata: Metadata) -> Watched | None:
        """Of a request that comes now; None: nothing is known of its trace."""
        if self._spans is not None:
            return self._spans.begin(metadata, passes_on=self._passes_on)
        caller = context_of(metadata) if metadata else None
        return None if caller is None else Watched(caller, caller, 0)

    def onward(self, watched: Watched | None, metadata: Metadata) -> Metadata:
        """The metadata that goes along with the request: they name its trace, where one is told of."""
        if watched is None or not (self._passes_on or (watched.caller is None and watched.own.trace_id)):
            return metadata
        return onward(metadata, watched.onward)

    def failing(self, watched: Watched | None, metadata: Metadata) -> tuple[Watched | None, Metadata]:
        """Of a request that is about to fail, and is told of for that: it has a trace from here on, for the log."""
        if self._spans is None or watched is None:
            return watched, metadata
        watched = self._spans.named(watched)
        return watched, self.onward(watched, metadata)

    def over(
        self,
        watched: Watched | None,
        duration_ns: int,
        failed: bool,
        make_way: Callable[[], Way],
        statistics: ModelStatistics | None,
    ) -> None:
        """A request is settled. `statistics`: of the version that answered it, whose metrics may name its trace."""
        spans, access = self._spans, self._access
        told = spans is not None and watched is not None and spans.wanted(watched, duration_ns, failed=failed)
        logged = access is not None and access.wanted(failed=failed)
        if not told and not logged:
            return
        way = make_way()
        if told and spans is not None and watched is not None:
            watched = spans.named(watched)
        trace_id = ""
        if watched is not None and (told or watched.caller is not None):
            trace_id = f"{watched.own.trace_id:032x}"
        if told:
            assert spans is not None
            assert watched is not None
            spans.tell(watched, way)
            if statistics is not None and way.model_ns:
                statistics.request_duration.exemplify(way.model_ns, trace_id)
        if logged:
            assert access is not None
            access.write(way, trace_id)

    def close(self) -> None:
        """Send what is left; it blocks for some seconds at most."""
        if self._spans is not None:
            self._spans.close()


class Call:
    """A predict call that is followed: by its explanation, which ends when the answer is written."""

    __slots__ = ("_explanation", "_following", "_request", "_watched")

    def __init__(self, following: Following, request: PredictRequest) -> None:
        self._following = following
        self._request = request
        self._watched = following.begin(request.metadata)
        # Of its pass, which goes where the call's metadata says.
        request.metadata = following.onward(self._watched, request.metadata)
        if request.explanation is None:
            request.explanation = Explanation(request.received_ns, asked=False)
            request.explanation.mark("decode")
        self._explanation = request.explanation

    def answered(self, version: str, statistics: ModelStatistics) -> None:
        """By that version; the answer is about to be written."""
        self._explanation.then(lambda _: self._over(version, statistics, None))

    def fail(self, error: BaseException) -> None:
        """It ends with `error`; if that is no `Exception`, its caller went away."""
        self._watched, self._request.metadata = self._following.failing(self._watched, self._request.metadata)
        self._over("", None, error if isinstance(error, Exception) else Cancelled())

    def _over(self, version: str, statistics: ModelStatistics | None, error: Exception | None) -> None:
        ended_ns, request, explanation = time.monotonic_ns(), self._request, self._explanation
        name, version = request.model_name, version or request.model_version

        def way() -> Way:
            return way_of_call(name, version, request.id, explanation, error, ended_ns)

        duration_ns = ended_ns - explanation.received_ns
        self._following.over(self._watched, duration_ns, error is not None, way, statistics)


def following(settings: Settings) -> Following | None:
    """What the settings ask for; None: nothing. Raises InvalidRequest."""
    spans = Spans(settings.otlp) if settings.otlp.endpoint else None
    access = AccessLog(settings.log.access) if settings.log.access else None
    if spans is None and access is None:
        return None
    return Following(spans, access, passes_on=settings.engine.kind == "triton")
