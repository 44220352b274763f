"""grpc.reflection.v1 and v1alpha: which services there are, and the .proto files that describe them.

Clients such as grpcurl ask for them, so that they need no files of their own. v1 is v1alpha under another name, and the
package that has the messages has v1alpha alone: v1 is made of it. Source: gRPC "Server Reflection Protocol".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from server.proto.forwardpass.v1 import prediction_pb2
from server.proto.triton import service_pb2

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.transport.methods import CallInfo

_NOT_FOUND, _UNIMPLEMENTED = 5, 12
"""Numbers of gRPC's statuses, as an answer has them."""
_ALPHA, _V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"
_V1_FILE = "grpc/reflection/v1/reflection.proto"

_pool = descriptor_pool.Default()


def _v1_file() -> FileDescriptor:
    """The file of v1, in the pool of all descriptors."""
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = _V1_FILE, _V1
    for field in (field for message in file.message_type for field in message.field if field.type_name):
        field.type_name = field.type_name.replace(_ALPHA, _V1)
    for method in (method for service in file.service for method in service.method):
        method.input_type = method.input_type.replace(_ALPHA, _V1)
        method.output_type = method.output_type.replace(_ALPHA, _V1)
    _pool.Add(file)
    return _pool.FindFileByName(_V1_FILE)


def _with_imports(file: FileDescriptor) -> Iterator[FileDescriptor]:
    """Each file behind those that it needs."""
    for imported in file.dependencies:
        yield from _with_imports(imported)
    yield file


_FILES = (
    service_pb2.DESCRIPTOR,
    prediction_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
    _v1_file(),
)
_KNOWN = {file.name: file for root in _FILES for file in _with_imports(root)}
"""What is told of: the pool has files that are nobody's."""
_METHODS = {
    service.full_name: set(service.methods_by_name) for file in _FILES for service in file.services_by_name.values()
}
SERVICES = tuple(sorted(_METHODS))

_v1 = _KNOWN[_V1_FILE].message_types_by_name
V1_REQUEST, V1_RESPONSE = (
    message_factory.GetMessageClass(_v1[name]) for name in ("ServerReflectionRequest", "ServerReflectionResponse")
)
ALPHA_REQUEST = reflection_pb2.ServerReflectionRequest
ALPHA_RESPONSE = reflection_pb2.ServerReflectionResponse

Handler = Callable[["DataPlane", AsyncIterator[Any], "CallInfo"], AsyncIterator[Any]]


def reflecting(response: type[Any]) -> Handler:
    """The handler whose answers are of that class."""

    async def handler(_dataplane: DataPlane, messages: AsyncIterator[Any], _info: CallInfo) -> AsyncIterator[Any]:
        sent: set[str] = set()
        async for message in messages:
            answer = response(valid_host=message.host, original_request=message)
            _answer(message, answer, sent)
            yield answer

    return handler


def _answer(message: Any, answer: Any, sent: set[str]) -> None:
    """`sent` are the files that this stream has had, which need not be sent again as somebody's imports."""
    asked = message.WhichOneof("message_request")
    if asked == "list_services":
        for name in SERVICES:
            answer.list_services_response.service.add(name=name)
    elif asked == "file_by_filename":
        _tell_file(answer, _KNOWN.get(message.file_by_filename), sent)
    elif asked == "file_containing_symbol":
        _tell_file(answer, _of_symbol(message.file_containing_symbol), sent)
    elif asked == "all_extension_numbers_of_type" and _of_symbol(message.all_extension_numbers_of_type):
        # proto3 has no extensions: whatever the type is, it has none.
        answer.all_extension_numbers_response.base_type_name = message.all_extension_numbers_of_type
    elif asked is None:
        _tell_error(answer, _UNIMPLEMENTED, "the request asks for nothing that is known here")
    else:
        _tell_error(answer, _NOT_FOUND, f"{asked}: is not known")


def _tell_error(answer: Any, code: int, text: str) -> None:
    answer.error_response.error_code = code
    answer.error_response.error_message = text


def _tell_file(answer: Any, file: FileDescriptor | None, sent: set[str]) -> None:
    if file is None:
        _tell_error(answer, _NOT_FOUND, "there is no such file or symbol")
        return
    needed = {one.name: one for one in _with_imports(file)}
    for name, one in needed.items():
        if name not in sent or name == file.name:
            sent.add(name)
            answer.file_descriptor_response.file_descriptor_proto.append(one.serialized_pb)


def _of_symbol(name: str) -> FileDescriptor | None:
    service, _, method = name.rpartition(".")
    if method in _METHODS.get(service, ()):
        name = service  # The pool finds no methods.
    with suppress(KeyError):
        return _KNOWN.get(_pool.FindFileContainingSymbol(name).name)
    return None
