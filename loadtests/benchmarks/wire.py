"""What it costs to read and write a ModelInfer message: by protobuf, and on its bytes where its shape is known.

    python -m loadtests.benchmarks.wire

CPU time a message, in microseconds, from bytes to an `InferRequest` and from an `InferResponse` to bytes. The two take
turns in short rounds, so that a noisy moment hits both, and the best round of each counts. "seen" are messages that
are alike but for their ids and data, as one client sends them; "ever new" ones each have a parameter of their own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from loadtests.flags import counted
from loadtests.report import table
from server.tensor import Tensor
from server.transport.codec import v2_grpc
from server.transport.codec.wire_request import Forms
from server.transport.codec.wire_response import Templates
from server.types import InferRequest, InferResponse, Outcome

MESSAGES = 64
HEADER = ("case", "protobuf", "bytes", "times faster")


@dataclass(frozen=True)
class Shape:
    """So many inputs, or outputs, of so many FP32; of text where it is 0."""

    tensors: int
    elements: int
    id: str = ""
    """In which {} is the number of the message."""
    new: bool = False

    def inputs(self, index: int) -> Iterator[Tensor]:
        for position in range(self.tensors):
            if self.elements:
                yield Tensor.from_numpy(f"input_{position}", np.full((1, self.elements), index, "<f4"))
            else:
                yield Tensor.from_numpy(f"input_{position}", np.array([["some text " * (1 + index % 3)]], object))


SHAPES = {
    "1 input of 16 bytes": Shape(1, 4),
    "the same, with an id": Shape(1, 4, "request-{}"),
    "3 inputs of 512 bytes": Shape(3, 128),
    "the same, with an id ": Shape(3, 128, "request-{}"),
    "1 text": Shape(1, 0),
    "1 input of 600 kB": Shape(1, 150_000),
    "1 input of 16 bytes, ever new": Shape(1, 4, new=True),
}


def requests(shape: Shape) -> list[bytes]:
    return [request(shape, index) for index in range(100 * MESSAGES if shape.new else MESSAGES)]


def request(shape: Shape, index: int) -> bytes:
    message = pb.ModelInferRequest(model_name="tiny_mlp", id=shape.id.format(index))
    for tensor in shape.inputs(index):
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(bytes(tensor.data))
    if shape.new:
        message.parameters["number"].int64_param = index
    return message.SerializeToString()


def responses(shape: Shape) -> list[InferResponse]:
    return [
        InferResponse("tiny_mlp", "1", list(shape.inputs(index)), shape.id.format(index)) for index in range(MESSAGES)
    ]


def ignore(_request: InferRequest, _outcome: Outcome) -> None:
    """Nobody waits in a benchmark."""


def decode_by_protobuf(data: bytes) -> None:
    v2_grpc.decode_infer(pb.ModelInferRequest.FromString(data), on_settle=ignore, received_ns=1, deadline_ns=2)


def encode_by_protobuf(response: InferResponse) -> None:
    v2_grpc.encode_infer(response).SerializeToString()


def best_us(calls: Sequence[Callable[[object], object]], messages: Sequence[object], rounds: int) -> list[float]:
    """CPU microseconds a message of each way, in its best round of as many messages."""
    best = [float("inf")] * len(calls)
    turns = [cycle(messages) for _ in calls]
    for _ in range(rounds):
        for index, call in enumerate(calls):
            some = list(islice(turns[index], MESSAGES))
            began = time.process_time_ns()
            for message in some:
                call(message)
            best[index] = min(best[index], (time.process_time_ns() - began) / 1e3 / MESSAGES)
    return best


def line(case: str, us: Sequence[float]) -> tuple[object, ...]:
    by_protobuf, by_bytes = us
    return case, f"{by_protobuf:.2f}", f"{by_bytes:.2f}", f"{by_protobuf / by_bytes:.1f}"


def measure(rounds: int) -> str:
    forms, templates = Forms(), Templates()

    def decode(data: bytes) -> None:
        forms.decode(data, on_settle=ignore, received_ns=1, deadline_ns=2)

    def encode(response: InferResponse) -> None:
        templates.encode(response)

    rows = []
    for case, shape in SHAPES.items():
        rows.append(line(f"read {case}", best_us((decode_by_protobuf, decode), requests(shape), rounds)))
    for case, shape in SHAPES.items():
        if not shape.new:
            answers = responses(shape)
            case = case.replace("input", "output")
            rows.append(line(f"write {case}", best_us((encode_by_protobuf, encode), answers, rounds)))
    return table(HEADER, rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=counted, default=300)
    parser.add_argument("--out", type=Path, help="a folder for wire.md")
    arguments = parser.parse_args(argv)
    text = measure(arguments.rounds)
    sys.stdout.write(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "wire.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
