"""What a config.pbtxt says of a model that writes text: its tensors, its ``parameters``, and their limits. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.engine.base import EngineSpec
from server.engine.genai.folder import GenaiConfig
from server.engine.genai.text import CUMULATIVE, FINISH, LOGPROBS, PROMPT_TOKENS, TEXT, TOKENS
from server.errors import ModelLoadFailed
from server.tensor import TensorSpec

CONFIG_FILE = "config.pbtxt"
PROMPT = "text_input"
SAMPLING = "sampling_parameters"
STREAM = "stream"
EXCLUDE = "exclude_input_in_output"
RETURNS: Mapping[str, str] = {
    "return_finish_reason": FINISH,
    "return_cumulative_logprob": CUMULATIVE,
    "return_logprobs": LOGPROBS,
    "return_num_input_tokens": PROMPT_TOKENS,
    "return_num_output_tokens": TOKENS,
}
"""Inputs that ask for an output. All names here are those of Triton's vLLM backend."""
INPUTS: Mapping[str, str] = {
    PROMPT: "BYTES",
    STREAM: "BOOL",
    SAMPLING: "BYTES",
    EXCLUDE: "BOOL",
    **dict.fromkeys(RETURNS, "BOOL"),
}
OUTPUTS: Mapping[str, str] = {
    TEXT: "BYTES",
    FINISH: "BYTES",
    CUMULATIVE: "FP32",
    LOGPROBS: "BYTES",
    PROMPT_TOKENS: "UINT32",
    TOKENS: "UINT32",
}


@dataclass(frozen=True, slots=True)
class Options:
    """``parameters`` of config.pbtxt."""

    threads: int
    """0: as the server says."""
    rows: int
    """Texts that are written at the same time."""
    context: int
    """Tokens of a prompt and its text together."""
    kv_tokens: int
    """Tokens of all texts together."""
    chunk: int
    """Tokens of prompts that are taken in by one step."""


_DEFAULT_ROWS = 16
_DEFAULT_CHUNK = 64
_PARAMETERS = ("intra_op_thread_count", "max_num_seqs", "max_model_len", "kv_cache_tokens", "prefill_chunk_tokens")


def check_spec(spec: EngineSpec) -> None:
    """Raises ModelLoadFailed: names the field of config.pbtxt, and what it must be."""

    if not spec.decoupled:
        raise _refused(
            spec, "model_transaction_policy.decoupled", "must be true: a text comes in any number of responses"
        )
    if spec.max_batch_size:
        problem = 'must be 0: a request is one prompt; parameters["max_num_seqs"] says how many run'
        raise _refused(spec, "max_batch_size", problem)
    _check_tensors(spec, "input", spec.inputs, INPUTS, PROMPT)
    _check_tensors(spec, "output", spec.outputs, OUTPUTS, TEXT)
    for index, group in enumerate(spec.instance_groups):
        if group.kind == "KIND_GPU":
            problem = "KIND_GPU: text is written on the CPU here; use Triton with vLLM"
            raise _refused(spec, f"instance_group[{index}].kind", problem)
        if group.count != 1 or index:
            raise _refused(
                spec, f"instance_group[{index}].count", "must be 1 in all: one instance writes many texts at once"
            )
    if spec.gpu_accelerators or spec.cpu_accelerators:
        raise _refused(spec, "optimization.execution_accelerators", "is not honoured by this backend")
    if spec.graph_level:
        raise _refused(spec, "optimization.graph.level", "is not honoured by this backend")


def _check_tensors(
    spec: EngineSpec, side: str, tensors: Sequence[TensorSpec], known: Mapping[str, str], needed: str
) -> None:
    for index, tensor in enumerate(tensors):
        if known.get(tensor.name) != tensor.datatype:
            told = ", ".join(f"{name} ({datatype})" for name, datatype in known.items())
            raise _refused(spec, f"{side}[{index}]", f"is {tensor.name} ({tensor.datatype}); there may be {told}")
        if tensor.dims not in ((1,), (-1,)):
            raise _refused(spec, f"{side}[{index}].dims", f"is {list(tensor.dims)}, it must be [ 1 ] or [ -1 ]")
        if side == "input" and tensor.name != PROMPT and not tensor.optional:
            raise _refused(spec, f"{side}[{index}].optional", f"must be true for {tensor.name}")
    if needed not in {tensor.name for tensor in tensors}:
        raise _refused(spec, side, f"must have {needed}")


def _refused(spec: EngineSpec, path: str, problem: str) -> ModelLoadFailed:
    return ModelLoadFailed(spec.model_name, f"{CONFIG_FILE}: {path}", problem)


def read_options(spec: EngineSpec, config: GenaiConfig) -> Options:
    """Raises ModelLoadFailed: a parameter is not known, or out of its range."""
    for key in spec.parameters:
        if key not in _PARAMETERS:
            raise _refused(spec, f'parameters["{key}"]', f"is not honoured; there may be {', '.join(_PARAMETERS)}")
    rows = _whole(spec, "max_num_seqs", _DEFAULT_ROWS, 1, 1024)
    context = _whole(spec, "max_model_len", config.context_length, 2, config.context_length)
    return Options(
        threads=_whole(spec, "intra_op_thread_count", 0, 0, 1024),
        rows=rows,
        context=context,
        kv_tokens=_whole(spec, "kv_cache_tokens", rows * context, context, rows * context),
        chunk=_whole(spec, "prefill_chunk_tokens", _DEFAULT_CHUNK, 1, 65536),
    )


def _whole(spec: EngineSpec, key: str, default: int, low: int, high: int) -> int:
    text = spec.parameters.get(key)
    if text is None:
        return default
    if not text.strip().isdecimal() or not low <= int(text) <= high:
        problem = f"is '{text[:40]}', it must be a whole number from {low} to {high}"
        raise _refused(spec, f'parameters["{key}"]', problem)
    return int(text)
