"""Texts to token ids: the one transform that training and serving both run.

Shapes: B texts, T tokens of the longest of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from server.errors import InvalidRequest, ModelLoadFailed, PayloadTooLarge
from server.pipeline.base import PROCESSING_FILE
from server.pipeline.text_spec import TokensSpec
from server.tensor import Array
from server.types import RawInput, TextInput

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_UNHEARD_OF = "z\u0d9e \U0001f9ff\ue000"
"""Characters of which hardly a vocabulary has all: a tokenizer that knows no token for the unknown fails on them."""


class TextEncoder:
    """A tokenizer under a spec. Immutable; may be called from several threads at once."""

    def __init__(self, spec: TokensSpec, tokenizer: Tokenizer) -> None:
        """`tokenizer` is taken over: its truncation and padding become the spec's."""
        self.spec = spec
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        if spec.truncation == "cut":
            tokenizer.enable_truncation(spec.max_length)
        else:
            tokenizer.no_truncation()

    @classmethod
    def from_folder(cls, spec: TokensSpec, folder: Path) -> TextEncoder:
        """Raises ModelLoadFailed: `tokenizers` is not installed, or the file is no tokenizer that fits the spec."""
        return cls.checked(spec, read_tokenizer(folder / spec.tokenizer), folder.name)

    @classmethod
    def checked(cls, spec: TokensSpec, tokenizer: Tokenizer, model_name: str) -> TextEncoder:
        """Raises ModelLoadFailed: the tokenizer does not fit the spec."""
        if spec.pad_id >= tokenizer.get_vocab_size():
            problem = f"{spec.pad_id} is no token: {spec.tokenizer} has {tokenizer.get_vocab_size()}"
            raise ModelLoadFailed(model_name, f"{PROCESSING_FILE}: tokens.pad_id", problem)
        special = tokenizer.num_special_tokens_to_add(False) if spec.special_tokens else 0
        if spec.max_length <= special:
            problem = f"{spec.max_length} leaves no token for the text beside {special} special ones"
            raise ModelLoadFailed(model_name, f"{PROCESSING_FILE}: tokens.max_length", problem)
        try:
            tokenizer.encode_batch([_UNHEARD_OF])
        except Exception as error:  # tokenizers raises `Exception` itself
            raise ModelLoadFailed(model_name, spec.tokenizer, f"can't read every text: {error}") from error
        return cls(spec, tokenizer)

    def preprocess(self, inputs: Sequence[RawInput]) -> dict[str, Array]:
        """INT64 tensors [B, T] by the names of the spec.

        Raises:
            InvalidRequest: an input is no text, is shorter than the spec's minimum, has no token, or, where the spec
                does not cut, more tokens than the model takes.
            PayloadTooLarge: a text has more characters than the spec allows.
        """
        return self.tensors(self.encode([self._text(f"inputs[{index}]", raw) for index, raw in enumerate(inputs)]))

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The tokens of checked texts. Raises InvalidRequest, see `preprocess`."""
        spec = self.spec
        if spec.prefix:
            texts = [spec.prefix + text for text in texts]
        try:
            # A batch even of one text: unlike `encode` it releases the interpreter's lock.
            found = self._tokenizer.encode_batch(texts, add_special_tokens=spec.special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            index = next((i for i, text in enumerate(texts) if not _encodable(text)), 0)
            raise InvalidRequest(f"inputs[{index}]", "holds half of a surrogate pair, which is no character") from error
        except Exception as error:  # tokenizers raises `Exception` itself
            index = next((i for i, text in enumerate(texts) if not self._reads(text)), 0)
            raise InvalidRequest(f"inputs[{index}]", f"the model's tokenizer can't read it: {error}") from error
        for index, encoding in enumerate(found):
            if not len(encoding):
                raise InvalidRequest(f"inputs[{index}]", "has no token: there is nothing in it that the model reads")
            if len(encoding) > spec.max_length:
                problem = f"has {len(encoding)} tokens, the model takes {spec.max_length} and this one does not cut"
                raise InvalidRequest(f"inputs[{index}]", problem)
        return found

    def tensors(self, encodings: Sequence[Encoding]) -> dict[str, Array]:
        """Encoded texts as the model's inputs, shorter ones filled up at their end."""
        return self.padded([encoding.ids for encoding in encodings])

    def padded(self, ids: Sequence[Sequence[int]]) -> dict[str, Array]:
        """Ids as the model's inputs."""
        spec = self.spec
        shape = (len(ids), max((len(row) for row in ids), default=0))
        filled, mask = np.full(shape, spec.pad_id, np.int64), np.zeros(shape, np.int64)
        for index, row in enumerate(ids):
            filled[index, : len(row)] = row
            mask[index, : len(row)] = 1
        tensors = {spec.input_ids: filled}
        if spec.attention_mask is not None:
            tensors[spec.attention_mask] = mask
        if spec.token_type_ids is not None:
            tensors[spec.token_type_ids] = np.zeros(shape, np.int64)
        return tensors

    def describe(self) -> Mapping[str, object]:
        """What a text may be, as plain JSON values."""
        spec = self.spec
        return {
            "kind": "text",
            "min_characters": spec.min_characters,
            "max_characters": spec.max_characters,
            "max_tokens": spec.max_length,
            "truncation": spec.truncation,
        }

    def _reads(self, text: str) -> bool:
        try:
            self._tokenizer.encode_batch([text])
        except Exception:  # noqa: BLE001 - tokenizers raises `Exception` itself
            return False
        return True

    def _text(self, field: str, raw: RawInput) -> str:
        if not isinstance(raw, TextInput):
            kind = type(raw).__name__.removesuffix("Input").lower()
            raise InvalidRequest(field, f"the model takes texts, not an input of kind {kind}")
        text, spec = raw.text, self.spec
        if len(text) > spec.max_characters:
            raise PayloadTooLarge(field, spec.max_characters, len(text), "characters")
        if len(text.strip()) < spec.min_characters:
            told = "is empty" if not text.strip() else f"has {len(text.strip())} characters"
            raise InvalidRequest(field, f"{told}, the model takes texts of {spec.min_characters} or more")
        return text


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json. Raises ModelLoadFailed: the package or the file is missing, or the file is damaged."""
    # Its own threads would take the cores from the engine's; the pipeline has threads already.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    model_name = path.parent.name
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        problem = "the model takes text: install the package tokenizers (pip install 'forwardpass[text]')"
        raise ModelLoadFailed(model_name, path.name, problem) from error
    try:
        return Tokenizer.from_buffer(path.read_bytes())
    except OSError as error:
        raise ModelLoadFailed(model_name, path.name, f"can't be read: {error.strerror}") from error
    except Exception as error:  # tokenizers raises `Exception` itself, with serde's words
        raise ModelLoadFailed(model_name, path.name, f"is no tokenizer: {error}") from error


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
