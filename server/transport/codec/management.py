"""The data plane's answers about itself and its models -> v2 messages, and such messages -> Triton's JSON."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from server.errors import InvalidRequest
from server.proto.triton import service_pb2 as pb
from server.transport.codec.v2_rest import load_json
from server.types import IndexEntry, ModelMetadata, ServerMetadata

_INTEGERS_AS_TEXT = frozenset({FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64})
"""protobuf's JSON puts 64-bit numbers in quotes; Triton's REST does not, nor do v2's schemas."""


def encode_server_metadata(metadata: ServerMetadata) -> Any:
    return pb.ServerMetadataResponse(name=metadata.name, version=metadata.version, extensions=metadata.extensions)


def encode_model_metadata(metadata: ModelMetadata) -> Any:
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=[tensor(name=spec.name, datatype=spec.datatype, shape=spec.dims) for spec in metadata.inputs],
        outputs=[tensor(name=spec.name, datatype=spec.datatype, shape=spec.dims) for spec in metadata.outputs],
    )


def encode_index(entries: Iterable[IndexEntry]) -> Any:
    models = [
        pb.RepositoryIndexResponse.ModelIndex(
            name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
        )
        for entry in entries
    ]
    return pb.RepositoryIndexResponse(models=models)


def control_options(body: bytes) -> dict[str, Any]:
    """The object in the body of a REST call of model control, which may be left out. Raises InvalidRequest."""
    document = load_json("body", body) if body else {}
    if not isinstance(document, dict):
        raise InvalidRequest("body", "must be an object")
    return document


def control_parameters(body: bytes) -> dict[str, Any]:
    """The parameters in the body of a REST call of model control, with files as bytes, which JSON has in base64.

    Raises:
        InvalidRequest: the body is no such object, or a file's value is no base64.
    """
    parameters = control_options(body).get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters", "must be an object")
    return {name: _file(name, value) if name.startswith("file:") else value for name, value in parameters.items()}


def _file(name: str, value: object) -> bytes:
    try:
        if isinstance(value, str):
            return b64decode(value, validate=True)
    except ValueError:
        pass
    raise InvalidRequest(f"parameters.{name}", "must be the file's bytes in base64")


def unload_dependents(parameters: Mapping[str, object]) -> bool:
    """What the parameters of an unload say. Raises InvalidRequest for any other."""
    for name, value in parameters.items():
        if name != "unload_dependents":
            raise InvalidRequest(f"parameters.{name}", "is not known; an unload takes 'unload_dependents'")
        if not isinstance(value, bool):
            raise InvalidRequest("parameters.unload_dependents", "must be true or false")
    return bool(parameters.get("unload_dependents", False))


def to_json(message: Any) -> dict[str, Any]:
    """Triton's JSON of a v2 message: names as in the .proto, defaults included, 64-bit numbers as numbers."""
    document: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _restore_integers(message.DESCRIPTOR, document)
    return document


def _restore_integers(descriptor: Descriptor, document: dict[str, Any]) -> None:
    for field in descriptor.fields:
        if field.name in document:
            document[field.name] = _restored(field, document[field.name])


def _restored(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(field, item) for item in value]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {name: _restored(inner, item) for name, item in value.items()}
    if field.message_type is not None:
        _restore_integers(field.message_type, value)
        return value
    return int(value) if field.cpp_type in _INTEGERS_AS_TEXT else value
