"""The parameters of a tensor in shared memory -> `server.shared_memory`, and the regions -> v2's messages and JSON.

The words of the errors are Triton's. Source: Triton's extension_shared_memory.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from server.errors import InvalidRequest
from server.proto.triton import service_pb2 as pb
from server.shared_memory.cuda import CudaRegion
from server.shared_memory.references import Reference, SharedInput, SharedTensors
from server.shared_memory.region import Region
from server.shared_memory.system import SystemRegion
from server.tensor import Buffer, Datatype
from server.transport.codec.tensors import check_raw, quoted
from server.types import Special

REGION, OFFSET, BYTE_SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"
_LARGEST = 2**63 - 1


def reference_of(field: str, name: str, parameters: Mapping[str, Any]) -> Reference | None:
    """Where the data of tensor `name` is, None if it is in the request. `field` is the tensor's.

    Raises:
        InvalidRequest: one parameter without the others, or of the wrong type, or out of range.
    """
    if REGION not in parameters:
        for key in (OFFSET, BYTE_SIZE):
            if key in parameters:
                problem = f"'{key}' can not be specified without '{REGION}' parameter for tensor {quoted(name)}"
                raise InvalidRequest(f"{field}.parameters.{key}", problem)
        return None
    region = parameters[REGION]
    if not isinstance(region, str) or not region:
        raise InvalidRequest(
            f"{field}.parameters.{REGION}",
            f"invalid value type for '{REGION}' parameter for tensor {quoted(name)}, "
            "expected a string that is not empty",
        )
    if "classification" in parameters:
        raise InvalidRequest(f"{field}.parameters", f"output can't set both '{REGION}' and 'classification'")
    if BYTE_SIZE not in parameters:
        problem = f"'{BYTE_SIZE}' must be specified along with '{REGION}' parameter for tensor {quoted(name)}"
        raise InvalidRequest(f"{field}.parameters.{BYTE_SIZE}", problem)
    offset = _number(field, name, OFFSET, parameters.get(OFFSET, 0), 0)
    return Reference(region, offset, _number(field, name, BYTE_SIZE, parameters[BYTE_SIZE], 1))


def _number(field: str, name: str, key: str, value: object, least: int) -> int:
    if type(value) is not int or not least <= value <= _LARGEST:
        raise InvalidRequest(
            f"{field}.parameters.{key}",
            f"invalid value type for '{key}' parameter for tensor {quoted(name)}, expected a whole number of bytes "
            f"from {least}, got {quoted(value)}",
        )
    return value


class SharedParts:
    """Gathers what one request says of shared memory, in the order of its tensors."""

    __slots__ = ("_inputs", "_outputs")

    def __init__(self) -> None:
        self._inputs: list[SharedInput] = []
        self._outputs: dict[str, Reference] = {}

    def input(self, index: int, field: str, datatype: Datatype, count: int, reference: Reference) -> None:
        """Raises InvalidRequest if so many bytes can't be `count` elements of the datatype."""
        expected = count * datatype.size
        if datatype.size and reference.byte_size != expected:
            raise InvalidRequest(
                f"{field}.parameters.{BYTE_SIZE}",
                f"input byte size mismatch, by its shape and datatype {datatype.name}. "
                f"Expected {expected}, got {reference.byte_size}",
            )
        check: Callable[[Buffer], None] = partial(check_raw, field, datatype, count)
        self._inputs.append(SharedInput(index, reference, check))

    def output(self, name: str, reference: Reference) -> None:
        self._outputs[name] = reference

    def gathered(self) -> SharedTensors | None:
        """None if all its tensors are in the request, and in the answer."""
        return SharedTensors(tuple(self._inputs), self._outputs) if self._inputs or self._outputs else None


def special_of(shared: SharedParts, classes: Mapping[str, int]) -> Special | None:
    """What a request says of its tensors beyond what they are; None where that is nothing."""
    tensors = shared.gathered()
    return Special(tensors, classes) if tensors is not None or classes else None


def parameters_of(reference: Reference) -> dict[str, str | int]:
    """What an answer says of an output that was written there; its byte size is that of the output."""
    parameters: dict[str, str | int] = {REGION: reference.region}
    if reference.offset:
        parameters[OFFSET] = reference.offset
    return {**parameters, BYTE_SIZE: reference.byte_size}


def encode_system_status(regions: Iterable[Region]) -> Any:
    """A SystemSharedMemoryStatusResponse, of those that are the host's."""
    status = pb.SystemSharedMemoryStatusResponse.RegionStatus
    return pb.SystemSharedMemoryStatusResponse(
        regions={
            region.name: status(name=region.name, key=region.key, offset=region.offset, byte_size=region.byte_size)
            for region in regions
            if isinstance(region, SystemRegion)
        }
    )


def encode_cuda_status(regions: Iterable[Region]) -> Any:
    """A CudaSharedMemoryStatusResponse, of those that are a GPU's."""
    status = pb.CudaSharedMemoryStatusResponse.RegionStatus
    return pb.CudaSharedMemoryStatusResponse(
        regions={
            region.name: status(name=region.name, device_id=region.device_id, byte_size=region.byte_size)
            for region in regions
            if isinstance(region, CudaRegion)
        }
    )
