"""Does the folder that was built write as the trained model does? If not, nothing is published."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from exporter.errors import VerifyError
from exporter.generation.config import GenerationConfig
from exporter.generation.measure import Logits, of_onnx, perplexity
from server.engine.base import EngineSpec
from server.engine.genai.engine import GenaiEngine
from server.engine.genai.folder import read_folder
from server.engine.genai.text import Text
from server.errors import ServingError
from server.repository.model_config import read_model_config
from server.tensor import Array

GOLDEN_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Certified:
    """The golden arrays, and what was measured."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    same_tokens: float
    """The part of the golden prompts whose tokens are those of transformers, to the last."""
    perplexity: float
    """Of the built model, on the held-out tokens."""


def certify(
    folder: Path, version: str, config: GenerationConfig, model: Any, prompts: Sequence[str], held_out: Array
) -> Certified:
    """Write to each golden prompt with the server's own engine, greedily, and hold it against transformers.

    Raises:
        VerifyError: in fp32 a token differs; at another precision the perplexity has grown by more than the
            configuration allows; the server's engine can't load the folder.
    """
    spec = read_model_config(folder).engine_spec(folder, version)
    sampling = {"max_tokens": GOLDEN_TOKENS, "temperature": 0}
    inputs = {
        "text_input": _strings(prompts),
        "sampling_parameters": _strings([orjson.dumps(sampling).decode()]),
        "exclude_input_in_output": np.array([True]),
    }
    same, texts = _write(spec, inputs, model, prompts)
    if config.precision == "fp32" and same < 1:
        raise VerifyError(f"of {len(prompts)} golden prompts {same:.0%} get the tokens that transformers gives them")
    built = perplexity(of_onnx(folder / version, read_folder(spec)), held_out, config.window)
    trained = perplexity(of_trained(model), held_out, config.window)
    if built > trained * (1 + config.most_worse):
        raise VerifyError(
            f"at {config.precision} the perplexity on held-out text is {built:.2f}, trained it was {trained:.2f}: "
            f"more than {config.most_worse:.0%} worse (--most-worse)"
        )
    return Certified(inputs, {"text_output": texts}, same, built)


def of_trained(model: Any) -> Logits:
    """As `measure.of_torch`, of a model in evaluation mode."""
    from exporter.generation.measure import of_torch

    return of_torch(model.eval())


def _write(spec: EngineSpec, inputs: dict[str, Array], model: Any, prompts: Sequence[str]) -> tuple[float, Array]:
    same, told = 0, []
    try:
        with closing(GenaiEngine(1).load(spec)) as loaded:
            [instance] = loaded.instances
            for index, prompt in enumerate(prompts):
                text = instance.prepare({**inputs, "text_input": inputs["text_input"][index : index + 1]}, {})
                tokens, written = _tokens(instance, text)
                same += tokens == _greedy(model, text, prompt)
                told.append(written)
    except ServingError as error:
        raise VerifyError(f"the server can't run what was built: {error}") from error
    return same / len(prompts), _strings(told)


def _tokens(instance: Any, text: Text) -> tuple[list[int], str]:
    """All that it writes, as tokens and as text."""
    tokens: list[int] = []
    told = ""
    instance.join(text)
    while instance.busy:
        step = instance.step()
        tokens += [one.last for one in step.wrote]
        for _, [output] in step.pieces:
            told += output.numpy()[0].decode()
    return tokens, told


def _greedy(model: Any, text: Text, prompt: str) -> list[int]:
    """Transformers' own."""
    ids = torch.tensor([list(text.prompt)])
    with torch.inference_mode():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=GOLDEN_TOKENS,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            eos_token_id=sorted(text.ends),
            pad_token_id=min(text.ends),
        )
    tokens: list[int] = found[0, len(text.prompt) :].tolist()
    return tokens


def _strings(values: Sequence[str]) -> Array:
    array = np.empty(len(values), object)
    array[:] = [value.encode() for value in values]
    return array
