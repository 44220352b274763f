"""How a model that writes text is asked over v2: the inputs and outputs of Triton's backends for it.

vLLM's backend takes its options as one object of JSON, ``sampling_parameters``; the embedded engine does the same.
TensorRT-LLM's takes each as a tensor of its own. Which one a model has is told by its inputs.
Source: triton-inference-server/vllm_backend, tensorrtllm_backend (all_models/inflight_batcher_llm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from server.errors import InvalidRequest, Unsupported
from server.tensor import DATATYPES, Tensor, TensorSpec
from server.types import InferResponse, ModelMetadata

PROMPT, TEXT = "text_input", "text_output"
_SAMPLING = "sampling_parameters"
_EMBEDDED = "onnxruntime-genai"
_FLAGS = {
    "return_finish_reason": "finish_reason",
    "return_num_input_tokens": "num_input_tokens",
    "return_num_output_tokens": "num_output_tokens",
}
_TENSORRT_LLM = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "min_tokens": "min_tokens",
    "stop": "stop_words",
    "seed": "random_seed",
}
"""Options by their names here: the names of the inputs."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one response tells. `finish` is empty while the text goes on, or where the model does not tell."""

    text: str
    finish: str
    prompt_tokens: int | None
    tokens: int | None
    logprobs: Sequence[Mapping[str, Mapping[str, Any]]]


class Dialect:
    """Of one model."""

    def __init__(self, metadata: ModelMetadata) -> None:
        """Raises Unsupported: it writes no text."""
        self._inputs = {spec.name: spec for spec in metadata.inputs}
        if not writes_text(metadata):
            raise Unsupported("model", f"'{metadata.name}' writes no text: it takes {', '.join(self._inputs)}")
        self._by_tensors = _SAMPLING not in self._inputs
        self._embedded = metadata.platform == _EMBEDDED

    def ask(
        self, prompt: str, sampling: Mapping[str, Any], *, stream: bool, logprobs: int | None, templated: bool
    ) -> list[Tensor]:
        """The tensors of a request. `templated`: the prompt has its special tokens already.

        Raises:
            Unsupported: the model has no input for what is asked.
            InvalidRequest: a value is none of its input's datatype.
        """
        values: dict[str, Any] = {PROMPT: [prompt.encode()], "stream": [stream]}
        if not stream:
            values["exclude_input_in_output"] = [True]
        if self._by_tensors:
            values |= self._options(sampling)
        else:
            said = {**sampling, **({"logprobs": logprobs} if logprobs is not None else {})}
            if templated and self._embedded:
                said["add_special_tokens"] = False
            values[_SAMPLING] = [orjson.dumps(said)]
        if logprobs is not None:
            if "return_logprobs" not in self._inputs:
                raise Unsupported("logprobs", "the model tells none")
            values["return_logprobs"] = [True]
        values |= {name: [True] for name in _FLAGS}
        return [_tensor(self._inputs[name], value) for name, value in values.items() if name in self._inputs]

    def _options(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for option, value in sampling.items():
            if value is None:
                continue
            name = _TENSORRT_LLM.get(option, "")
            if name not in self._inputs:
                raise Unsupported(option, "the model has no input for it")
            if option == "stop":
                stops = [value] if isinstance(value, str) else value
                if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
                    raise InvalidRequest("stop", "must be a string or a list of them")
                values[name] = [stop.encode() for stop in stops]
            else:
                values[name] = [value]
        return values

    def read(self, response: InferResponse) -> Piece:
        """Of a response with outputs."""
        told = {tensor.name: tensor.numpy().reshape(-1) for tensor in response.outputs}
        logprobs: list[Mapping[str, Mapping[str, Any]]] = []
        for document in told.get("logprobs", ()):
            logprobs += orjson.loads(document) or []
        return Piece(
            "".join([text.decode(errors="replace") for text in told.get(TEXT, ())]),
            _finish(list(told.get("finish_reason", ()))),
            _count(told.get("num_input_tokens")),
            _count(told.get("num_output_tokens")),
            logprobs,
        )


def writes_text(metadata: ModelMetadata) -> bool:
    """It has the inputs and outputs of a model that writes text."""
    inputs = {spec.name for spec in metadata.inputs}
    return PROMPT in inputs and bool({_SAMPLING, "max_tokens"} & inputs) and TEXT in {s.name for s in metadata.outputs}


def _finish(reasons: Sequence[bytes]) -> str:
    """vLLM's backend tells ``None`` while a text goes on."""
    told = reasons[-1].decode() if len(reasons) else ""
    return "" if told == "None" else told


def _count(values: Any) -> int | None:
    return None if values is None else int(values.sum())


def _tensor(spec: TensorSpec, values: Sequence[Any]) -> Tensor:
    """All sizes are 1 but the last, which is as long as it must be."""
    shape = (*(1,) * (len(spec.dims) - 1), len(values))
    if spec.datatype == "BYTES":
        array = np.empty(len(values), object)
        array[:] = values
    else:
        try:
            array = np.asarray(values, DATATYPES[spec.datatype].numpy)
        except (ValueError, TypeError, OverflowError):
            raise InvalidRequest(spec.name, f"must be a {spec.datatype}") from None
    return Tensor.from_numpy(spec.name, array.reshape(shape))
