"""What `processing.yaml` says of models that read text."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from server.pipeline.classification import ClassificationSpec, SpecModel

TensorName = Annotated[str, Field(min_length=1)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")]
MOST_TOKENS = 8192


class TokensSpec(SpecModel):
    """From a text to its tokens: INT64 tensors [B, T], T the tokens of the longest text of a request."""

    tokenizer: FileName = "tokenizer.json"
    """The file of the tokenizer (Hugging Face's `tokenizers`) in the model's folder. Its own truncation and padding are
    left aside: what stands here holds."""
    max_length: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    """Tokens that the model sees at most, the special ones included."""
    truncation: Literal["cut", "refuse"] = "cut"
    """cut: what is over `max_length` at the text's end is not seen. refuse: such a text is refused."""
    min_characters: Annotated[int, Field(ge=0)] = 1
    """A text of fewer, the blanks around it not counted, is refused."""
    max_characters: Annotated[int, Field(ge=1)] = 20_000
    """A longer text is refused before it is looked at."""
    prefix: str = ""
    """Put before each text, for encoders that were trained with one: ``"query: "``."""
    special_tokens: bool = True
    """Whether those that the tokenizer puts around a text are put there."""
    pad_id: Annotated[int, Field(ge=0)] = 0
    """What the ids of shorter texts are filled up with, at the end; the mask is 0 there."""
    input_ids: TensorName = "input_ids"
    attention_mask: TensorName | None = "attention_mask"
    """1 for a token of the text, 0 for padding. None: the model has no such input."""
    token_type_ids: TensorName | None = None
    """All 0, for encoders that were made for pairs of texts. None: the model has no such input."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.tensors)) != len(self.tensors):
            raise ValueError("input_ids, attention_mask and token_type_ids must have different names")
        if self.min_characters > self.max_characters:
            raise ValueError("min_characters is over max_characters")
        return self

    @property
    def tensors(self) -> tuple[str, ...]:
        """The model's inputs, in this order."""
        return tuple(name for name in (self.input_ids, self.attention_mask, self.token_type_ids) if name is not None)


class TextClassificationSpec(SpecModel):
    """A text is one of several labels."""

    task: Literal["text-classification"] = "text-classification"
    tokens: TokensSpec
    classification: ClassificationSpec = ClassificationSpec()
    example: str


class TextEmbeddingSpec(SpecModel):
    """A text becomes a vector; pooling and normalisation are the model's own."""

    task: Literal["text-embedding"] = "text-embedding"
    tokens: TokensSpec
    output: TensorName = "sentence_embedding"
    """Name of the output, FP32 [B, D]."""
    dimensions: Annotated[int, Field(ge=1)]
    """D, for callers; an output of another width keeps the model out."""
    normalized: bool
    """Whether the vectors have the length 1, so that a dot product is the cosine; for callers."""
    example: str


class TokenClassificationSpec(SpecModel):
    """Each token has a label, ``O`` or one with ``B-`` or ``I-`` before it; neighbours of one label are an entity."""

    task: Literal["token-classification"] = "token-classification"
    tokens: TokensSpec
    output: TensorName = "logits"
    """Name of the output, FP32 [B, T, C], a logit for each token and label."""
    labels: Literal["labels.txt"] = "labels.txt"
    outside: str = "O"
    """The label of tokens that belong to no entity."""
    example: str
