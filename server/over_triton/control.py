"""Loads and unloads as Triton is asked for them. Source: Triton's model repository extension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.errors import InvalidRequest, UnknownRepository
from server.proto.triton import service_pb2 as pb
from server.repository.override import read_override


def load_message(name: str, parameters: Mapping[str, object], repository_name: str, max_bytes: int) -> Any:
    """A RepositoryModelLoadRequest.

    Raises:
        InvalidRequest, PayloadTooLarge: a parameter is unknown, or not of its kind, or too large.
        UnknownRepository: a repository is named.
    """
    if repository_name:
        raise UnknownRepository(repository_name)
    read_override(parameters, max_bytes)
    message = pb.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        parameter = message.parameters[key]
        if isinstance(value, bytes):
            parameter.bytes_param = value
        elif isinstance(value, str):
            parameter.string_param = value
        else:
            raise InvalidRequest(f"parameters.{key}", "must be text or bytes")
    return message


def unload_message(name: str, unload_dependents: bool) -> Any:
    """A RepositoryModelUnloadRequest."""
    message = pb.RepositoryModelUnloadRequest(model_name=name)
    if unload_dependents:
        message.parameters["unload_dependents"].bool_param = True
    return message
