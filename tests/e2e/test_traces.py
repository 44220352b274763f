"""Spans of real requests, as a collector is sent them: by the server, and by a real Triton behind it.

A Triton that is missing (`make triton` installs one) skips its test; under CI it fails.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2_grpc

from server.proto.triton import service_pb2 as pb
from server.repository.golden import read_golden
from tests.e2e.conftest import REPOSITORY, ServerProcess, StartServer
from tests.support.onnx_models import folder_of, tensor
from tests.support.otlp import Span, collector
from tests.support.tritons import in_front_of, triton

pytestmark = pytest.mark.e2e

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = f"00-{TRACE}-{SPAN}-01"
MODEL = "breast_cancer"
PAYLOAD, SECRET = "what-a-patient-said", "s3cret-of-a-caller"


def request() -> pb.ModelInferRequest:
    golden = read_golden(REPOSITORY / MODEL, "1")
    assert golden is not None
    [(name, array)] = golden.inputs.items()
    message = pb.ModelInferRequest(model_name=MODEL, id="r1", raw_input_contents=[array[:1].astype("<f4").tobytes()])
    message.inputs.add(name=name, datatype="FP32", shape=[1, *np.shape(array)[1:]])
    return message


def infer(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request(), metadata=[("traceparent", CALLER)])


def raising(root: Path) -> None:
    """A model that looks `at` a place of a table of one, and fails elsewhere; it waits for a second request."""
    folder_of(
        root,
        "raising",
        """max_batch_size: 2 dynamic_batching { preferred_batch_size: 2 max_queue_delay_microseconds: 1000000 }
        input [ { name: "at" data_type: TYPE_INT64 dims: 1 }, { name: "said" data_type: TYPE_STRING dims: 1 } ]
        output [ { name: "found" data_type: TYPE_FP32 dims: 1 }, { name: "again" data_type: TYPE_STRING dims: 1 } ]""",
        [helper.make_node("Gather", ["table", "at"], ["found"]), helper.make_node("Identity", ["said"], ["again"])],
        [tensor("at", ["n", 1], TensorProto.INT64), tensor("said", ["n", 1], TensorProto.STRING)],
        [tensor("found", ["n", 1]), tensor("again", ["n", 1], TensorProto.STRING)],
        [numpy_helper.from_array(np.zeros(1, np.float32), "table")],
    )


def raise_it(server: ServerProcess, bad: dict[str, str], good: dict[str, str]) -> None:
    """Two requests in one pass that fails, each with this metadata, and `id` beside: one is well when it runs alone."""
    with grpc.insecure_channel(server.grpc) as channel:
        ask = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future
        calls = []
        for metadata, at in ((bad, 7), (good, 0)):
            said = PAYLOAD.encode()
            raw = [np.int64(at).tobytes(), len(said).to_bytes(4, "little") + said]
            message = pb.ModelInferRequest(model_name="raising", id=metadata.get("id", ""), raw_input_contents=raw)
            message.inputs.add(name="at", datatype="INT64", shape=[1, 1])
            message.inputs.add(name="said", datatype="BYTES", shape=[1, 1])
            sent = [(name, value) for name, value in metadata.items() if name != "id"]
            calls.append(ask(message, metadata=[*sent, ("authorization", f"Bearer {SECRET}"), ("x-tenant", SECRET)]))
        assert calls[0].code() is grpc.StatusCode.INTERNAL
        assert calls[1].code() is grpc.StatusCode.OK


def of_trace(spans: list[Span], trace_id: str = TRACE) -> dict[str, Span]:
    return {span.name: span for span in spans if span.trace_id == trace_id}


def check_nesting(spans: list[Span]) -> None:
    """Every span lies within its parent, as far as the parent is told of here."""
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        parent = by_id.get(span.parent_id)
        if parent is not None and parent.service == span.service:
            assert parent.begin_ns <= span.begin_ns <= span.end_ns <= parent.end_ns, (parent.name, span.name)


def test_a_request_through_the_gateway_and_a_triton_is_one_trace(tmp_path: Path) -> None:
    """The caller's span, below it ours by stage, and below our pass the Triton's own, sent there by itself."""
    with ExitStack() as stack:
        sink = stack.enter_context(collector())
        config = {"mode": "opentelemetry", "rate": "1", "level": "TIMESTAMPS"}
        flags = [f"--trace-config={key}={value}" for key, value in config.items()]
        flags += [f"--trace-config=opentelemetry,url={sink.http}", "--trace-config=opentelemetry,bsp_schedule_delay=50"]
        behind = triton(stack, tmp_path, flags=flags)
        server = stack.enter_context(in_front_of(tmp_path, behind, flags=["--otlp-endpoint", sink.grpc]))
        infer(server)
        server.terminate()
        tritons = sink.until(lambda spans: {"infer breast_cancer", "InferRequest"} <= of_trace(spans).keys())
    spans = of_trace(tritons)
    root, compute, below = spans["infer breast_cancer"], spans["compute"], spans["InferRequest"]
    assert root.parent_id == SPAN
    assert compute.parent_id == root.span_id
    assert below.parent_id == compute.span_id
    assert below.service != root.service == "forwardpass"
    check_nesting(list(spans.values()))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the models that are shipped, and one that raises."""
    root = tmp_path_factory.mktemp("models")
    for name in (MODEL, "digits"):
        (root / name).symlink_to(REPOSITORY / name)
    raising(root)
    return root


def test_an_embedded_model_is_told_by_stage_over_either_wire(start_server: StartServer, repository: Path) -> None:
    """gRPC and REST, infer and predict; metrics name the trace of an answer, and every line of the log that is there
    because of a request has the request's id and trace."""
    with collector() as sink:
        flags = [
            "--otlp-endpoint",
            f"http://{sink.grpc}",
            "--otlp-ratio",
            "0",
            "--log-access",
            "1",
            "--log-format",
            "json",
        ]
        server = start_server(*flags, repository=repository)
        infer(server)
        raise_it(server, {"id": "bad", "traceparent": CALLER.replace("0af7", "0af9")}, {"id": "good"})
        raise_it(server, {"id": "own"}, {})
        picture = (REPOSITORY / "digits" / "example.png").read_bytes()
        headers = {"content-type": "image/png", "traceparent": CALLER.replace("0af7", "0af8")}
        assert httpx.post(f"{server.http}/v2/models/digits/predict", content=picture, headers=headers).is_success
        assert httpx.post(f"{server.http}/v2/models/none/infer", json={"inputs": []}).status_code in (400, 404)
        answer = httpx.post(f"{server.http}/v2/models/digits/predict", content=b"no picture", headers=headers)
        assert answer.status_code == 400
        metrics = httpx.get(server.metrics, headers={"accept": "application/openmetrics-text"}).text
        server.terminate()
        spans = sink.until(lambda spans: len([span for span in spans if span.kind == 2]) >= 3)
    grpc_spans, rest_spans = of_trace(spans), [span for span in spans if span.trace_id == TRACE.replace("0af7", "0af8")]
    assert grpc_spans["infer breast_cancer"].attributes["request.id"] == "r1"
    assert grpc_spans["infer breast_cancer"].parent_id == SPAN
    good = next(span for span in rest_spans if span.kind == 2 and span.status != 2)
    bad = next(span for span in rest_spans if span.kind == 2 and span.status == 2)
    stages = {span.name for span in rest_spans if span.parent_id == good.span_id}
    assert stages >= {"decode", "preprocess", "queue", "compute", "postprocess", "encode"}
    assert bad.attributes["code"] == "INVALID_ARG"
    grpc_error = next(span for span in spans if span.attributes.get("request.id") == "own")
    batch = next(span for span in spans if (span.trace_id, span.span_id) == good.links[0])
    assert batch.name == "batch digits"
    check_nesting(spans)

    exemplars = {
        sample.exemplar.labels["trace_id"]
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.exemplar
    }
    assert TRACE in exemplars
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    logged = {line.get("trace_id"): line for line in lines if line["logger"] == "server.access"}
    assert logged[TRACE]["request_id"] == "r1"
    assert logged[grpc_error.trace_id]["request_id"] == "own"

    together, bad_one, _, own = [line for line in lines if line["level"] in ("warning", "error")]
    assert "failed, running each alone" in together["message"]
    assert sorted(together["request_ids"]) == ["bad", "good"]
    assert together["trace_ids"] == [TRACE.replace("0af7", "0af9")]
    assert "Traceback" in bad_one["exception"]
    assert (bad_one["request_id"], bad_one["trace_id"]) == ("bad", TRACE.replace("0af7", "0af9"))
    assert (own["request_id"], own["trace_id"]) == ("own", grpc_error.trace_id)
    assert not re.findall(f"{PAYLOAD}|{SECRET}", server.log.read_text())


def test_a_failure_is_logged_with_its_ids_by_the_engine_process_and_by_the_front(
    start_server: StartServer, repository: Path
) -> None:
    """With --workers both know the request's id, and its trace where its caller names one."""
    server = start_server("--workers", "2", "--log-format", "json", "--log-access", "1", repository=repository)
    raise_it(server, {"id": "bad", "traceparent": CALLER}, {"id": "good"})
    server.terminate()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    named = [line for line in lines if line["level"] in ("warning", "error")]
    engines = [line for line in named if line["process"] == "engine"]
    fronts = [line for line in named if line["process"].startswith("front")]
    assert engines
    assert fronts
    for line in named:
        assert line.get("request_id") == "bad" or "bad" in line["request_ids"], line
        assert TRACE in (line.get("trace_id"), *line.get("trace_ids", ())), line
    assert not re.findall(f"{PAYLOAD}|{SECRET}", server.log.read_text())


def test_a_collector_that_is_not_there_keeps_nobody(start_server: StartServer, repository: Path) -> None:
    """Requests are answered, and the server ends, as if nobody had asked for spans; lines for people name requests."""
    server = start_server("--otlp-endpoint", "127.0.0.1:1", "--otlp-ratio", "1", repository=repository)
    infer(server)
    raise_it(server, {"id": 'bad"\x01', "traceparent": CALLER}, {})
    began = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - began < 20
    log = server.log.read_text()
    assert re.search("(?i)export", log)
    [line] = [line for line in log.splitlines() if " ERROR " in line and "server.transport" in line]
    assert line.endswith(f' request_id="bad\\"\\u0001" trace_id={TRACE}')
    assert not re.findall(f"{PAYLOAD}|{SECRET}", log)
