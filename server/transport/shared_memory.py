"""The RPCs and routes by which clients register their shared memory.

CUDA's is nobody's here: its status is empty, and to register it is refused, as by a Triton that was built without GPUs.
Source: Triton's extension_shared_memory.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.errors import InvalidRequest, UnknownRegion, Unsupported
from server.proto.triton import service_pb2 as pb
from server.transport.codec.management import to_json
from server.transport.codec.shared_memory import encode_status
from server.transport.codec.v2_rest import load_json
from server.transport.http1.reply import Reply, json_reply

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.shared_memory.regions import Regions
    from server.transport.exchange import Exchange
    from server.transport.methods import CallInfo

_SYSTEM = "system "
_LARGEST = 2**64 - 1


def status(regions: Regions, name: str) -> Any:
    """Of one region, or with no name of all. Raises UnknownRegion."""
    if not name:
        return encode_status(regions)
    region = regions.get(name)
    if region is None:
        raise UnknownRegion(name, _SYSTEM)
    return encode_status((region,))


def _no_cuda(regions: Regions, name: str) -> None:
    """Raises UnknownRegion where one region is asked for by name."""
    if name and regions.get(name) is not None:
        raise UnknownRegion(name, "cuda ", "is registered as system shared memory")
    if name:
        raise UnknownRegion(name, "cuda ")


def _refuse_cuda(name: str) -> Unsupported:
    return Unsupported(f"failed to register CUDA shared memory region: '{name}'", "GPUs are not supported")


# --- gRPC ---------------------------------------------------------------------------------------------


def system_status(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    return status(dataplane.shared_memory.regions(), message.name)


def system_register(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    dataplane.shared_memory.regions().register(message.name, message.key, message.offset, message.byte_size)
    return pb.SystemSharedMemoryRegisterResponse()


def system_unregister(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    dataplane.shared_memory.regions().unregister(message.name)
    return pb.SystemSharedMemoryUnregisterResponse()


def cuda_status(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    _no_cuda(dataplane.shared_memory.regions(), message.name)
    return pb.CudaSharedMemoryStatusResponse()


def cuda_register(_dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    raise _refuse_cuda(message.name)


def cuda_unregister(_dataplane: DataPlane, _message: Any, _info: CallInfo) -> Any:
    """There is none that could be unregistered, which is no error, as for any name that is not known."""
    return pb.CudaSharedMemoryUnregisterResponse()


# --- REST ---------------------------------------------------------------------------------------------


async def get_system_status(exchange: Exchange) -> Reply:
    message = status(exchange.dataplane.shared_memory.regions(), exchange.names.get("region", ""))
    return json_reply(list(to_json(message)["regions"].values()))


async def post_system_register(exchange: Exchange) -> Reply:
    regions = exchange.dataplane.shared_memory.regions()
    document = load_json("body", await exchange.body())
    if not isinstance(document, dict):
        raise InvalidRequest("body", "must be an object")
    key = document.get("key")
    if not isinstance(key, str):
        raise InvalidRequest("key", "must be a string")
    numbers = (_number(document, "offset", 0), _number(document, "byte_size", None))
    regions.register(exchange.names["region"], key, *numbers)
    return Reply(200)


async def post_system_unregister(exchange: Exchange) -> Reply:
    exchange.dataplane.shared_memory.regions().unregister(exchange.names.get("region", ""))
    return Reply(200)


async def get_cuda_status(exchange: Exchange) -> Reply:
    _no_cuda(exchange.dataplane.shared_memory.regions(), exchange.names.get("region", ""))
    return json_reply([])


async def post_cuda_register(exchange: Exchange) -> Reply:
    raise _refuse_cuda(exchange.names["region"])


async def post_cuda_unregister(_exchange: Exchange) -> Reply:
    return Reply(200)


def _number(document: dict[str, Any], name: str, default: int | None) -> int:
    value = document.get(name, default)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise InvalidRequest(name, "must be a whole number of bytes, 0 to 2**64 - 1")
    return value
