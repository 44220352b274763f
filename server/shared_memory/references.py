"""What a request says of tensors that lie in a client's shared memory. Source: Triton's extension_shared_memory.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from server.tensor import Buffer


class Reference(NamedTuple):
    """A piece of a registered region; bytes."""

    region: str
    offset: int
    byte_size: int


class SharedInput(NamedTuple):
    """The input at `position` of the request. `check` raises InvalidRequest for bytes that are no such tensor."""

    position: int
    reference: Reference
    check: Callable[[Buffer], None]


class SharedTensors(NamedTuple):
    """Of one request: its inputs that are read from regions, and its outputs that are written to them, by name."""

    inputs: tuple[SharedInput, ...]
    outputs: Mapping[str, Reference]
