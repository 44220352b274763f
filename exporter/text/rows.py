"""Labelled texts as a training set: split, tokenised by the serving code, batched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from exporter.data import labels
from exporter.data.split import Indices, stratified
from exporter.data.texts import LabelledText
from exporter.errors import DataError
from exporter.recipes.base import Arrays, Split
from server.errors import InvalidRequest, ModelLoadFailed
from server.pipeline.text_spec import TokensSpec
from server.pipeline.tokens import TextEncoder
from server.tensor import Array

PAD, BEGIN = "[PAD]", "[CLS]"
_LEAST_VOCABULARY = 300
"""The 256 bytes, the special tokens, and some pairs."""
_FIRST_BUCKET = 16


class TextRows:
    """Texts, their targets (indices of `labels`), and which split each is in."""

    def __init__(self, kept: Sequence[LabelledText], seed: int) -> None:
        """Raises DataError: fewer than 2 labels, or too few texts of one. `notes`: on labels that are rare."""
        self.texts = [item.text for item in kept]
        self._where = [item.where for item in kept]
        self.labels = tuple(sorted({item.label for item in kept}))
        number = {label: index for index, label in enumerate(self.labels)}
        self.targets = np.array([number[item.label] for item in kept], dtype=np.int64)
        self.notes = labels.check("the column 'label'", self.labels, self.targets)
        self.splits: Mapping[Split, Indices] = stratified(self.targets, seed)

    def encode(self, tokens: TokensSpec, tokenizer_json: bytes) -> None:
        """Tokenise all texts as serving will, once. Raises DataError: the tokenizer can't be used, or not on a text."""
        try:
            tokenizer = Tokenizer.from_buffer(tokenizer_json)
        except ValueError as error:
            raise DataError(f"{tokens.tokenizer} is no tokenizer: {error}") from error
        self.vocabulary = tokenizer.get_vocab_size()
        try:
            self._encoder = TextEncoder.checked(tokens, tokenizer, "")
            encodings = self._encoder.encode(self.texts)
        except ModelLoadFailed as error:
            raise DataError(f"{error.where}: {error.problem}") from error
        except InvalidRequest as error:
            row = int(error.field.removeprefix("inputs[").removesuffix("]"))
            raise DataError(f"{self._where[row]}: {error.problem}") from error
        self._ids = [encoding.ids for encoding in encodings]
        self.cut = np.array([bool(encoding.overflowing) for encoding in encodings])

    def batch(self, indices: Indices) -> tuple[Arrays, Array]:
        """The tensors of some texts, padded to the longest of them, and their targets."""
        return self._encoder.padded([self._ids[index] for index in indices]), self.targets[indices]

    def length(self, index: int) -> int:
        """Tokens of a text."""
        return len(self._ids[index])

    def of(self, split: Split) -> tuple[list[str], Array]:
        """The texts of a split with their targets."""
        return [self.texts[index] for index in self.splits[split]], self.targets[self.splits[split]]

    def counts(self) -> Mapping[Split, Mapping[str, int]]:
        """Texts of each label in each split."""
        found = {split: Counter(self.labels[target] for target in self.of(split)[1]) for split in Split}
        return {split: dict(sorted(counter.items())) for split, counter in found.items()}

    def bucket_parameters(self) -> Mapping[str, str]:
        """See `bucket_parameters`."""
        return bucket_parameters(self._encoder.spec)


def bucket_parameters(tokens: TokensSpec) -> Mapping[str, str]:
    """`parameters` of config.pbtxt: length buckets, each twice as long as the one before, and what fills rows up."""
    lengths = []
    length = _FIRST_BUCKET
    while length < tokens.max_length:
        lengths.append(length)
        length *= 2
    told = {"length_buckets": ",".join(str(each) for each in (*lengths, tokens.max_length))}
    return told | ({"pad_value": f"{tokens.input_ids}={tokens.pad_id}"} if tokens.pad_id else {})


def lengths_cut(rows: TextRows, split: Split) -> int:
    """How many texts of a split have more tokens than the model sees."""
    return int(rows.cut[rows.splits[split]].sum())


def scratch_tokenizer(texts: Sequence[str], vocabulary: int) -> bytes:
    """A tokenizer.json trained on texts: pairs of bytes (no text is unknown to it), lower case. The same texts give
    the same bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocabulary, _LEAST_VOCABULARY),
        special_tokens=[PAD, BEGIN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return str(tokenizer.to_str()).encode()
