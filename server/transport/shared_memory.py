"""The RPCs and routes by which clients register their shared memory, of the host and of GPUs.

Where there is no GPU, the status of CUDA's is empty, and to register it is refused, as by a Triton without GPUs.
Source: Triton's extension_shared_memory.md, extension_cuda_shared_memory.md.
"""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any

from server.errors import InvalidRequest, UnknownRegion
from server.proto.triton import service_pb2 as pb
from server.transport.codec.management import to_json
from server.transport.codec.shared_memory import encode_cuda_status, encode_system_status
from server.transport.codec.v2_rest import load_json
from server.transport.http1.reply import Reply, json_reply

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.shared_memory.region import Kind, Region
    from server.shared_memory.regions import Regions
    from server.transport.exchange import Exchange
    from server.transport.methods import CallInfo

_LARGEST = 2**64 - 1


def _known(regions: Regions, kind: Kind, name: str) -> list[Region]:
    """The region of that kind, or with no name all of them. Raises UnknownRegion."""
    if not name:
        return regions.of(kind)
    region = regions.get(name)
    if region is None:
        raise UnknownRegion(name, f"{kind} ")
    if region.kind != kind:
        raise UnknownRegion(name, f"{kind} ", f"is registered as {region.kind} shared memory")
    return [region]


# --- gRPC ---------------------------------------------------------------------------------------------


def system_status(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    return encode_system_status(_known(dataplane.shared_memory.regions(), "system", message.name))


def system_register(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    dataplane.shared_memory.regions().register(message.name, message.key, message.offset, message.byte_size)
    return pb.SystemSharedMemoryRegisterResponse()


def system_unregister(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    dataplane.shared_memory.regions().unregister("system", message.name)
    return pb.SystemSharedMemoryUnregisterResponse()


def cuda_status(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    return encode_cuda_status(_known(dataplane.shared_memory.regions(), "cuda", message.name))


async def cuda_register(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    await dataplane.shared_memory.register_cuda(message.name, message.raw_handle, message.device_id, message.byte_size)
    return pb.CudaSharedMemoryRegisterResponse()


def cuda_unregister(dataplane: DataPlane, message: Any, _info: CallInfo) -> Any:
    dataplane.shared_memory.regions().unregister("cuda", message.name)
    return pb.CudaSharedMemoryUnregisterResponse()


# --- REST ---------------------------------------------------------------------------------------------


async def get_system_status(exchange: Exchange) -> Reply:
    regions = exchange.dataplane.shared_memory.regions()
    message = encode_system_status(_known(regions, "system", exchange.names.get("region", "")))
    return json_reply(list(to_json(message)["regions"].values()))


async def post_system_register(exchange: Exchange) -> Reply:
    regions = exchange.dataplane.shared_memory.regions()
    document = await _object(exchange)
    key = document.get("key")
    if not isinstance(key, str):
        raise InvalidRequest("key", "must be a string")
    numbers = (_number(document, "offset", 0), _number(document, "byte_size", None))
    regions.register(exchange.names["region"], key, *numbers)
    return Reply(200)


async def post_system_unregister(exchange: Exchange) -> Reply:
    exchange.dataplane.shared_memory.regions().unregister("system", exchange.names.get("region", ""))
    return Reply(200)


async def get_cuda_status(exchange: Exchange) -> Reply:
    regions = exchange.dataplane.shared_memory.regions()
    message = encode_cuda_status(_known(regions, "cuda", exchange.names.get("region", "")))
    return json_reply(list(to_json(message)["regions"].values()))


async def post_cuda_register(exchange: Exchange) -> Reply:
    shared_memory = exchange.dataplane.shared_memory
    shared_memory.regions()
    document = await _object(exchange)
    handle = _handle(document)
    numbers = (_number(document, "device_id", None, of=""), _number(document, "byte_size", None))
    await shared_memory.register_cuda(exchange.names["region"], handle, *numbers)
    return Reply(200)


async def post_cuda_unregister(exchange: Exchange) -> Reply:
    exchange.dataplane.shared_memory.regions().unregister("cuda", exchange.names.get("region", ""))
    return Reply(200)


async def _object(exchange: Exchange) -> dict[str, Any]:
    document = load_json("body", await exchange.body())
    if not isinstance(document, dict):
        raise InvalidRequest("body", "must be an object")
    return document


def _handle(document: dict[str, Any]) -> bytes:
    """Of JSON, which has no bytes: ``{"b64": ...}``."""
    given = document.get("raw_handle")
    text = given.get("b64") if isinstance(given, dict) else None
    if not isinstance(text, str):
        raise InvalidRequest("raw_handle.b64", "must be a string")
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidRequest("raw_handle.b64", "is no base64") from error


def _number(document: dict[str, Any], name: str, default: int | None, of: str = " of bytes") -> int:
    value = document.get(name, default)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise InvalidRequest(name, f"must be a whole number{of}, 0 to 2**64 - 1")
    return value
