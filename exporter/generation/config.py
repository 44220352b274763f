"""What decides the outcome of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from exporter.recipes.base import Hyperparameters

Precision = Literal["fp32", "int4", "int8", "fp16"]


class Sizes(BaseModel):
    """Of a model that is trained from scratch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: Annotated[int, Field(ge=260, le=200_000)] = 2048
    layers: Annotated[int, Field(ge=1)] = 4
    width: Annotated[int, Field(ge=16)] = 192
    heads: Annotated[int, Field(ge=1)] = 6
    kv_heads: Annotated[int, Field(ge=1)] = 2
    context: Annotated[int, Field(ge=16)] = 512
    """Tokens of a prompt and its text together."""


class GenerationConfig(BaseModel):
    """Stored in the run folder as config.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Literal["text-generation"] = "text-generation"
    data: str
    """A file or folder of texts, or ``handbook``."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
    base: str = ""
    """The folder of a causal model to go on from; empty: a new one is trained from scratch."""
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    """Of a fine-tuning that trains small matrices beside the weights of `base`; 0: all weights are trained."""
    precision: Precision = "fp32"
    """Of the model that is published. fp16 is for CUDA."""
    most_worse: Annotated[float, Field(ge=0)] = 0.1
    """By how much of itself the perplexity may grow at another precision than fp32."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    threads: Annotated[int, Field(ge=1)] = 1
    window: Annotated[int, Field(ge=8)] = 128
    """Tokens of a row of a training batch."""
    sizes: Sizes = Sizes()
    training: Hyperparameters = Hyperparameters(epochs=20, batch_size=16, learning_rate=2e-3, patience=3)
