"""Tensors in shared memory, by Triton's own clients and its own module for regions, over every transport."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from tests.e2e.conftest import ServerProcess, StartServer, by_transport
from tests.support.onnx_models import identity_folder
from tests.support.shared_memory import SHM, shared_file

pytestmark = pytest.mark.e2e

SIZE = 4096
X = np.arange(4, dtype=np.float32).reshape(1, 4)
S = np.array([[b"ab", "cdé".encode()]], dtype=object)
TEXT = serialize_byte_tensor(S).item()
AT_TEXT, AT_Y, AT_T = 64, 128, 256

VIA = {
    "grpc": ("http2", tritonclient.grpc),
    "grpc by grpcio": ("grpcio", tritonclient.grpc),
    "rest": ("http2", tritonclient.http),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ServerProcess]]:
    root = tmp_path_factory.mktemp("servers")
    identity_folder(root / "models", "same")
    with by_transport(root) as of:
        yield of


class Asking:
    """A client with a region "r" of its own that it has registered."""

    def __init__(self, client: Any, api: ModuleType) -> None:
        self.client = client
        self.api = api
        self.region = shm.create_shared_memory_region("r", f"forwardpass_test_{uuid.uuid4().hex}", SIZE)
        self.key = self.region._shm_key
        self.put(0, X.tobytes())
        self.put(AT_TEXT, TEXT)
        client.register_system_shared_memory("r", self.key, SIZE)

    def put(self, at: int, data: bytes) -> None:
        self.region._mpsm_handle.buf[at : at + len(data)] = data

    def infer(
        self,
        x: tuple[str, int, int] | None = ("r", X.nbytes, 0),
        s: tuple[str, int, int] | None = ("r", len(TEXT), AT_TEXT),
        y: tuple[str, int, int] | None = ("r", X.nbytes, AT_Y),
        t: tuple[str, int, int] | None = ("r", 100, AT_T),
    ) -> Any:
        """Each place is a region, a size and an offset; None has the tensor in the message."""
        inputs = [self.api.InferInput("x", [1, 4], "FP32"), self.api.InferInput("s", [1, 2], "BYTES")]
        outputs = [self.api.InferRequestedOutput("y"), self.api.InferRequestedOutput("t")]
        for tensor, place, array in zip(inputs, (x, s), (X, S), strict=True):
            tensor.set_shared_memory(*place) if place else tensor.set_data_from_numpy(array)
        for output, place in zip(outputs, (y, t), strict=True):
            if place:
                output.set_shared_memory(*place)
        return self.client.infer("same", inputs, outputs=outputs)

    def refused(self, **places: Any) -> str:
        with pytest.raises(InferenceServerException) as caught:
            self.infer(**places)
        return str(caught.value.message())

    def found(self, at: int, shape: list[int], datatype: Any) -> list[Any]:
        return list(shm.get_contents_as_numpy(self.region, datatype, shape, at).reshape(-1))


@pytest.fixture(params=VIA.values(), ids=VIA.keys())
def asking(request: pytest.FixtureRequest, servers: Callable[[str], ServerProcess]) -> Iterator[Asking]:
    transport, api = request.param
    server = servers(transport)
    url = server.grpc if api is tritonclient.grpc else server.http.removeprefix("http://")
    with api.InferenceServerClient(url) as client:
        made = Asking(client, api)
        yield made
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(made.region)


def places(response: Any) -> dict[str, dict[str, Any]]:
    """What an answer over gRPC says of its outputs."""
    return {
        output.name: {
            key: getattr(parameter, parameter.WhichOneof("parameter_choice"))
            for key, parameter in output.parameters.items()
        }
        for output in response.outputs
    }


def test_tensors_go_in_and_out_through_memory(asking: Asking) -> None:
    """Numbers and text; over gRPC the answer says where its outputs are, and how long they are. Over REST it has no
    parameters of them, as Triton's: its C++ client takes those of any output for the length of binary data."""
    answer = asking.infer().get_response()
    assert asking.found(AT_Y, [1, 4], np.float32) == [0, 1, 2, 3]
    assert asking.found(AT_T, [1, 2], np.object_) == S.reshape(-1).tolist()
    if isinstance(answer, dict):
        assert [sorted(output) for output in answer["outputs"]] == [["datatype", "name", "shape"]] * 2
        return
    assert places(answer) == {
        "y": {"shared_memory_region": "r", "shared_memory_offset": AT_Y, "shared_memory_byte_size": X.nbytes},
        "t": {"shared_memory_region": "r", "shared_memory_offset": AT_T, "shared_memory_byte_size": len(TEXT)},
    }


@pytest.mark.parametrize("here", ["x", "s", "y", "t"])
def test_tensors_come_in_any_mix(asking: Asking, here: str) -> None:
    """One of them in the message, the others in memory."""
    for _ in range(3):  # What repeats is not read anew, and must be read right all the same.
        answer = asking.infer(**{here: None})
    if here != "y":
        assert asking.found(AT_Y, [1, 4], np.float32) == [0, 1, 2, 3]
    else:
        assert answer.as_numpy("y").tolist() == X.tolist()
    if here != "t":
        assert asking.found(AT_T, [1, 2], np.object_) == S.reshape(-1).tolist()
    else:
        assert answer.as_numpy("t").tolist() == S.tolist()


def test_each_request_has_what_is_in_memory_now(asking: Asking) -> None:
    """The same message again, with other numbers in the region."""
    for number in range(5):
        asking.put(0, (X + number).tobytes())
        asking.infer()
        assert asking.found(AT_Y, [1, 4], np.float32) == [number, number + 1, number + 2, number + 3]


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"x": ("nope", 16, 0)}, "Unable to find shared memory region: 'nope'"),
        ({"y": ("nope", 16, 0)}, "Unable to find shared memory region: 'nope'"),
        ({"x": ("r", 16, SIZE)}, "Invalid offset for shared memory region: 'r'"),
        ({"x": ("r", 16, SIZE - 8)}, "Invalid offset + byte size for shared memory region: 'r'"),
        ({"x": ("r", 16, 2**63 - 1)}, "Invalid offset for shared memory region: 'r'"),
        ({"x": ("r", 12, 0)}, "inputs[0].parameters.shared_memory_byte_size: input byte size mismatch"),
        ({"x": ("r", -16, 0)}, "'shared_memory_byte_size'"),
        ({"x": ("r", 0, 0)}, "'shared_memory_byte_size'"),
        ({"s": ("r", len(TEXT) - 1, AT_TEXT)}, "inputs[1]: element 1 of 2 says 4 bytes, 3 are left"),
        (
            {"y": ("r", 8, AT_Y)},
            "shared memory size specified with the request for output 'y' (8 bytes) should be at least 16 bytes",
        ),
        ({"t": ("r", 5, AT_T)}, "for output 't' (5 bytes) should be at least 14 bytes to hold the results"),
    ],
)
def test_what_is_wrong_has_tritons_words(asking: Asking, places: dict[str, Any], words: str) -> None:
    """Clients that look for them find them; the limit stands behind."""
    assert words in asking.refused(**places)
    asking.infer()


def test_text_that_is_none_is_found_in_memory_too(asking: Asking) -> None:
    """The copy is checked as a message would be."""
    asking.put(AT_TEXT, b"\x02\0\0\0a\xff" + b"\x04\0\0\0bcde")
    assert "is not UTF-8" in asking.refused()


def test_regions_are_told_of(asking: Asking) -> None:
    """Status by name and of all, errors by Triton's words, and unregistering what is not there."""
    client = asking.client
    status = client.get_system_shared_memory_status("r")
    told = status[0] if isinstance(status, list) else status.regions["r"]
    if isinstance(told, dict):
        assert told == {"name": "r", "key": asking.key, "offset": 0, "byte_size": SIZE}
    else:
        assert (told.name, told.key, told.offset, told.byte_size) == ("r", asking.key, 0, SIZE)
    for call, words in (
        (
            lambda: client.register_system_shared_memory("r", asking.key, 1),
            "shared memory region 'r' already in manager",
        ),
        (
            lambda: client.register_system_shared_memory("b", asking.key, 10 * SIZE),
            "failed to register shared memory region 'b'",
        ),
        (
            lambda: client.register_system_shared_memory("b", "no_such", 1),
            "Unable to open shared memory region: 'no_such'",
        ),
        (lambda: client.register_system_shared_memory("b", "../etc/passwd", 1), "failed to register"),
        (lambda: client.get_system_shared_memory_status("b"), "Unable to find system shared memory region: 'b'"),
        (lambda: client.get_cuda_shared_memory_status("r"), "registered as system shared memory"),
        (lambda: client.register_cuda_shared_memory("c", b"aGFuZGxl", 0, 1), "GPUs are not supported"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert words in str(caught.value.message())
    client.unregister_system_shared_memory("nobody")
    client.unregister_cuda_shared_memory()
    assert len(getattr(client.get_cuda_shared_memory_status(), "regions", [])) == 0
    client.unregister_system_shared_memory("r")
    assert "Unable to find shared memory region: 'r'" in asking.refused()


def test_who_cuts_the_file_harms_only_itself(asking: Asking) -> None:
    """A file that another thread cuts and grows all the time: each request has an answer or a refusal, and the
    server lives. (An access to mapped memory that is gone would be its end.)"""
    over = threading.Event()
    path = SHM / asking.key

    def cut() -> None:
        while not over.is_set():
            os.truncate(path, 8)
            os.truncate(path, SIZE)

    with shared_file(SIZE) as others:
        asking.client.register_system_shared_memory("others", others.name, SIZE)
        thread = threading.Thread(target=cut)
        thread.start()
        try:
            for _ in range(200):
                try:
                    asking.infer(s=None, t=None)
                except InferenceServerException as error:
                    assert "was cut to" in str(error.message())  # noqa: PT017 - it need not be raised
        finally:
            over.set()
            thread.join()
        asking.put(0, X.tobytes())
        asking.infer(s=None, t=None, y=("others", X.nbytes, 0))
        assert others.read()[: X.nbytes] == X.tobytes()
    assert asking.client.is_server_live()


@pytest.mark.parametrize("allowed", [True, False])
def test_the_server_says_whether_it_has_it(start_server: StartServer, tmp_path: Path, allowed: bool) -> None:
    """An extension that is off is not listed, and refused as one that is not there."""
    server = start_server(
        "--allow-client-shm", str(allowed).lower(), repository=identity_folder(tmp_path, "same").parent
    )
    assert ("system_shared_memory" in httpx.get(f"{server.http}/v2").json()["extensions"]) is allowed
    status = httpx.get(f"{server.http}/v2/systemsharedmemory/status")
    assert status.status_code == (200 if allowed else 501)
