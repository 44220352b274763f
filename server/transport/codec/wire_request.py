"""ModelInferRequest -> types, from bytes: what was seen before is not parsed again.

The requests of one client differ in their tensors and their id, and in nothing else. So a message is split at its
top-level fields (tag, length, content). All of them but `id` and `raw_input_contents` are its key, and what a key
says is found out by protobuf. Whatever is not plain (typed contents, unknown fields, anything
that is refused) is protobuf's to read, through `v2_grpc`: its answer, or refusal, is by definition the right one.

A message is looked up in three steps, each for what the one before does not know:

1. as one of a run: small messages of one length, byte for byte the same up to the data, but for an id;
2. by its key, in whatever order its fields come;
3. by protobuf, which makes the key known when it comes for the second time.

Source: the encoding of protobuf messages; the field numbers of Triton's grpc_service.proto.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from google.protobuf.message import DecodeError

from server.errors import InvalidRequest
from server.proto.triton import service_pb2 as pb
from server.tensor import DATATYPES, Buffer, Tensor
from server.transport.codec import v2_grpc
from server.transport.codec.recent import Recent
from server.transport.codec.tensors import check_raw
from server.transport.codec.varint import ONE_BYTE, read_length, varint
from server.transport.http2.prefix import PREFIX_BYTES, is_plain, write_prefix
from server.types import NO_DEADLINE, Form, InferRequest, Outcome, Said

_MODEL_NAME, _MODEL_VERSION, _ID, _PARAMETERS, _INPUTS, _OUTPUTS, _RAW = (number << 3 | 2 for number in range(1, 8))
"""The tags of a request's fields; what each of them has is a length, then so many bytes."""
_IN_KEY = frozenset((_MODEL_NAME, _MODEL_VERSION, _PARAMETERS, _INPUTS, _OUTPUTS))

_MAX_FIELDS = 256
"""Over very many fields protobuf hops faster."""
_MAX_KEY_BYTES = 4096
_KEYS_BYTES = 2**18
_ENTRY_BYTES = 256
"""What a key weighs beside its bytes."""
_MAX_SEEN = 4096
_MAX_RUNS = 512
_VIEW_BYTES = 8192
"""From here on a view on the message costs less than a copy of the tensor."""

Settle = Callable[[InferRequest, Outcome], None]

_new = object.__new__
_received = InferRequest.received


@dataclass(slots=True)
class _Input:
    """What a key says of one input. `size` is the length of its data; -1 if the right length does not make it right."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int


@dataclass(slots=True)
class _Key:
    """What a key says."""

    said: Said
    """Without a form where it is not known: nobody will see that again."""
    inputs: list[_Input]
    run: _Run | None = None


@dataclass(slots=True)
class _Run:
    """Messages that are `head`, perhaps an id, `body`, and then the data, which differs."""

    key: _Key
    head: bytes
    """The fields `model_name` and `model_version`."""
    body: bytes
    """The rest of the key, and the tag and length of the first input's data."""
    whole: bytes
    """`head` and `body`: how a message without an id begins."""
    framed: bytes
    """The same behind the prefix that gRPC gives such a message."""
    tail_bytes: int
    """What follows: the data, and before that of each input but the first its tag and length."""
    message_bytes: int
    """Length of a message without an id."""
    first: _Input
    others: list[tuple[bytes, _Input]]
    """The other inputs, each with its tag and length."""


_Split = tuple[bytes, str, list[tuple[int, int]]]
"""A message at its top-level fields: its key, its id, and where each of its raw contents begins and ends."""

_Found = tuple[_Key, str, list[Tensor]]
"""What a message says: all that its key says, its id, its inputs."""


class Forms:
    """What is known of the requests that came lately; used by one thread at a time.

    Its memory is bounded, whatever clients send. One whose every request has another key (a parameter that
    counts, shapes that vary) has them read by protobuf, and pushes out only what nobody asks for meanwhile.
    """

    def __init__(self) -> None:
        self._keys: Recent[bytes, _Key] = Recent(_KEYS_BYTES)
        self._seen: set[int] = set()
        self._runs: dict[int, _Run] = {}
        """By the length of a message without its id; among several of one length, the one that came last."""

    def decode(
        self,
        data: bytes | memoryview,
        on_settle: Settle,
        received_ns: int,
        deadline_ns: int = NO_DEADLINE,
        caller: object = None,
    ) -> InferRequest:
        """The request in the bytes of a ModelInferRequest. Large tensors are views on `data`, which must not change.

        Raises:
            InvalidRequest: the bytes are no such message, or it contradicts itself.
        """
        key, request_id, inputs = self._find(data)
        return _received(key.said, request_id, inputs, on_settle, received_ns, deadline_ns, caller)

    def decode_framed(
        self, data: bytes, on_settle: Settle, received_ns: int, deadline_ns: int, caller: object
    ) -> InferRequest | None:
        """The same of a message behind gRPC's prefix, a flag and the length. None if `data` is anything but one message
        that is not compressed."""
        run = self._runs.get(len(data) - PREFIX_BYTES)
        tail = data if run is None else data.removeprefix(run.framed)
        if run is not None and len(tail) == run.tail_bytes and not run.others:
            inputs = [_tensor(run.first, tail)]
            return _received(run.key.said, "", inputs, on_settle, received_ns, deadline_ns, caller)
        if not is_plain(data):
            return None
        return self.decode(data[PREFIX_BYTES:], on_settle, received_ns, deadline_ns, caller)

    def _find(self, data: bytes | memoryview) -> _Found:
        if type(data) is not bytes:
            if len(data) < _VIEW_BYTES:
                return self._find(bytes(data))
            return self._by_key(memoryview(data).toreadonly())
        run = self._runs.get(len(data))
        if run is None:
            return self._with_id(data) or self._by_key(data)
        tail = data.removeprefix(run.whole)
        if len(tail) != run.tail_bytes:
            return self._with_id(data) or self._by_key(data)
        if run.others:
            return _several(run, "", tail) or self._by_key(data)
        return run.key, "", [_tensor(run.first, tail)]

    def _with_id(self, data: bytes) -> _Found | None:
        """A message of a run, if it has a short id right behind the model's names."""
        try:
            at = data[1] + 2
            if data[at] == _MODEL_VERSION:
                at += data[at + 1] + 2
            if data[at] != _ID:
                return None
            size = data[at + 1]
            run = self._runs.get(len(data) - size - 2)
            if run is None or size >= ONE_BYTE or data[:at] != run.head:
                return None
            end = at + size + 2
            tail = data[end:].removeprefix(run.body)
            if len(tail) != run.tail_bytes:
                return None
            request_id = data[at + 2 : end].decode()
            return _several(run, request_id, tail) if run.others else (run.key, request_id, [_tensor(run.first, tail)])
        except (IndexError, UnicodeDecodeError):
            return None

    def _by_key(self, data: bytes | memoryview) -> _Found:
        """Any other message, by its key if that is known, else by protobuf."""
        try:
            split = _split(data)
        except (IndexError, ValueError):
            split = None
        if split is None:
            return _parse(data)
        key_bytes, request_id, raw = split
        key = self._keys.get(key_bytes)
        if key is None:
            found = _parse(data)
            *_, special = found[0].said
            if special is None and self._seen_before(key_bytes):
                self._learn(key_bytes, found)
            return found
        inputs = _inputs(data, raw, key.inputs)
        if inputs is None:
            return _parse(data)
        if key.run is not None:
            self._keep(key.run)
        return key, request_id, inputs

    def _seen_before(self, key_bytes: bytes) -> bool:
        """To know a key costs more than to read its message, so it is done for those that come again."""
        mark = hash(key_bytes)
        if mark in self._seen:
            return True
        if len(self._seen) >= _MAX_SEEN:
            self._seen.clear()
        self._seen.add(mark)
        return False

    def _learn(self, key_bytes: bytes, found: _Found) -> None:
        key, _, inputs = found
        model_name, model_version, outputs, parameters, _, special = key.said
        key.said = model_name, model_version, outputs, parameters, Form(), special
        key.inputs = [_described(tensor) for tensor in inputs]
        key.run = _run(key_bytes, key)
        self._keys.put(key_bytes, key, len(key_bytes) + _ENTRY_BYTES)
        if key.run is not None:
            self._keep(key.run)

    def _keep(self, run: _Run) -> None:
        """Let the run be found. Where there are too many, all go: those in use are back with their next message."""
        if len(self._runs) >= _MAX_RUNS:
            self._runs.clear()
        self._runs[run.message_bytes] = run


def _tensor(spec: _Input, data: Buffer) -> Tensor:
    """The same as a call of the class, in less time."""
    tensor: Tensor = _new(Tensor)
    tensor.name = spec.name
    tensor.datatype = spec.datatype
    tensor.shape = spec.shape
    tensor.data = data
    return tensor


def _several(run: _Run, request_id: str, tail: bytes) -> _Found | None:
    """A message of a run with several inputs; None if their data does not lie where it must."""
    at = run.first.size
    inputs = [_tensor(run.first, tail[:at])]
    for mark, spec in run.others:
        start = at + len(mark)
        if tail[at:start] != mark:
            return None
        at = start + spec.size
        inputs.append(_tensor(spec, tail[start:at]))
    return run.key, request_id, inputs


def _run(key_bytes: bytes, key: _Key) -> _Run | None:
    """The run of a key; None where messages of one key differ in length, or the data is large."""
    first, *others = key.inputs
    sizes = [spec.size for spec in key.inputs]
    if min(sizes) < 0 or sum(sizes) >= _VIEW_BYTES:
        return None
    marks = [bytes((_RAW,)) + varint(size) for size in sizes]
    whole = key_bytes + marks[0]
    tail_bytes = sum(sizes) + sum(map(len, marks[1:]))
    return _Run(
        key=key,
        head=whole[: _names_end(whole)],
        body=whole[_names_end(whole) :],
        whole=whole,
        framed=write_prefix(0, len(whole) + tail_bytes) + whole,
        tail_bytes=tail_bytes,
        message_bytes=len(whole) + tail_bytes,
        first=first,
        others=list(zip(marks[1:], others, strict=True)),
    )


def _names_end(data: bytes) -> int:
    """Where the fields `model_name` and `model_version` end that `data` begins with."""
    at = 0
    for tag in (_MODEL_NAME, _MODEL_VERSION):
        if data[at] == tag:
            size, start = read_length(data, at + 1)
            at = start + size
    return at


def _parse(data: bytes | memoryview) -> _Found:
    """A message that nothing is known of, by protobuf."""
    try:
        message = pb.ModelInferRequest.FromString(data)
    except DecodeError as error:
        raise InvalidRequest("message", f"is not a valid {pb.ModelInferRequest.DESCRIPTOR.full_name}") from error
    request = v2_grpc.decode_infer(message, on_settle=_nobody, received_ns=0)
    said = request.model_name, request.model_version, request.outputs, request.parameters, None, request.special
    return _Key(said, []), request.id, list(request.inputs)


def _nobody(_request: InferRequest, _outcome: Outcome) -> None:
    """Waits for a request that is only looked at."""


def _described(tensor: Tensor) -> _Input:
    told_by_length = tensor.datatype not in ("BYTES", "BOOL")
    return _Input(tensor.name, tensor.datatype, tensor.shape, len(tensor.data) if told_by_length else -1)


def _inputs(data: bytes | memoryview, raw: list[tuple[int, int]], expected: list[_Input]) -> list[Tensor] | None:
    """The inputs of a message whose key is known; None if a length or a count is not right.

    Raises:
        InvalidRequest: see `check_raw`.
    """
    if len(raw) != len(expected):
        return None
    inputs: list[Tensor] = []
    for spec, (start, end) in zip(expected, raw):  # noqa: B905 - `strict` costs more than a tensor
        size = end - start
        part = data[start:end] if size < _VIEW_BYTES else memoryview(data)[start:end]
        if spec.size < 0:
            field = f"raw_input_contents[{len(inputs)}]"
            check_raw(field, DATATYPES[spec.datatype], prod(spec.shape), part)
        elif spec.size != size:
            return None
        inputs.append(_tensor(spec, part))
    return inputs


def _split(data: bytes | memoryview) -> _Split | None:
    """The message at its top-level fields; None if it is not plain, or its key is too long to be kept.

    Raises:
        IndexError: the message ends in the middle of a field.
        ValueError: a length or the id is not plain.
    """
    at = start = 0
    end = len(data)
    request_id = ""
    kept: list[bytes | memoryview] = []
    raw: list[tuple[int, int]] = []
    for _ in range(_MAX_FIELDS):
        tag, size, content = data[at], data[at + 1], at + 2
        if size >= ONE_BYTE:
            size, content = read_length(data, at + 1)
        if tag not in _IN_KEY:
            if start != at:
                kept.append(data[start:at])
            start = content + size
            if tag == _RAW:
                raw.append((content, start))
            elif tag == _ID:
                request_id = str(data[content:start], "utf-8")
            else:
                return None
        at = content + size
        if at >= end:
            break
    return _joined(data, at, start, kept, request_id, raw)


def _joined(
    data: bytes | memoryview,
    at: int,
    start: int,
    kept: list[bytes | memoryview],
    request_id: str,
    raw: list[tuple[int, int]],
) -> _Split | None:
    """What was split until `at`, with the piece of the key that begins at `start`."""
    if at != len(data) or not raw:
        return None
    if start != at:
        kept.append(data[start:])
    key = b"".join(kept)
    return (key, request_id, raw) if len(key) <= _MAX_KEY_BYTES else None
