"""The tiny model that writes text, as an engine's instance: random weights, made by onnxruntime-genai's builder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from server.engine.genai.engine import GenaiEngine
from server.engine.genai.instance import GenaiInstance
from server.engine.genai.text import Text
from server.repository.config_text import parse_text
from server.repository.model_config import from_message
from server.tensor import Tensor

FOLDER = Path(__file__).parents[1] / "golden" / "writer"
PROMPTS = (
    "The server",
    "A request that waits",
    "x",
    "Every model has a queue, and every queue has an end: what comes later than that is refused at once, " * 2,
    "Überall → 😀",
)


def elements(*values: object, dtype: Any = object) -> Any:
    array = np.empty(len(values), dtype)
    array[:] = values
    return array


def said(prompt: str, *, stream: bool = True, **sampling: object) -> dict[str, Any]:
    """The inputs of a request."""
    sampling = {"temperature": 0, "max_tokens": 20, **sampling}
    return {
        "text_input": elements(prompt.encode()),
        "stream": elements(stream, dtype=np.bool_),
        "exclude_input_in_output": elements(True, dtype=np.bool_),
        "sampling_parameters": elements(orjson.dumps(sampling)),
    }


def arrays(outputs: Sequence[Tensor]) -> Mapping[str, Any]:
    """Of a response."""
    return {tensor.name: tensor.numpy() for tensor in outputs}


@contextmanager
def loaded(**parameters: object) -> Iterator[GenaiInstance]:
    message = parse_text((FOLDER / "config.pbtxt").read_text(), "writer")
    for key, value in parameters.items():
        message.parameters[key].string_value = str(value)
    model = GenaiEngine().load(from_message(message, "writer").engine_spec(FOLDER, "1"))
    try:
        yield model.instances[0]
    finally:
        model.close()


class Written:
    """Texts that an instance writes: what was told of each."""

    def __init__(self, instance: GenaiInstance) -> None:
        self.instance = instance
        self.told: dict[Text, str] = {}

    def begin(self, inputs: Mapping[str, Any]) -> Text:
        text = self.instance.prepare(inputs, {})
        self.instance.join(text)
        self.told[text] = ""
        return text

    def step(self) -> None:
        step = self.instance.step()
        assert not step.failed
        for text, outputs in step.pieces:
            self.told[text] += arrays(outputs)["text_output"][0].decode()

    def finish(self) -> Sequence[str]:
        while self.instance.busy:
            self.step()
        return list(self.told.values())


def alone(instance: GenaiInstance, inputs: Mapping[str, Any]) -> str:
    written = Written(instance)
    written.begin(inputs)
    return written.finish()[0]
