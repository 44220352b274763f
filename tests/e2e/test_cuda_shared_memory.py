"""Tensors in a GPU's memory, by Triton's own clients over every transport, on a driver without a GPU.

That driver is strict about contexts, handles and bounds, and tells nothing of a real one's timing.
"""

from __future__ import annotations

import base64
import mmap
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.e2e.conftest import ServerProcess, by_transport, end, start
from tests.support.fake_cuda import allocated, build, is_open
from tests.support.onnx_models import identity_folder
from tests.support.parts import tool

pytestmark = pytest.mark.e2e

COLUMNS = 1 << 16
X = np.arange(COLUMNS, dtype=np.float32).reshape(1, -1)
"""More bytes than are copied on the loop."""
S = np.array([[b"ab"]], dtype=object)
SIZE = 2 * X.nbytes + 4096
AT_Y = X.nbytes + 64

VIA: dict[str, tuple[str, ModuleType]] = {
    "grpc": ("http2", tritonclient.grpc),
    "grpc by grpcio": ("grpcio", tritonclient.grpc),
    "rest": ("http2", tritonclient.http),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ServerProcess]]:
    root = tmp_path_factory.mktemp("servers")
    identity_folder(root / "models", "same")
    with pytest.MonkeyPatch.context() as patch, by_transport(root) as of:
        patch.setenv("LD_LIBRARY_PATH", str(build(tmp_path_factory.mktemp("driver"))))
        yield of


@dataclass
class Asking:
    """A client with a region "g" of its own that it has registered."""

    client: Any
    api: ModuleType
    server: ServerProcess
    handle: bytes
    memory: mmap.mmap

    def register(self, name: str, handle: bytes | None = None, device_id: int = 0, byte_size: int = SIZE) -> None:
        raw = base64.b64encode(self.handle if handle is None else handle)
        self.client.register_cuda_shared_memory(name, raw, device_id, byte_size)

    def infer(self, columns: int = COLUMNS, offset: int = 0) -> Any:
        """From the region's begin into its second half, but for the text."""
        x = self.api.InferInput("x", [1, columns], "FP32")
        x.set_shared_memory("g", 4 * columns, offset)
        s = self.api.InferInput("s", [1, 1], "BYTES")
        s.set_data_from_numpy(S)
        y = self.api.InferRequestedOutput("y")
        y.set_shared_memory("g", 4 * columns, AT_Y)
        return self.client.infer("same", [x, s], outputs=[y, self.api.InferRequestedOutput("t")])


@pytest.fixture(params=VIA.values(), ids=VIA.keys())
def asking(request: pytest.FixtureRequest, servers: Callable[[str], ServerProcess]) -> Iterator[Asking]:
    transport, api = request.param
    server = servers(transport)
    url = server.grpc if api is tritonclient.grpc else server.http.removeprefix("http://")
    with api.InferenceServerClient(url) as client, allocated(SIZE) as (handle, memory):
        made = Asking(client, api, server, handle, memory)
        made.register("g")
        yield made
        client.unregister_cuda_shared_memory()
        assert not is_open(server.process.pid, handle)


def regions(told: Any) -> dict[str, tuple[int, int]]:
    """Device and size of each, over gRPC or REST."""
    if isinstance(told, list):
        return {region["name"]: (int(region["device_id"]), int(region["byte_size"])) for region in told}
    return {name: (region.device_id, region.byte_size) for name, region in told.regions.items()}


@pytest.mark.parametrize("columns", [4, COLUMNS], ids=["on the loop", "on a thread"])
def test_tensors_go_in_and_out_through_the_gpus_memory(asking: Asking, columns: int) -> None:
    """Text of the same request goes by message."""
    asking.memory[: X.nbytes] = X.tobytes()
    answer = asking.infer(columns)
    assert answer.as_numpy("t").tolist() == [[b"ab"]]
    assert asking.memory[AT_Y : AT_Y + 4 * columns] == X[:, :columns].tobytes()


def test_regions_are_told_and_forgotten_by_their_kind(asking: Asking) -> None:
    """The memory is open as long as its region is registered."""
    client, pid = asking.client, asking.server.process.pid
    assert is_open(pid, asking.handle)
    asking.register("h", byte_size=SIZE // 2)
    assert regions(client.get_cuda_shared_memory_status()) == {"g": (0, SIZE), "h": (0, SIZE // 2)}
    assert regions(client.get_cuda_shared_memory_status("h")) == {"h": (0, SIZE // 2)}
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory("nobody")
    client.unregister_cuda_shared_memory("h")
    assert regions(client.get_cuda_shared_memory_status()) == {"g": (0, SIZE)}
    client.unregister_cuda_shared_memory()
    assert regions(client.get_cuda_shared_memory_status()) == {}
    assert not is_open(pid, asking.handle)


def test_what_can_not_be_registered_is_said_and_nothing_stays_open(asking: Asking) -> None:
    """By name, with the limit."""
    client = asking.client
    with allocated(SIZE) as (other, _):
        for name, handle, device_id, size, words in (
            ("g", other, 0, SIZE, "'g' already in manager"),
            ("", other, 0, SIZE, "is empty"),
            ("b", other, 1, SIZE, "device_id must be 0 to 0, got 1"),
            ("b", other, -1, SIZE, "device_id"),
            ("b", other[:-1], 0, SIZE, "raw_handle must have 64 bytes, got 63"),
            ("b", bytes(64), 0, SIZE, "raw_handle can't be opened: CUDA_ERROR_INVALID_VALUE"),
            ("b", other, 0, SIZE + 1, f"byte_size {SIZE + 1}, raw_handle is of {SIZE} bytes"),
            ("b", other, 0, 0, "byte_size must be above 0"),
        ):
            # Without a name REST has no such route, and says so itself.
            if name or asking.api is tritonclient.grpc:
                with pytest.raises(InferenceServerException) as caught:
                    asking.register(name, handle, device_id, size)
                assert words in str(caught.value.message()), (name, words)
        assert not is_open(asking.server.process.pid, other)
    assert regions(client.get_cuda_shared_memory_status()) == {"g": (0, SIZE)}
    with pytest.raises(InferenceServerException, match="is registered as cuda shared memory"):
        client.get_system_shared_memory_status("g")
    with pytest.raises(InferenceServerException, match="Unable to find cuda shared memory region: 'b'"):
        client.get_cuda_shared_memory_status("b")
    with pytest.raises(InferenceServerException, match="Invalid offset"):
        asking.infer(4, offset=SIZE)
    asking.infer()


def test_a_server_with_a_gpu_says_so_among_its_extensions(asking: Asking) -> None:
    """As Triton's clients look it up."""
    told = asking.client.get_server_metadata()
    extensions = told["extensions"] if isinstance(told, dict) else told.extensions
    assert {"system_shared_memory", "cuda_shared_memory"} <= set(extensions)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "body: must be an object"),
        ({"device_id": 0, "byte_size": 1}, "raw_handle.b64: must be a string"),
        ({"raw_handle": {"b64": "?"}, "device_id": 0, "byte_size": 1}, "raw_handle.b64: is no base64"),
        ({"raw_handle": {"b64": ""}, "byte_size": 1}, "device_id: must be a whole number, 0 to"),
        ({"raw_handle": {"b64": ""}, "device_id": 0, "byte_size": True}, "byte_size: must be a whole number"),
    ],
)
def test_a_body_that_is_no_registration_is_told_what_is_missing(
    servers: Callable[[str], ServerProcess], document: Any, words: str
) -> None:
    """The field by its name."""
    reply = httpx.post(f"{servers('http2').http}/v2/cudasharedmemory/region/b/register", json=document)
    assert reply.status_code == 400
    assert words in reply.json()["error"]


def test_a_server_that_ends_closes_what_is_open(servers: Callable[[str], ServerProcess]) -> None:
    """And its status is 0."""
    root = servers("http2").log.parent
    with pytest.MonkeyPatch.context() as patch, allocated(SIZE) as (handle, _):
        patch.setenv("LD_LIBRARY_PATH", str(build(root)))
        server = start(root / "ends.log", repository=root / "models")
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            client.register_cuda_shared_memory("g", base64.b64encode(handle), 0, SIZE)
        assert server.terminate() == 0


def test_a_driver_that_can_not_be_used_is_none(servers: Callable[[str], ServerProcess], tmp_path: Path) -> None:
    """One that lacks a call: registering is refused with what is missing, and the server serves."""
    library = tmp_path / "libcuda.so.1"
    source = b"int cuInit(unsigned flags) { return flags; }"
    subprocess.run([tool("gcc"), "-shared", "-o", library, "-xc", "-"], input=source, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        server = start(tmp_path / "server.log", repository=servers("http2").log.parent / "models")
    try:
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            with pytest.raises(InferenceServerException, match=r"UNIMPLEMENTED.*cuda\.so\.1 has no cuDeviceGetCount"):
                client.register_cuda_shared_memory("g", base64.b64encode(bytes(64)), 0, SIZE)
            assert "cuda_shared_memory" not in client.get_server_metadata().extensions
            assert client.is_server_ready()
    finally:
        end(server)
