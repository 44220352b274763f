"""Triton's classification extension against a real server, by Triton's own clients and by plain JSON."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import service_pb2_grpc

from server.explain import ANSWER_KEY, parse_server_timing
from server.proto.triton import service_pb2 as pb
from tests.e2e.conftest import ServerProcess, StartServer, end, start
from tests.support.onnx_models import accumulator_folder, echo_folder
from tests.support.shared_memory import shared_file

pytestmark = pytest.mark.e2e

X = np.array([[0.5, 2, 1], [3, 3, -1]], np.float32)
BEST_TWO = [["2.000000:1", "1.000000:2:dog"], ["3.000000:0:cat", "3.000000:1"]]
LARGE = 50_000
"""Elements that are looked at on a thread."""


def models(folder: Path) -> Path:
    """y is x: with labels, with one dimension and no batch, of text, and with sequences."""
    folder.mkdir()
    echo_folder(folder, "echo", labels=["cat", "", "dog"])
    echo_folder(folder, "flat", max_batch_size=0, labels=["cat", "", "dog"])
    echo_folder(folder, "half", datatype="FP16")
    accumulator_folder(folder, "sums")
    return folder


@pytest.fixture(scope="module", params=["http2", "grpcio", "workers"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Over both gRPC transports, and with several processes."""
    flags = ["--workers", "2"] if request.param == "workers" else ["--grpc-transport", request.param]
    folder = tmp_path_factory.mktemp("classes")
    running = start(folder / "server.log", *flags, repository=models(folder / "models"))
    yield running
    end(running)


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def message(
    model: str, array: np.ndarray, classes: int, datatype: str = "FP32", **more: object
) -> pb.ModelInferRequest:
    asked = pb.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()], **more)
    asked.inputs.add(name="x", datatype=datatype, shape=array.shape)
    asked.outputs.add(name="y").parameters["classification"].int64_param = classes
    return asked


def body(array: np.ndarray, classes: int, **parameters: object) -> dict[str, object]:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
    return {"inputs": [tensor], "outputs": [{"name": "y", "parameters": {"classification": classes, **parameters}}]}


def texts(result: object) -> object:
    return np.char.decode(result.as_numpy("y").astype("S")).tolist()  # type: ignore[attr-defined]


def test_over_grpc(server: ServerProcess) -> None:
    """By tritonclient's `class_count`: so many classes, not more than there are, and the plain tensor without it."""
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        x = triton_grpc.InferInput("x", list(X.shape), "FP32").set_data_from_numpy(X)
        for classes, expected in ((2, BEST_TWO), (1, [row[:1] for row in BEST_TWO])):
            wanted = [triton_grpc.InferRequestedOutput("y", class_count=classes)]
            # The third time the message is known by its bytes; what it asks for must not be forgotten.
            for _ in range(3):
                assert texts(client.infer("echo", [x], outputs=wanted)) == expected
        many = client.infer("echo", [x], outputs=[triton_grpc.InferRequestedOutput("y", class_count=99)])
        assert many.get_output("y").shape == [2, 3]
        np.testing.assert_array_equal(client.infer("echo", [x]).as_numpy("y"), X)
        plain = client.infer("echo", [x], outputs=[triton_grpc.InferRequestedOutput("y")])
        np.testing.assert_array_equal(plain.as_numpy("y"), X)


@pytest.mark.parametrize("binary", [False, True])
def test_over_rest(server: ServerProcess, binary: bool) -> None:
    """As JSON strings, and as binary BYTES; again when the same bytes come again, and without classes when not."""
    url = f"{server.http}/v2/models/echo/infer"
    for _ in range(3):
        answer = httpx.post(url, json=body(X, 2, binary_data=binary))
        [output] = pb_output(answer)
        assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
        data = answer.content[int(answer.headers["inference-header-content-length"]) :] if binary else output["data"]
        if binary:
            expected = b"".join(len(t).to_bytes(4, "little") + t.encode() for row in BEST_TWO for t in row)
            assert data == expected
        else:
            assert data == [text for row in BEST_TWO for text in row]
    [output] = pb_output(httpx.post(url, json=body(X, 0)))
    assert (output["datatype"], output["data"]) == ("FP32", X.ravel().tolist())


def pb_output(answer: httpx.Response) -> list[dict[str, object]]:
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    return httpx.Response(200, content=answer.content[:length]).json()["outputs"]  # type: ignore[no-any-return]


def test_without_a_batch_dimension(server: ServerProcess) -> None:
    """The shape is that of the classes alone."""
    [output] = pb_output(httpx.post(f"{server.http}/v2/models/flat/infer", json=body(X[0], 2)))
    assert (output["shape"], output["data"]) == ([2], BEST_TWO[0])


def test_a_large_output(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    """Looked at on a thread, with the same result."""
    row = np.zeros((1, LARGE), np.float32)
    row[0, [7, 40_000]] = (1, 2)
    answer = stub.ModelInfer(message("echo", row, 3))
    assert list(answer.outputs[0].shape) == [1, 3]
    assert (
        answer.raw_output_contents[0] == b"\x0e\0\0\x002.000000:40000\x0a\0\0\x001.000000:7\x0e\0\0\x000.000000:0:cat"
    )


def test_in_a_stream(server: ServerProcess) -> None:
    """ModelStreamInfer serves it as ModelInfer does."""
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        x = triton_grpc.InferInput("x", list(X.shape), "FP32").set_data_from_numpy(X)
        client.async_stream_infer("echo", [x], outputs=[triton_grpc.InferRequestedOutput("y", class_count=2)])
        result, error = answers.get(timeout=30)
        client.stop_stream()
    assert error is None
    assert texts(result) == BEST_TWO


def test_of_a_sequence(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    """A model that keeps sequences classifies too."""
    asked = message("sums", np.float32([[2]]), 1)
    asked.parameters["sequence_id"].int64_param = 5
    asked.parameters["sequence_start"].bool_param = True
    assert stub.ModelInfer(asked).raw_output_contents[0][4:] == b"2.000000:0"
    del asked.parameters["sequence_start"]
    asked.parameters["sequence_end"].bool_param = True
    assert stub.ModelInfer(asked).raw_output_contents[0][4:] == b"4.000000:0"


def test_what_has_no_classes_is_refused_and_not_executed(
    server: ServerProcess, stub: service_pb2_grpc.GRPCInferenceServiceStub
) -> None:
    """In Triton's words. Nobody's statistics count it."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message("half", X.astype(np.float16), 2, "FP16"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == (
        "outputs[0].parameters.classification: class result not available for output due to unsupported type 'FP16'"
    )
    [told] = httpx.get(f"{server.http}/v2/models/half/stats").json()["model_stats"]
    assert told["inference_stats"]["success"]["count"] == told["inference_stats"]["fail"]["count"] == 0


def test_statistics_count_it_and_an_explanation_tells_of_it(server: ServerProcess) -> None:
    """One request of two rows more; where its time went has a part for the classes."""
    url = f"{server.http}/v2/models/echo"
    before = httpx.get(f"{url}/stats").json()["model_stats"][0]["inference_count"]
    answer = httpx.post(f"{url}/infer", json=body(X, 1), headers={"X-Explain": "1"})
    after = httpx.get(f"{url}/stats").json()["model_stats"][0]["inference_count"]
    explained = parse_server_timing(answer.headers[ANSWER_KEY])

    assert after - before == 2
    assert explained.batch_rows == 2
    assert {"queue", "compute", "postprocess", "encode"} <= explained.parts_ms.keys()
    assert sum(explained.parts_ms.values()) == pytest.approx(explained.total_ms, rel=1e-6)


def test_beside_shared_memory(start_server: StartServer, tmp_path: Path) -> None:
    """An input may lie there; an output may lie there or be classified, not both."""
    server = start_server(repository=models(tmp_path / "models"))
    with shared_file(X.nbytes) as file, grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        file.write(X.tobytes())
        stub.SystemSharedMemoryRegister(
            pb.SystemSharedMemoryRegisterRequest(name="r", key=file.name, offset=0, byte_size=X.nbytes)
        )
        asked = message("echo", X, 2)
        asked.ClearField("raw_input_contents")
        place(asked.inputs[0].parameters)
        answer = stub.ModelInfer(asked)
        assert b"2.000000:1" in answer.raw_output_contents[0]
        place(asked.outputs[0].parameters)
        with pytest.raises(grpc.RpcError, match="can't set both 'shared_memory_region' and 'classification'"):
            stub.ModelInfer(asked)


def place(parameters: object) -> None:
    parameters["shared_memory_region"].string_param = "r"  # type: ignore[index]
    parameters["shared_memory_byte_size"].int64_param = X.nbytes  # type: ignore[index]


def test_the_extension_is_announced(server: ServerProcess) -> None:
    assert "classification" in httpx.get(f"{server.http}/v2").json()["extensions"]


def test_a_label_file_that_is_missing_keeps_the_model_out(start_server: StartServer, tmp_path: Path) -> None:
    """The index says why; the others are served."""
    folder = models(tmp_path / "models")
    (folder / "echo" / "labels.txt").unlink()
    running = start_server(repository=folder)

    states = {one["name"]: one for one in httpx.post(f"{running.http}/v2/repository/index").json()}

    assert (states["echo"]["state"], states["flat"]["state"]) == ("UNAVAILABLE", "READY")
    assert "label_filename 'labels.txt' is not there" in states["echo"]["reason"]


def test_answers_that_are_kept_are_kept_as_tensors(start_server: StartServer, tmp_path: Path) -> None:
    """With a response cache: whoever wants classes, and however many, leaves the tensor to the others."""
    echo_folder(tmp_path, "echo", more="dynamic_batching { } response_cache { enable: true }")
    running = start_server("--cache-size-bytes", "1000000", repository=tmp_path)
    url = f"{running.http}/v2/models/echo/infer"
    told = [pb_output(httpx.post(url, json=body(X[:1], classes)))[0]["data"] for classes in (0, 2, 0, 1, 2)]

    best = ["2.000000:1", "1.000000:2"]
    assert told == [X[0].tolist(), best, X[0].tolist(), best[:1], best]
    [stats] = httpx.get(f"{running.http}/v2/models/echo/stats").json()["model_stats"]
    assert stats["execution_count"] == 1
