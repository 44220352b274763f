"""A causal language model as the training loop of `exporter.run` takes it: windows of tokens in, the next ones out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from exporter.errors import UsageError
from exporter.generation.config import GenerationConfig
from exporter.generation.corpus import Corpus
from exporter.recipes.base import Arrays, Split
from server.tensor import Array, TensorSpec

END, START = "<|end|>", "<|start|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ bos_token }}{{ message['role'] }}\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
)
_LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Causal(nn.Module):
    """A model of transformers, with its logits alone as the output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


class GenerationTask:
    """What `exporter.run.train` asks a task for."""

    inputs = (TensorSpec("tokens", "INT64", (-1,)),)
    outputs = (TensorSpec("logits", "FP32", (-1, -1)),)

    def __init__(self, config: GenerationConfig, corpus: Corpus) -> None:
        """Raises UsageError: sizes that don't fit each other, a base that can't be read."""
        self.config = config
        self.tokenizer = _loaded_tokenizer(config.base) if config.base else _trained_tokenizer(config, corpus)
        self.tokens: Mapping[Split, Array] = {
            split: self._encoded(passages) for split, passages in corpus.passages.items()
        }
        short = [split.value for split, tokens in self.tokens.items() if len(tokens) <= config.window]
        if short:
            raise UsageError(f"the texts of {', '.join(short)} have no {config.window + 1} tokens: lower --window")

    def _encoded(self, passages: Sequence[str]) -> Array:
        end = self.tokenizer.eos_token_id
        return np.array([token for text in passages for token in [*self.tokenizer(text)["input_ids"], end]], np.int64)

    def size(self, split: Split) -> int:
        return (len(self.tokens[split]) - 1) // self.config.window

    def batch(self, split: Split, rows: Array, epoch: int) -> tuple[Arrays, Array]:
        """Windows and, one token further, their targets. In training they begin elsewhere in each epoch."""
        window, tokens = self.config.window, self.tokens[split]
        spare = len(tokens) - 1 - self.size(split) * window
        shift = int(np.random.default_rng([self.config.seed, epoch]).integers(spare + 1)) if split is Split.TRAIN else 0
        places = shift + np.asarray(rows)[:, None] * window + np.arange(window)
        return {"tokens": tokens[places]}, tokens[places + 1]

    def network(self) -> nn.Module:
        config = self.config
        if not config.base:
            return Causal(_new(config, self.tokenizer))
        model = _base(config.base)
        if config.lora_rank:
            from peft import LoraConfig, get_peft_model

            lora = LoraConfig(
                r=config.lora_rank,
                lora_alpha=2 * config.lora_rank,
                target_modules=list(_LORA_TARGETS),
                task_type="CAUSAL_LM",
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft's own use of transformers
                try:
                    model = get_peft_model(model, lora)
                except ValueError as error:
                    names = ", ".join(_LORA_TARGETS)
                    raise UsageError(f"--lora-rank: {config.base} has no layers {names}: leave it out") from error
        # As transformers reads a model it is in evaluation mode.
        return Causal(model).train()

    def loss(self, outputs: Sequence[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        [logits] = outputs
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def merged(network: nn.Module) -> Any:
    """The trained model as transformers has it, with what was trained beside its weights added to them."""
    assert isinstance(network, Causal)
    model: Any = network.model
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _trained_tokenizer(config: GenerationConfig, corpus: Corpus) -> Any:
    """Byte-level pairs, learned from the train split alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.sizes.vocabulary,
        special_tokens=[END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus.passages[Split.TRAIN], trainer)
    made: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def _loaded_tokenizer(base: str) -> Any:
    from transformers import AutoTokenizer

    if not Path(base).is_dir():
        raise UsageError(f"--base {base}: there is no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    except Exception as error:  # transformers' exceptions have no common class of their own
        raise UsageError(f"--base {base} has no tokenizer that can be read: {error}") from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"--base {base}: its tokenizer has no token that ends a text")
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _base(base: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(base, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # as above
        raise UsageError(f"--base {base} is no causal model that can be read: {error}") from error


def _new(config: GenerationConfig, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = config.sizes
    if sizes.width % sizes.heads or sizes.heads % sizes.kv_heads or sizes.width // sizes.heads % 8:
        raise UsageError("--width must be a multiple of 8 times --heads, and --heads one of --kv-heads")
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.width,
            intermediate_size=sizes.width * 8 // 3 // 16 * 16,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            max_position_embeddings=sizes.context,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
