"""What was once asked, asked again: a file of one JSON object for each request, and what is right.

    {"at_s": 0.00, "golden": 3}                          a row of the model's golden files, or several: [3, 4]
    {"at_s": 0.02, "inputs": {"x": [[1, 2]]}, "outputs": {"y": [[3]]}}
    {"at_s": 0.04, "inputs": {"x": [[2]]}, "responses": [{"y": [[2]]}, {"y": [[3]]}]}                      of a stream
    {"at_s": 0.05, "input": {"age": 41}, "label": "yes"} of predict: a row, a text, or {"file": "cat.jpg"}

`at_s` says when it is due, in seconds from the start, ascending; only where the arrivals are `trace` it must be there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.slo.objectives import Kind
from loadtests.slo.streams import StreamPayload, streamed
from server.client.errors import ClientError
from server.client.inputs import raw_inputs, tensors
from server.errors import ServingError
from server.load.payloads import MESSAGES, NoPayload, Payload, newest_golden, payloads, same_outputs, take
from server.repository.model_config import ModelConfig, read_model_config
from server.tensor import DATATYPES, Array
from server.types import PredictResponse


@dataclass(frozen=True)
class Replay:
    payloads: list[Payload | StreamPayload]
    at_s: list[float]
    """Of each; empty where the file does not say."""


def read_replay(kind: Kind, path: Path, repository: Path) -> Replay:
    """Raises NoPayload that names the line."""
    reader = _Reader(kind, repository / kind.model, path.parent)
    made: list[Payload | StreamPayload] = []
    at_s: list[float] = []
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise NoPayload(f"{kind}: {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            one = json.loads(line)
            made.append(reader.payload(one))
            if "at_s" in one:
                at_s.append(float(one["at_s"]))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, ClientError) as error:
            raise NoPayload(f"{kind}: {path}, line {number}: {error!r}") from error
        except ServingError as error:
            raise NoPayload(f"{kind}: {path}, line {number}: {error.public_message}") from error
    if not made:
        raise NoPayload(f"{kind}: {path} has no request")
    if at_s and (len(at_s) != len(made) or at_s != sorted(at_s) or at_s[0] < 0):
        raise NoPayload(f"{kind}: {path}: at_s must be on every line or on none, ascending, from 0 on")
    return Replay(made, at_s)


class _Reader:
    def __init__(self, kind: Kind, folder: Path, beside: Path) -> None:
        self._kind = kind
        self._folder = folder
        self._beside = beside
        self._messages = MESSAGES[kind.transport]()
        self._config: ModelConfig | None = None
        self._golden: dict[int, list[Payload]] = {}

    def payload(self, one: Mapping[str, Any]) -> Payload | StreamPayload:
        if "golden" in one:
            return self._of_golden(one["golden"])
        if self._kind.call == "predict":
            return self._of_input(one)
        return self._of_tensors(one)

    def _of_golden(self, rows: int | list[int]) -> Payload | StreamPayload:
        picked = [rows] if isinstance(rows, int) else rows
        if self._kind.call == "predict":
            (row,) = picked  # Several raw inputs are several lines.
            return self._golden_of_one()[row]
        golden = newest_golden(self._folder)
        if golden is None:
            raise ValueError(f"{self._folder} has no golden file")
        inputs, outputs = take(golden.inputs, picked), take(golden.outputs, picked)
        if self._kind.call == "stream":
            return streamed(self._kind.model, inputs, [outputs])
        return Payload(self._messages.infer(self._kind.model, "", tensors(inputs), ()), partial(same_outputs, outputs))

    def _golden_of_one(self) -> list[Payload]:
        if 1 not in self._golden:
            kind = self._kind
            self._golden[1] = payloads(kind.transport, kind.call, kind.model, self._folder.parent)
        return self._golden[1]

    def _of_input(self, one: Mapping[str, Any]) -> Payload:
        given, label = one["input"], str(one["label"])
        file = given["file"] if isinstance(given, dict) and set(given) == {"file"} else None
        raw = raw_inputs(self._beside / file if file else given)
        return Payload(self._messages.predict(self._kind.model, "", raw, 0), partial(_labelled, label))

    def _of_tensors(self, one: Mapping[str, Any]) -> Payload | StreamPayload:
        inputs = self._arrays(one["inputs"], "inputs")
        if self._kind.call == "stream":
            return streamed(self._kind.model, inputs, [self._arrays(each, "outputs") for each in one["responses"]])
        right = partial(same_outputs, self._arrays(one["outputs"], "outputs"))
        return Payload(self._messages.infer(self._kind.model, "", tensors(inputs), ()), right)

    def _arrays(self, values: Mapping[str, Any], what: str) -> dict[str, Array]:
        """With the datatypes of the model's config."""
        if self._config is None:
            self._config = read_model_config(self._folder)
        specs = {spec.name: spec for spec in (self._config.inputs if what == "inputs" else self._config.outputs)}
        made = {}
        for name, value in values.items():
            if name not in specs:
                raise ValueError(f"the model has no {name!r} among its {what}")
            if specs[name].datatype == "BYTES":
                array = np.array(value, dtype=object)
                flat = [text.encode() for text in array.reshape(-1).tolist()]
                array.reshape(-1)[:] = flat
                made[name] = array
            else:
                made[name] = np.array(value, DATATYPES[specs[name].datatype].numpy)
        return made


def _labelled(label: str, answer: PredictResponse) -> bool:
    return [getattr(one, "label", None) for one in answer.predictions] == [label]
