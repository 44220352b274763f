"""A Triton by its protocol alone, in the test's own process: what it answers, refuses, or never answers is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf import text_format

from server.engine.triton.held_file import FOLDER
from server.errors import InvalidRequest
from server.proto.triton import model_config_pb2
from server.proto.triton import service_pb2 as pb
from server.shared_memory.cuda import CudaRegion
from server.shared_memory.cuda_driver import Driver
from server.shared_memory.references import Reference

_PREFIX = "/inference.GRPCInferenceService/"

CONFIG = """
name: "double" backend: "python" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
instance_group { kind: KIND_CPU count: 2 }
dynamic_batching {}
"""
"""A model that answers twice its input."""

Script = Callable[[Any, Any], Awaitable[Any]]
"""Gets a ModelInferRequest and the call's context."""


class Model:
    """A version that it has."""

    def __init__(self, config: str = CONFIG, version: str = "1") -> None:
        self.message = text_format.Parse(config, model_config_pb2.ModelConfig())
        self.version = version
        self.state, self.reason = "READY", ""

    @property
    def key(self) -> tuple[str, str]:
        return self.message.name, self.version


class FakeTriton:
    """Serves `models` between `start` and `stop`."""

    def __init__(self, *models: Model) -> None:
        self.models = {model.key: model for model in models or (Model(),)}
        self.version = "2.60.0"
        self.ready = True
        self.silent = False
        """No probe is answered."""
        self.requests: list[Any] = []
        """ModelInferRequests, in the order in which they came."""
        self.metadata: list[dict[str, str]] = []
        self.cancelled = 0
        self.timeouts: list[float | None] = []
        """What each of them said that is left of its time, as the call's and not as a parameter."""
        self.script: Script | None = None
        """Answers instead of the model."""
        self.controlled: list[Any] = []
        """Loads and unloads."""
        self.refuses_control = ""
        self.responses: list[Any] = []
        """What each stream is answered with, one for each request: ModelStreamInferResponses, or a pause in seconds."""
        self.regions: dict[str, Any] = {}
        """The shared memory that it knows: SystemSharedMemoryRegisterRequests by name."""
        self.gpu: Driver | None = None
        """It is a build for GPUs."""
        self.cuda_regions: dict[str, CudaRegion] = {}
        """The memory of the GPU that it has open, by name."""
        self.refuses_regions = ""
        self.port = 0
        self.socket: Path | None = None
        """Where it listens too."""
        self._server: grpc.aio.Server | None = None

    async def start(self, credentials: grpc.ServerCredentials | None = None) -> None:
        """On the port that it had before, if it had one."""
        self._server = grpc.aio.server(handlers=[_Handlers(self)], options=[("grpc.so_reuseport", 0)])
        address = f"127.0.0.1:{self.port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        if self.socket is not None:
            self._server.add_insecure_port(f"unix:{self.socket}")
        await self._server.start()

    async def stop(self, grace_s: float = 0.0) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None

    # --- the methods --------------------------------------------------------------------------------

    async def server_ready(self, _message: Any, _context: Any) -> Any:
        await self._perhaps_never()
        return pb.ServerReadyResponse(ready=self.ready)

    async def server_metadata(self, _message: Any, _context: Any) -> Any:
        await self._perhaps_never()
        return pb.ServerMetadataResponse(name="triton", version=self.version)

    async def repository_index(self, _message: Any, _context: Any) -> Any:
        await self._perhaps_never()
        answer = pb.RepositoryIndexResponse()
        for (name, version), model in self.models.items():
            answer.models.add(name=name, version=version, state=model.state, reason=model.reason)
        return answer

    async def _perhaps_never(self) -> None:
        if self.silent:
            await asyncio.sleep(3600)

    async def model_config(self, message: Any, context: Any) -> Any:
        return pb.ModelConfigResponse(config=(await self._model(message, context)).message)

    async def model_metadata(self, message: Any, context: Any) -> Any:
        model = await self._model(message, context)
        answer = pb.ModelMetadataResponse(name=message.name, versions=[model.version], platform="python")
        for own, theirs in ((model.message.input, answer.inputs), (model.message.output, answer.outputs)):
            for one in own:
                shape = [-1, *one.dims] if model.message.max_batch_size else list(one.dims)
                theirs.add(name=one.name, datatype="FP32", shape=shape)
        return answer

    async def _model(self, message: Any, context: Any) -> Model:
        model = self.models.get((message.name, message.version))
        if model is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{message.name}' is not found")
        assert model is not None
        return model

    async def repository_model_load(self, message: Any, context: Any) -> Any:
        await self._control(message, context)
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(self, message: Any, context: Any) -> Any:
        await self._control(message, context)
        return pb.RepositoryModelUnloadResponse()

    async def _control(self, message: Any, context: Any) -> None:
        self.controlled.append(message)
        if self.refuses_control:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refuses_control)

    async def shared_memory_register(self, message: Any, context: Any) -> Any:
        if self.refuses_regions:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refuses_regions)
        if message.name in self.regions:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, f"'{message.name}' already in manager")
        self.regions[message.name] = message
        return pb.SystemSharedMemoryRegisterResponse()

    async def shared_memory_unregister(self, message: Any, _context: Any) -> Any:
        self.regions.pop(message.name, None)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def shared_memory_status(self, _message: Any, _context: Any) -> Any:
        answer = pb.SystemSharedMemoryStatusResponse()
        for name, region in self.regions.items():
            answer.regions[name].key = region.key
        return answer

    def forget(self) -> None:
        """All memory, as with its end."""
        self.regions.clear()
        for region in self.cuda_regions.values():
            region.release()
        self.cuda_regions.clear()

    async def cuda_register(self, message: Any, context: Any) -> Any:
        if self.gpu is None:
            words = f"failed to register CUDA shared memory region: '{message.name}', GPUs not supported"
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, words)
        elif message.name in self.cuda_regions:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, f"'{message.name}' already in manager")
        else:
            told = message.name, message.raw_handle, message.device_id, message.byte_size
            try:
                self.cuda_regions[message.name] = CudaRegion(self.gpu, *told)
            except InvalidRequest as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pb.CudaSharedMemoryRegisterResponse()

    async def cuda_unregister(self, message: Any, _context: Any) -> Any:
        region = self.cuda_regions.pop(message.name, None)
        if region is not None:
            region.release()
        return pb.CudaSharedMemoryUnregisterResponse()

    async def cuda_status(self, _message: Any, _context: Any) -> Any:
        answer = pb.CudaSharedMemoryStatusResponse()
        for name, region in self.cuda_regions.items():
            answer.regions[name].byte_size = region.byte_size
        return answer

    async def _read_regions(self, message: Any, context: Any) -> Any:
        """The request as if all its inputs had been in it."""
        whole, raw = pb.ModelInferRequest(), iter(message.raw_input_contents)
        whole.CopyFrom(message)
        del whole.raw_input_contents[:]
        for told in message.inputs:
            if "shared_memory_region" not in told.parameters:
                whole.raw_input_contents.append(next(raw))
                continue
            name = told.parameters["shared_memory_region"].string_param
            offset = told.parameters["shared_memory_offset"].int64_param
            byte_size = told.parameters["shared_memory_byte_size"].int64_param
            if name in self.cuda_regions:
                piece = Reference(name, offset, byte_size)
                self.cuda_regions[name].check(piece)
                whole.raw_input_contents.append(bytes(self.cuda_regions[name].read(piece)))
                continue
            if name not in self.regions:
                words = f"[request id: <id_unknown>] Unable to find shared memory region: '{name}'"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)
            with (FOLDER / self.regions[name].key).open("rb") as file:
                file.seek(offset)
                whole.raw_input_contents.append(file.read(byte_size))
        return whole

    async def model_infer(self, message: Any, context: Any) -> Any:
        self.requests.append(message)
        self.timeouts.append(context.time_remaining())
        self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        try:
            if self.script is not None:
                return await self.script(message, context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return doubled(await self._read_regions(message, context))

    async def model_stream_infer(self, messages: Any, context: Any) -> Any:
        """An async generator."""
        try:
            async for message in messages:
                self.requests.append(message)
                for response in self.responses:
                    if isinstance(response, float):
                        await asyncio.sleep(response)
                    else:
                        yield response
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def response(value: float | None, *, final: bool) -> Any:
    """One of several: a row of that value, or none."""
    message = pb.ModelStreamInferResponse()
    message.infer_response.model_name, message.infer_response.model_version = "double", "1"
    message.infer_response.parameters["triton_final_response"].bool_param = final
    if value is not None:
        message.infer_response.outputs.add(name="y", datatype="FP32", shape=[1, 3])
        message.infer_response.raw_output_contents.append(np.full(3, value, np.float32).tobytes())
    return message


def doubled(message: Any) -> Any:
    """The model's answer."""
    array = np.frombuffer(message.raw_input_contents[0], np.float32) * 2
    answer = pb.ModelInferResponse(model_name=message.model_name, model_version=message.model_version)
    answer.outputs.add(name="y", datatype="FP32", shape=message.inputs[0].shape)
    answer.raw_output_contents.append(array.tobytes())
    return answer


def refusing(code: grpc.StatusCode, details: str, times: int = 1_000_000) -> Script:
    """So many calls end with that status; the others are answered."""
    left = [times]

    async def script(message: Any, context: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            await context.abort(code, details)
        return doubled(message)

    return script


async def never(_message: Any, _context: Any) -> Any:
    """A call that is never answered."""
    await asyncio.sleep(3600)


_METHODS = {
    "ServerReady": (pb.ServerReadyRequest, FakeTriton.server_ready),
    "ServerMetadata": (pb.ServerMetadataRequest, FakeTriton.server_metadata),
    "RepositoryIndex": (pb.RepositoryIndexRequest, FakeTriton.repository_index),
    "ModelConfig": (pb.ModelConfigRequest, FakeTriton.model_config),
    "ModelMetadata": (pb.ModelMetadataRequest, FakeTriton.model_metadata),
    "ModelInfer": (pb.ModelInferRequest, FakeTriton.model_infer),
    "SystemSharedMemoryRegister": (pb.SystemSharedMemoryRegisterRequest, FakeTriton.shared_memory_register),
    "SystemSharedMemoryUnregister": (pb.SystemSharedMemoryUnregisterRequest, FakeTriton.shared_memory_unregister),
    "SystemSharedMemoryStatus": (pb.SystemSharedMemoryStatusRequest, FakeTriton.shared_memory_status),
    "CudaSharedMemoryRegister": (pb.CudaSharedMemoryRegisterRequest, FakeTriton.cuda_register),
    "CudaSharedMemoryUnregister": (pb.CudaSharedMemoryUnregisterRequest, FakeTriton.cuda_unregister),
    "CudaSharedMemoryStatus": (pb.CudaSharedMemoryStatusRequest, FakeTriton.cuda_status),
    "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, FakeTriton.repository_model_load),
    "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, FakeTriton.repository_model_unload),
}


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def __init__(self, triton: FakeTriton) -> None:
        self._triton = triton

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method == f"{_PREFIX}ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(
                self._triton.model_stream_infer,
                request_deserializer=pb.ModelInferRequest.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        found = _METHODS.get(str(details.method).removeprefix(_PREFIX))
        if found is None:
            return None
        request, method = found

        async def behaviour(message: Any, context: Any) -> Any:
            return await method(self._triton, message, context)  # type: ignore[operator]

        return grpc.unary_unary_rpc_method_handler(
            behaviour,
            request_deserializer=request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
