"""What is sent: the golden inputs of a model, as messages that are made once, each with a check of its answer.

What is right comes from the model's folder, never from the server that is asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from server.client import grpcio, rest
from server.client.arrays import array_of
from server.client.calls import Call, Messages
from server.client.errors import ClientError
from server.client.inputs import tensors
from server.errors import Code, ServingError
from server.pipeline.base import PROCESSING_FILE
from server.pipeline.load import load_pipeline
from server.repository.golden import Golden, read_golden, read_raw
from server.tensor import Array, Tensor
from server.types import PredictResponse

Outcome = Literal["right", "wrong", "failed", "refused"]
"""refused: not taken in because of other work, and told so."""
OUTCOMES: tuple[Outcome, ...] = ("right", "wrong", "failed", "refused")

Judged = tuple[Outcome, str]
"""With the fault's words; those of a right answer are empty."""
RIGHT: Judged = ("right", "")

_ATOL, _RTOL = 1e-4, 1e-3
_MOST_KNOWN = 1024


class NoPayload(Exception):
    """The model has nothing that could be sent; the text says what is missing."""


@dataclass(frozen=True)
class Payload:
    call: Call[Any]
    right: Callable[[Any], bool]
    """Of the call's answer."""
    weight: float = 1.0
    """How often it is sent, beside the others."""
    _known: set[bytes] = field(default_factory=set, repr=False, compare=False)
    """Answers that were found right, by their bytes: one that comes again is checked at the cost of a look-up."""

    def judge(self, raw: bytes, reply: Callable[[], Any]) -> Judged:
        """`raw`: the bytes of a successful answer; `reply` makes of them what the call can read."""
        if raw in self._known:
            return RIGHT
        judged = self.judge_reply(reply())
        if judged is RIGHT and len(self._known) < _MOST_KNOWN:
            self._known.add(raw)
        return judged

    def judge_reply(self, reply: Any) -> Judged:
        try:
            answer = self.call.answer(reply, "")
        except ClientError as error:
            return fault(error)
        return RIGHT if self.right(answer) else ("wrong", "the answer is not the golden one")


def fault(error: ClientError) -> Judged:
    """An error that says that there is too much work is a refusal."""
    return ("refused" if error.code is Code.EXHAUSTED else "failed"), str(error)


class JsonMessages(rest.Messages):
    """REST with tensors in JSON, which servers without the binary extension understand too."""

    def infer(
        self, model: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str]
    ) -> Call[dict[str, Array]]:
        call = super().infer(model, version, inputs, outputs)
        body = {"inputs": [_in_json(tensor) for tensor in inputs]}
        request = replace(call.request, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
        return replace(call, request=request)


def _in_json(tensor: Tensor) -> dict[str, Any]:
    data = array_of(tensor).reshape(-1).tolist()
    texts = [one.decode() if isinstance(one, bytes) else one for one in data]
    return {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype, "data": texts}


MESSAGES: Mapping[str, type[Messages]] = {"grpc": grpcio.Messages, "rest": rest.Messages, "json": JsonMessages}
"""By transport; `json` is REST with tensors in JSON."""


def payloads(
    transport: str, call: str, model: str, repository: Path, sizes: Mapping[int, float] | None = None
) -> list[Payload]:
    """One for each golden input, and each size of `sizes`: rows of a request, by how often requests have so many.

    Raises:
        NoPayload: see there.
    """
    kind, folder = f"{transport} {call} {model}", repository / model
    try:
        golden = newest_golden(folder)
        if golden is None:
            raise NoPayload(f"{kind}: {folder} has no golden file of its newest version")
        messages = MESSAGES[transport]()
        made = _predictions if call == "predict" else _inferences
        found = [
            payload
            for rows, weight in (sizes or {1: 1.0}).items()
            for payload in _weighted(list(made(messages, folder, golden, rows)), weight)
        ]
    except ServingError as error:
        raise NoPayload(f"{kind}: {error.public_message}") from error
    if not found:
        raise NoPayload(f"{kind}: {folder} has no raw golden inputs")
    return found


def newest_golden(folder: Path) -> Golden | None:
    """Raises ModelLoadFailed where it is damaged."""
    versions = [int(path.name) for path in folder.glob("[1-9]*") if path.is_dir() and path.name.isdecimal()]
    return read_golden(folder, str(max(versions))) if versions else None


def _weighted(made: Sequence[Payload], weight: float) -> Iterator[Payload]:
    for payload in made:
        yield Payload(payload.call, payload.right, weight / len(made))


def _inferences(messages: Messages, folder: Path, golden: Golden, rows: int) -> Iterator[Payload]:
    for picked in _groups(min(len(array) for array in golden.inputs.values()), rows):
        inputs, outputs = take(golden.inputs, picked), take(golden.outputs, picked)
        yield Payload(messages.infer(folder.name, "", tensors(inputs), ()), partial(same_outputs, outputs))


def _predictions(messages: Messages, folder: Path, golden: Golden, rows: int) -> Iterator[Payload]:
    if not (folder / PROCESSING_FILE).exists():
        raise NoPayload(f"{folder} has no {PROCESSING_FILE}, so predict can't be asked")
    wanted = load_pipeline(folder).postprocess(golden.outputs)
    raw = read_raw(folder)
    for picked in _groups(min(len(raw), len(wanted)), rows):
        call = messages.predict(folder.name, "", [raw[index] for index in picked], 0)
        yield Payload(call, partial(_same_predictions, [wanted[index] for index in picked]))


def _groups(count: int, rows: int) -> Iterator[list[int]]:
    """For each golden row a request that begins with it, and goes on with those behind it, around the end."""
    for first in range(count):
        yield [(first + step) % count for step in range(rows)]


def take(arrays: Mapping[str, Array], picked: Sequence[int]) -> dict[str, Array]:
    """These rows of each array."""
    return {name: array[list(picked)] for name, array in arrays.items()}


def same_outputs(wanted: Mapping[str, Array], answer: Mapping[str, Array]) -> bool:
    """To within what batches of other sizes may differ by."""
    return set(answer) == set(wanted) and all(
        answer[name].shape == array.shape
        and (
            np.allclose(answer[name], array, _RTOL, _ATOL, equal_nan=True)
            if array.dtype.kind == "f"
            else bool((answer[name] == array).all())
        )
        for name, array in wanted.items()
    )


def _same_predictions(wanted: Sequence[Any], answer: PredictResponse) -> bool:
    return len(answer.predictions) == len(wanted) and all(map(_alike, wanted, answer.predictions))


def _alike(wanted: Any, given: Any) -> bool:
    """Whatever kind of prediction: the same fields, numbers to within a thousandth."""
    if isinstance(wanted, float | np.floating):
        return math.isclose(wanted, given, rel_tol=_RTOL, abs_tol=_RTOL)
    if is_dataclass(wanted):
        # Labels that are next to never right change places within top_k with the last digit of their scores.
        names = [one.name for one in fields(wanted) if one.name != "top_k"]
        return type(wanted) is type(given) and all(
            _alike(getattr(wanted, name), getattr(given, name)) for name in names
        )
    if isinstance(wanted, np.ndarray) or isinstance(given, np.ndarray):
        return np.shape(wanted) == np.shape(given) and np.allclose(wanted, given, _RTOL, _ATOL)
    if isinstance(wanted, Sequence) and not isinstance(wanted, str | bytes):
        return len(wanted) == len(given) and all(map(_alike, wanted, given))
    return bool(wanted == given)
