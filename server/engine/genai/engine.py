"""The engine of models that write text: folders of onnxruntime-genai's model builder, run by ONNX Runtime on the CPU.

onnxruntime-genai's own Engine batches continuously on CUDA and WebGPU alone (its PagedAttention); on a CPU it takes in
nobody before its batch is over, has no seed for a text and tells no probabilities. So its builder's models are run here
by passes of our own, and the library itself is not needed to serve.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from server.engine.base import EngineSpec
from server.engine.cores import available_cores
from server.engine.genai.cache import KvCache
from server.engine.genai.folder import TOKENIZER, GenaiConfig, read_folder
from server.engine.genai.forward import Forward
from server.engine.genai.graph import with_chosen_logits
from server.engine.genai.instance import GenaiInstance
from server.engine.genai.options import Options, check_spec, read_options
from server.engine.genai.writer import Writer
from server.errors import ModelLoadFailed

log = logging.getLogger(__name__)

_SILENT = 4
_KV_TYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


class GenaiEngine:
    """`threads` of one pass where a config sets none; 0: the available cores.

    Raises ImportError with what to install where there is no ONNX Runtime, or no tokenizers.
    """

    def __init__(self, threads: int = 0) -> None:
        try:
            self._ort: Any = importlib.import_module("onnxruntime")
            self._tokenizers: Any = importlib.import_module("tokenizers")
        except ImportError as error:
            raise ImportError("models that write text need more: install forwardpass[genai]") from error
        self._threads = threads or available_cores()

    @property
    def name(self) -> str:
        return "onnxruntime-genai"

    def load(self, spec: EngineSpec) -> GenaiModel:
        """Load one version and write a word with it.

        Raises:
            ModelLoadFailed: see `server.engine.base.Engine.load`.
        """
        check_spec(spec)
        config = read_folder(spec)
        options = read_options(spec, config)
        where = f"{spec.model_version}/{TOKENIZER}"
        try:
            tokenizer = self._tokenizers.Tokenizer.from_file(str(spec.path.parent / TOKENIZER))
            tokenizer.no_truncation()
            tokenizer.no_padding()
        except Exception as error:
            raise ModelLoadFailed(spec.model_name, where, f"is no tokenizer: {error}") from error
        if tokenizer.get_vocab_size() > config.vocab_size:
            problem = f"has {tokenizer.get_vocab_size()} tokens, the model {config.vocab_size}"
            raise ModelLoadFailed(spec.model_name, where, problem)
        instance = self._instance(spec, config, options, tokenizer)
        try:
            instance.warm_up()
        except Exception as error:
            instance.close()
            problem = f"can't be run: {error}"
            raise ModelLoadFailed(spec.model_name, f"{spec.model_version}/{config.filename}", problem) from error
        return GenaiModel(instance)

    def _instance(self, spec: EngineSpec, config: GenaiConfig, options: Options, tokenizer: Any) -> GenaiInstance:
        threads = options.threads or self._threads
        session = self._session(spec, config, threads)
        cached = {node.name: node.type for node in session.get_inputs()}
        first = config.inputs["past_key_names"] % 0
        logits = {node.name: node.type for node in session.get_outputs()}.get(config.outputs["logits"], "")
        for name, kind in ((first, cached.get(first, "")), (config.outputs["logits"], logits)):
            if kind not in _KV_TYPES:
                problem = f"'{name}' is '{kind or 'not there'}', it must be one of {', '.join(_KV_TYPES)}"
                raise ModelLoadFailed(spec.model_name, f"{spec.model_version}/{config.filename}", problem)
        cache = KvCache(
            config.layers,
            options.rows,
            config.kv_heads,
            options.context,
            config.head_size,
            _KV_TYPES[cached[first]],
        )
        forward = Forward(session, config, cache, _KV_TYPES[logits])
        writer = Writer(forward, cache, options.chunk)
        return GenaiInstance(spec, config, options, tokenizer, forward, cache, writer, threads)

    def _session(self, spec: EngineSpec, config: GenaiConfig, threads: int) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Lengths differ with every pass: a plan of memory for each would never be used again.
        options.enable_mem_pattern = False
        path = spec.path.parent / config.filename
        # Weights beside the file are not found by what was changed.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        where = f"{spec.model_version}/{path.name}"
        try:
            model = with_chosen_logits(path.read_bytes(), config.outputs["logits"])
        except ValueError as error:
            raise ModelLoadFailed(spec.model_name, where, f"can't be served: {error}") from error
        try:
            return self._ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except Exception as error:
            problem = str(error).replace(f"{path.parent}/", "")
            problem = f"is no model that ONNX Runtime can load on a CPU: {problem}"
            raise ModelLoadFailed(spec.model_name, where, problem) from error


class GenaiModel:
    """One instance, which writes many texts at once."""

    def __init__(self, instance: GenaiInstance) -> None:
        self._instance = instance

    @property
    def instances(self) -> Sequence[GenaiInstance]:
        return [self._instance]

    def close(self) -> None:
        self._instance.close()
