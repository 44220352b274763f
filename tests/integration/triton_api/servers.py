"""A real Triton and our server, on the same models, both in explicit mode; and tritonclient's four clients of each."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from server.local_triton.process import LocalTriton, Ports, free_ports
from server.local_triton.program import Program
from tests.e2e.conftest import end, start
from tests.support.onnx_models import identity_folder, linear_folder

KINDS = ("grpc", "http", "grpc.aio", "http.aio")
"""tritonclient's modules."""
_READY_S = 60.0
_PATIENCE_S = 60.0

COUNTED = "counted"
"""Asked by nobody but the call that looks at what requests add to the counts: Triton counts behind its answers."""

X = np.arange(6, dtype=np.float32).reshape(2, 3)
"""Two rows for the models `linear`, `counted` and `spare`."""


@contextmanager
def both(program: Program, folder: Path) -> Iterator[tuple[Ports, Ports]]:
    """Triton's ports and ours. `linear` (versions 1 and 3), `counted` and `texts` are loaded, `spare` is not."""
    repository = folder / "models"
    repository.mkdir()
    linear_folder(repository, "linear", versions=(1, 3), more="version_policy { all {} }\ndynamic_batching {}")
    linear_folder(repository, COUNTED, more="dynamic_batching {}")
    linear_folder(repository, "spare")
    identity_folder(repository, "texts")
    loaded = [f"--load-model={name}" for name in ("linear", COUNTED, "texts")]
    flags = ["--model-control-mode=explicit", *loaded]
    log = folder / "triton.log"
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        theirs = LocalTriton(program, repository, Ports(*free_ports(3)), flags=flags, output=output)
        stack.enter_context(theirs)
        ours = start(folder / "server.log", *flags, repository=repository)
        stack.callback(end, ours)
        try:
            theirs.wait_ready(_READY_S)
        except Exception as error:
            error.add_note(log.read_text())
            raise
        yield theirs.ports, Ports(ours.port("REST"), ours.port("gRPC"), ours.port("metrics"))
        assert ours.process.poll() is None, ours.log.read_text()
        assert Path(f"/proc/{theirs.pid}/exe").exists(), log.read_text()


@dataclass(frozen=True)
class Api:
    """One client of one server; each call has a connection of its own."""

    kind: str
    ports: Ports

    @property
    def grpc(self) -> bool:
        return self.kind.startswith("grpc")

    @property
    def aio(self) -> bool:
        return self.kind.endswith(".aio")

    @property
    def module(self) -> Any:
        return importlib.import_module(f"tritonclient.{self.kind}")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.ports.grpc if self.grpc else self.ports.http}"

    def call(self, method: str, *args: Any, **more: Any) -> Any:
        """The method's answer, as plain values where it is a message."""
        return self.using(lambda client: getattr(client, method)(*args, **self._plain(client, method, more)))

    def using(self, ask: Callable[[Any], Any]) -> Any:
        """What `ask` says of a client, which is closed then; a coroutine, of the clients of asyncio."""
        if self.aio:
            return asyncio.run(self._awaited(ask))
        with self.module.InferenceServerClient(self.address) as client:
            return ask(client)

    async def _awaited(self, ask: Callable[[Any], Any]) -> Any:
        async with asyncio.timeout(_PATIENCE_S), self.module.InferenceServerClient(self.address) as client:
            found = ask(client)
            return await found if inspect.isawaitable(found) else found

    def _plain(self, client: Any, method: str, more: dict[str, Any]) -> dict[str, Any]:
        takes = inspect.signature(getattr(client, method)).parameters
        return {"as_json": True, **more} if "as_json" in takes else more

    def input(self, name: str, array: Any, datatype: str = "FP32", shape: Any = None, *, binary: bool = True) -> Any:
        """An InferInput. `binary` is HTTP's to choose."""
        given = self.module.InferInput(name, list(array.shape), datatype)
        given.set_data_from_numpy(array, **({} if self.grpc else {"binary_data": binary}))
        if shape is not None:
            given.set_shape(shape)
        return given

    def output(self, name: str, **more: Any) -> Any:
        return self.module.InferRequestedOutput(name, **more)

    def infer(self, model: str = "linear", inputs: Any = None, **more: Any) -> Any:
        """What the answer says: see `told`."""
        return self.told(self.call("infer", model, [self.input("x", X)] if inputs is None else inputs, **more))

    def told(self, result: Any) -> Any:
        """Of an InferResult: model, version, id, parameters, and of each output its datatype, shape and elements."""
        response = result.get_response(as_json=True) if self.grpc else result.get_response()
        outputs = {
            one["name"]: (one["datatype"], [int(size) for size in one["shape"]], result.as_numpy(one["name"]))
            for one in response.get("outputs", [])
        }
        said = (response.get(key, "") for key in ("model_name", "model_version", "id"))
        return (*said, response.get("parameters", {}), outputs)


def outcome(ask: Callable[[Api], Any], api: Api) -> Any:
    """The answer, or its status."""
    try:
        return ask(api)
    except InferenceServerException as error:
        return f"error {error.status()}"


def same(one: Any, other: Any) -> bool:
    """Both are equal, floats nearly."""
    if isinstance(one, np.ndarray):
        if not isinstance(other, np.ndarray) or one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(np.allclose(one, other, atol=1e-5) if one.dtype.kind == "f" else (one == other).all())
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
