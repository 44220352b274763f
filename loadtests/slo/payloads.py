"""What is sent: the golden inputs of a model, as messages that are made once, each with a check of its answer.

What is right comes from the model's folder, never from the server that is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.slo.objectives import Kind
from server.client import grpcio, rest
from server.client.calls import Call, Messages
from server.client.inputs import tensors
from server.pipeline.load import load_pipeline
from server.repository.golden import Golden, read_golden, read_raw
from server.tensor import Array
from server.types import Classification, PredictResponse

_ATOL, _RTOL = 1e-4, 1e-3
_SCORE = 1e-3


class NoPayload(Exception):
    """The model has nothing that could be sent; the text says what is missing."""


@dataclass(frozen=True)
class Payload:
    call: Call[Any]
    right: Callable[[Any], bool]
    """Of the call's answer."""


def payloads(kind: Kind, repository: Path) -> list[Payload]:
    """One for each golden input; at least one.

    Raises:
        NoPayload: see there.
    """
    folder = repository / kind.model
    versions = sorted((int(path.name) for path in folder.glob("[1-9]*") if path.is_dir()), reverse=True)
    golden = read_golden(folder, str(versions[0])) if versions else None
    if golden is None:
        raise NoPayload(f"{kind}: {folder} has no golden file of its newest version")
    messages: Messages = grpcio.Messages() if kind.transport == "grpc" else rest.Messages()
    made = _predictions if kind.call == "predict" else _inferences
    found = list(made(kind, messages, folder, golden))
    if not found:
        raise NoPayload(f"{kind}: {folder} has no raw golden inputs")
    return found


def _inferences(kind: Kind, messages: Messages, _folder: Path, golden: Golden) -> Sequence[Payload]:
    rows = min(len(array) for array in golden.inputs.values())
    return [
        Payload(
            messages.infer(kind.model, "", tensors(_row(golden.inputs, index)), ()),
            partial(_same_outputs, _row(golden.outputs, index)),
        )
        for index in range(rows)
    ]


def _predictions(kind: Kind, messages: Messages, folder: Path, golden: Golden) -> Sequence[Payload]:
    if not (folder / "processing.yaml").exists():
        raise NoPayload(f"{kind}: {folder} has no processing.yaml")
    wanted = load_pipeline(folder).postprocess(golden.outputs)
    return [
        Payload(messages.predict(kind.model, "", [raw], 0), partial(_same_prediction, one))
        for raw, one in zip(read_raw(folder), wanted, strict=False)
    ]


def _row(arrays: Mapping[str, Array], index: int) -> dict[str, Array]:
    return {name: array[index : index + 1] for name, array in arrays.items()}


def _same_outputs(wanted: Mapping[str, Array], answer: Mapping[str, Array]) -> bool:
    return set(answer) == set(wanted) and all(
        answer[name].shape == array.shape
        and (
            np.allclose(answer[name], array, _RTOL, _ATOL, equal_nan=True)
            if array.dtype.kind == "f"
            else bool((answer[name] == array).all())
        )
        for name, array in wanted.items()
    )


def _same_prediction(wanted: Classification, answer: PredictResponse) -> bool:
    (one,) = answer.predictions
    return one.label == wanted.label and abs(one.score - wanted.score) <= _SCORE
