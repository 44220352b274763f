"""A version's folder as onnxruntime-genai's model builder writes it: genai_config.json, model.onnx, tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from server.engine.base import EngineSpec
from server.errors import ModelLoadFailed

CONFIG = "genai_config.json"
TOKENIZER = "tokenizer.json"
_LARGEST_CONFIG = 1_000_000


@dataclass(frozen=True, slots=True)
class GenaiConfig:
    """What is read of genai_config.json. Sampling options in its section ``search`` are defaults of that library's own
    callers, and not read: here each request says its own."""

    filename: str
    context_length: int
    vocab_size: int
    end_tokens: tuple[int, ...]
    layers: int
    kv_heads: int
    head_size: int
    inputs: Mapping[str, str]
    """The model's own names: ``input_ids``, ``attention_mask``, ``past_key_names`` with ``%d`` for the layer, and maybe
    ``position_ids``."""
    outputs: Mapping[str, str]


_INPUTS = {"input_ids", "attention_mask", "position_ids", "past_key_names", "past_value_names"}
_OUTPUTS = {"logits", "present_key_names", "present_value_names"}


def read_folder(spec: EngineSpec) -> GenaiConfig:
    """Of the version that `spec` names. Raises ModelLoadFailed: a file is missing, or says what can't be served."""

    def refuse(where: str, problem: str) -> ModelLoadFailed:
        return ModelLoadFailed(spec.model_name, f"{spec.model_version}/{spec.path.name}: {where}", problem)

    for path in (spec.path, spec.path.parent / TOKENIZER):
        if not path.is_file():
            raise ModelLoadFailed(spec.model_name, f"{spec.model_version}/{path.name}", "there is no such file")
    document = _document(spec.path, refuse)
    try:
        model = document["model"]
        decoder = model["decoder"]
        ends = model["eos_token_id"]
        config = GenaiConfig(
            filename=str(decoder["filename"]),
            context_length=int(model["context_length"]),
            vocab_size=int(model["vocab_size"]),
            end_tokens=tuple(ends) if isinstance(ends, list) else (int(ends),),
            layers=int(decoder["num_hidden_layers"]),
            kv_heads=int(decoder["num_key_value_heads"]),
            head_size=int(decoder["head_size"]),
            inputs=dict(decoder["inputs"]),
            outputs=dict(decoder["outputs"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise refuse("model", f"is not what onnxruntime-genai's builder writes: {error!r}") from error
    _check(config, document, refuse)
    if not (spec.path.parent / config.filename).is_file():
        raise ModelLoadFailed(spec.model_name, f"{spec.model_version}/{config.filename}", "there is no such file")
    return config


def _document(path: Path, refuse: Any) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST_CONFIG:
        raise refuse("", f"has more than {_LARGEST_CONFIG} bytes")
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise refuse("", f"is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise refuse("", "must be an object")
    return document


def _check(config: GenaiConfig, document: Mapping[str, Any], refuse: Any) -> None:
    if "dynamic_batching" in document.get("engine", {}):
        problem = "pages its cache by PagedAttention, which runs on CUDA only; build it without use_paged_attention"
        raise refuse("engine.dynamic_batching", problem)
    for where, names, known in (("inputs", config.inputs, _INPUTS), ("outputs", config.outputs, _OUTPUTS)):
        if strange := sorted(set(names) - known):
            problem = f"are not fed here; only models of text with a cache of keys and values are served: {strange}"
            raise refuse(f"model.decoder.{where}", problem)
        if missing := sorted(known - set(names) - {"position_ids"}):
            raise refuse(f"model.decoder.{where}", f"must name {', '.join(missing)}")
    if Path(config.filename).name != config.filename:
        raise refuse("model.decoder.filename", "must be a file beside it")
    least = min(config.context_length, config.vocab_size, config.layers, config.kv_heads, config.head_size)
    if least < 1 or not all(0 <= token < config.vocab_size for token in config.end_tokens):
        raise refuse("model", "has a size below 1, or an end token that is not in its vocabulary")
