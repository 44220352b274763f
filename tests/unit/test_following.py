"""Requests that are followed: whose spans are told, with which ids, and what the access log has of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from server.errors import EngineFailure, InvalidRequest, Overloaded, ServingError
from server.explain import Explanation
from server.observability.access import AccessLog
from server.observability.following import Call, Following
from server.observability.logging import JsonFormatter, text_formatter
from server.observability.spans import Spans
from server.observability.trace_context import TraceContext, context_of, onward
from server.observability.tracing import Tracing
from server.observability.whose import about
from server.scheduler.statistics import ModelStatistics
from server.settings import OtlpSettings, TraceSettings
from server.types import InferRequest, InferResponse, Metadata, Outcome, PredictRequest, Timing

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNWANTED = CALLER[:-2] + "00"
TIMING = Timing(10, 20, 30, 40, 5)
TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


class Told:
    """Spans that were told, by name, once everything is over. No request's are by chance unless `ratio` says so."""

    def __init__(
        self, passes_on: bool = False, access: AccessLog | None = None, ratio: float = 0, **settings: Any
    ) -> None:
        self.kept = Kept()
        spans = Spans(OtlpSettings(endpoint="nobody:1", ratio=ratio, **settings), self.kept)
        self.following = Following(spans, access, passes_on=passes_on)
        self.tracing = Tracing(TraceSettings(), self.following)
        self.statistics = ModelStatistics("m", "3")

    def infer(
        self,
        metadata: Metadata = (),
        outcome: Outcome | None = None,
        received_ns: int = 1_000,
        timing: Timing = TIMING,
        id: str = "",
    ) -> InferRequest:
        request = InferRequest("m", [], on_settle=lambda *_: None, received_ns=received_ns, model_version="3", id=id)
        if metadata:
            request.metadata = metadata
        self.tracing.watch((request,), "m", "3", self.statistics)
        request.enqueued_ns = received_ns + 100
        request.settle(outcome or InferResponse("m", "3", [], timing=timing))
        return request

    def spans(self) -> dict[str, ReadableSpan]:
        self.following.close()
        return {span.name: span for span in self.kept.spans}


@pytest.mark.parametrize(
    ("text", "context"),
    [
        (CALLER, TraceContext(TRACE, SPAN, True)),
        (UNWANTED, TraceContext(TRACE, SPAN, False)),
        (CALLER.replace("00-", "cc-", 1) + "-more", TraceContext(TRACE, SPAN, True)),
        (CALLER + "-more", None),
        (CALLER.replace("00-", "ff-", 1), None),
        (CALLER.upper(), None),
        ("00-" + "0" * 32 + "-b7ad6b7169203331-01", None),
        ("00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_the_standard_says(text: str, context: TraceContext | None) -> None:
    """Of a version to come what is known is read; what is none is as if it were not there."""
    assert context_of((("traceparent", text),)) == context


def test_metadata_goes_on_with_our_span_in_the_place_of_the_callers() -> None:
    """Everything else stays."""
    before = (("traceparent", CALLER), ("tracestate", "a=b"), ("x-other", "c"))
    after = onward(before, TraceContext(TRACE, 1, True))
    assert after == (
        ("tracestate", "a=b"),
        ("x-other", "c"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-0000000000000001-01"),
    )


def test_the_spans_of_a_request_are_nested_below_its_callers() -> None:
    """Each stage below the request, each part of the pass below the pass; times are those that were measured."""
    told = Told()
    told.infer((("traceparent", CALLER), ("tracestate", "vendor=1")), id="r1")
    spans = told.spans()
    assert set(spans) == {
        *("infer m", "batch m", "decode", "queue", "compute", "encode"),
        *("compute_input", "compute_infer", "compute_output"),
    }
    root = spans["infer m"]
    assert root.context is not None
    assert root.parent is not None
    assert (root.context.trace_id, root.parent.span_id, root.parent.is_remote) == (TRACE, SPAN, True)
    assert root.context.trace_state.to_header() == "vendor=1"
    assert dict(root.attributes or {}) == {
        "model.name": "m",
        "model.version": "3",
        "code": "OK",
        "request.id": "r1",
        "batch.rows": 5,
    }
    compute = spans["compute"].context
    assert compute is not None
    for name in ("decode", "queue", "compute", "encode"):
        assert spans[name].parent == root.context, name
    for name in ("compute_input", "compute_infer", "compute_output"):
        assert spans[name].parent == compute, name
    lengths = {name: (span.end_time or 0) - (span.start_time or 0) for name, span in spans.items()}
    assert lengths | {"decode": 100, "queue": 10, "compute_infer": 30, "compute": 90, "batch m": 90} == lengths
    [link] = root.links
    assert link.context == spans["batch m"].context
    assert spans["batch m"].parent is None


def test_requests_of_one_pass_link_to_one_batch() -> None:
    """Its span is told once, whichever of them is over first."""
    told = Told(ratio=1)
    told.infer(received_ns=1_000, timing=Timing(60, 1, 1, 1, 2))
    told.infer(received_ns=1_050, timing=Timing(10, 1, 1, 1, 2))
    told.infer(received_ns=2_000, timing=Timing(10, 1, 1, 1, 1))
    told.following.close()
    links = [span.links[0].context.span_id for span in told.kept.spans if span.name == "infer m"]
    batches = [span.context.span_id for span in told.kept.spans if span.name == "batch m" and span.context]
    assert links[0] == links[1] != links[2]
    assert batches == [links[0], links[2]]


def test_a_caller_that_wants_no_spans_gets_those_of_what_failed() -> None:
    """Its own decision counts before the ratio; a failure is told with the words that a client gets."""
    told = Told(ratio=1, slow_ms=0)
    told.infer((("traceparent", UNWANTED),))
    assert told.spans() == {}
    failing = Told(slow_ms=0)
    failing.infer((("traceparent", UNWANTED),), Overloaded("m", 5))
    failing.infer(outcome=EngineFailure("m", "secret"))
    failing.following.close()
    first, second = [span for span in failing.kept.spans if span.name == "infer m"]
    assert first.context is not None
    assert first.context.trace_id == TRACE
    assert (first.attributes or {})["code"] == "EXHAUSTED"
    assert "would be answered" in str(first.status.description) or "5 ms" in str(first.status.description)
    assert "secret" not in str(second.status.description)


def test_the_slow_are_told_of_whatever_the_ratio() -> None:
    """From receipt to answer it took longer than the setting says: the request was received at the clock's begin."""
    told = Told(slow_ms=1)
    told.infer(received_ns=1)
    assert "infer m" in told.spans()
    quick = Told(slow_ms=1e12)
    quick.infer(received_ns=1)
    assert quick.spans() == {}


def test_another_server_is_told_which_span_it_is_below() -> None:
    """Of the pass, in the caller's trace, with the caller's decision; without a caller in a trace of its own."""
    told = Told(passes_on=True)
    asked = dict(told.infer((("traceparent", CALLER), ("x-other", "c"))).metadata)
    compute = told.spans()["compute"].context
    assert compute is not None
    assert asked == {"x-other": "c", "traceparent": f"00-{TRACE:032x}-{compute.span_id:016x}-01"}
    [(name, value)] = Told(passes_on=True).infer().metadata
    assert name == "traceparent"
    assert value.endswith("-00")


def test_a_predict_call_is_told_whole() -> None:
    """By its explanation: preprocessing and postprocessing are spans beside the pass."""
    told = Told(ratio=1)
    call = PredictRequest("m", [], received_ns=100, explanation=Explanation(100))
    follows = Call(told.following, call)
    explanation = call.explanation
    assert explanation is not None
    for part, at_ns in (("decode", 200), ("loop", 210), ("preprocess", 300), ("loop", 320), ("queue", 330)):
        explanation.mark(part, at_ns)
    for part, at_ns in (("compute_input", 340), ("compute", 350), ("compute_output", 360), ("postprocess", 400)):
        explanation.mark(part, at_ns)
    explanation.batch_rows = 1
    follows.answered("3", told.statistics)
    assert "compute;dur=" in explanation.finish()
    spans = told.spans()
    root = spans["predict m"].context
    children = {name for name, span in spans.items() if span.parent == root}
    assert children == {"decode", "preprocess", "queue", "compute", "postprocess", "encode"}
    assert (spans["compute"].end_time or 0) - (spans["compute"].start_time or 0) == 30
    assert spans["compute_infer"].parent == spans["compute"].context
    assert len(spans["predict m"].links) == 1


@pytest.mark.parametrize(
    ("error", "code"), [(InvalidRequest("inputs", "bad"), "INVALID_ARG"), (KeyboardInterrupt(), "CANCELLED")]
)
def test_a_predict_call_that_fails_is_told(error: BaseException, code: str) -> None:
    """Whose caller went away as well."""
    told = Told()
    Call(told.following, PredictRequest("m", [], model_version="3")).fail(error)
    assert (told.spans()["predict m"].attributes or {})["code"] == code


def test_the_trace_of_an_answer_is_an_exemplar_of_its_bucket() -> None:
    """Of the duration that metrics count, so that the bucket is the one that counts it; not of what is not told."""
    told = Told(slow_ms=0)
    told.infer()
    assert told.statistics.request_duration.exemplars == {}
    told.infer((("traceparent", CALLER),), timing=Timing(100_000, 0, 0, 0, 1))
    [(bucket, exemplar)] = told.statistics.request_duration.exemplars.items()
    assert told.statistics.request_duration.bounds[bucket] == 250_000
    assert (exemplar.trace_id, exemplar.value) == (f"{TRACE:032x}", 100_100)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(JsonFormatter().format(record)) for record in caplog.records]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    caplog.set_level(logging.INFO, "server.access")
    return lambda: lines(caplog)


def test_the_access_log_has_a_line_a_request(logged: Callable[[], list[dict[str, Any]]]) -> None:
    """With its id and its trace's, and where its time went."""
    following = Following(None, AccessLog(1.0))
    told = Told()
    told.tracing.following = following
    told.infer((("traceparent", CALLER),), id="r1")
    told.infer(outcome=Overloaded("m", 5))
    first, second = logged()
    assert first["message"] == "request"
    expected = {"method": "infer", "model": "m", "version": "3", "code": "OK", "queue_ms": 0.0, "batch_rows": 5}
    assert first | expected | {"request_id": "r1", "trace_id": f"{TRACE:032x}"} == first
    assert second["code"] == "EXHAUSTED"
    assert "trace_id" not in second


def test_a_part_of_the_requests_is_logged_and_all_that_fail(logged: Callable[[], list[dict[str, Any]]]) -> None:
    """By chance."""
    told = Told()
    told.tracing.following = Following(None, AccessLog(0.1))
    for _ in range(1000):
        told.infer()
    assert 40 < len(logged()) < 200
    before = len(logged())
    for _ in range(5):
        told.infer(outcome=EngineFailure("m", "secret"))
    assert [line["code"] for line in logged()[before:]] == ["INTERNAL"] * 5
    assert "secret" not in json.dumps(logged())


def test_a_line_for_people_has_the_same_fields(caplog: pytest.LogCaptureFixture) -> None:
    """What a client chose can't make it look like more than one line, or another field."""
    caplog.set_level(logging.INFO, "server.access")
    told = Told()
    told.tracing.following = Following(None, AccessLog(1.0))
    told.infer(id='a b="c"\nd')
    text = text_formatter().format(caplog.records[0])
    assert "server.access: request method=infer model=m version=3 code=OK duration_ms=" in text
    assert text.endswith('request_id="a b=\\"c\\"\\nd"')


def test_a_line_names_the_requests_that_it_is_about() -> None:
    """One by itself, those of a pass as lists; a request without an id or a trace has none there, and none is long."""
    told = Told()
    one, other = told.infer((("traceparent", CALLER),), id="r1"), told.infer(id="x" * 1000)
    assert about(one) == {"fields": {"request_id": "r1", "trace_id": f"{TRACE:032x}"}}
    assert about(other)["fields"].keys() == {"request_id"}
    assert len(str(about(other)["fields"]["request_id"])) == 256
    both = about(one, other, told.infer())["fields"]
    assert list(map(len, cast("list[str]", both["request_ids"]))) == [2, 256]
    assert both["trace_ids"] == [f"{TRACE:032x}"]
    assert about(None) == about() == {"fields": {}}


def test_a_request_that_fails_has_its_trace_before_its_error_is_logged() -> None:
    """Nobody chose it, and its spans are told because it failed: the log's line has the id that they will have."""
    told, seen = Told(), list[dict[str, object]]()
    request = InferRequest("m", [], on_settle=lambda r, _: seen.append(about(r)["fields"]), received_ns=1)
    told.tracing.watch((request,), "m", "3", told.statistics)
    request.settle(EngineFailure("m", "secret"))
    assert seen == [{"trace_id": f"{told.spans()['infer m'].context.trace_id:032x}"}]


@pytest.mark.parametrize("endpoint", ["collector", "ftp://a:1", "a:b", "http://a:1/v1/traces"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    """By the name of its flag."""
    with pytest.raises(InvalidRequest, match="--otlp-endpoint"):
        Spans(OtlpSettings(endpoint=endpoint))


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are imported where spans are wanted only."""
    monkeypatch.setitem(__import__("sys").modules, "server.observability.otel", None)
    with pytest.raises(ServingError, match="tracing"):
        Spans(OtlpSettings(endpoint="a:1"))
