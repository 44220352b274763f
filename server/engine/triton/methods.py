"""The methods of Triton's that are called. Source: Triton's grpc_service.proto."""

from __future__ import annotations

from typing import Any, NamedTuple

from server.proto.triton import service_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"


class Unary(NamedTuple):
    """A method of Triton's; of the one that streams, its messages."""

    name: str
    request: type[Any]
    response: type[Any]

    @property
    def path(self) -> str:
        return f"{SERVICE}{self.name}"


INFER = Unary("ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
READY = Unary("ServerReady", pb.ServerReadyRequest, pb.ServerReadyResponse)
SERVER = Unary("ServerMetadata", pb.ServerMetadataRequest, pb.ServerMetadataResponse)
INDEX = Unary("RepositoryIndex", pb.RepositoryIndexRequest, pb.RepositoryIndexResponse)
CONFIG = Unary("ModelConfig", pb.ModelConfigRequest, pb.ModelConfigResponse)
METADATA = Unary("ModelMetadata", pb.ModelMetadataRequest, pb.ModelMetadataResponse)
LOAD = Unary("RepositoryModelLoad", pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse)
UNLOAD = Unary("RepositoryModelUnload", pb.RepositoryModelUnloadRequest, pb.RepositoryModelUnloadResponse)
STREAM_INFER = Unary("ModelStreamInfer", pb.ModelInferRequest, pb.ModelStreamInferResponse)


class RegionMethods(NamedTuple):
    """Of one kind of shared memory. Whoever is registered, forgotten or asked for is named by `name`."""

    register: Unary
    unregister: Unary
    status: Unary


SYSTEM_REGIONS = RegionMethods(
    Unary("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest, pb.SystemSharedMemoryRegisterResponse),
    Unary(
        "SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest, pb.SystemSharedMemoryUnregisterResponse
    ),
    Unary("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest, pb.SystemSharedMemoryStatusResponse),
)
CUDA_REGIONS = RegionMethods(
    Unary("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest, pb.CudaSharedMemoryRegisterResponse),
    Unary("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest, pb.CudaSharedMemoryUnregisterResponse),
    Unary("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest, pb.CudaSharedMemoryStatusResponse),
)
