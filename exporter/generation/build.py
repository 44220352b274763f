"""A model of transformers -> a folder that the server reads, by onnxruntime-genai's model builder, offline."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from pathlib import Path
from typing import Any

from exporter.errors import ExportError
from exporter.generation.config import Precision

_PROVIDERS: dict[str, str] = {"fp32": "cpu", "int4": "cpu", "int8": "cpu", "fp16": "cuda"}


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """As transformers reads it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build(source: Path, target: Path, precision: Precision) -> None:
    """`source`: a folder as `save` writes it. Raises ExportError, with what the builder said last."""
    try:
        builder = importlib.import_module("onnxruntime_genai.models.builder")
    except ImportError as error:
        raise ExportError("the model builder is not here: install forwardpass[genai]") from error
    said = io.StringIO()
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    place = (str(source), "", str(target), precision, _PROVIDERS[precision], str(target / ".cache"))
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            builder.create_model(*place, **builder.parse_extra_options(*place, []))
    except Exception as error:  # of any of the libraries that it uses
        last = " ".join(said.getvalue().split()[-40:])
        raise ExportError(f"onnxruntime-genai's builder can't write this model: {error}; it said: {last}") from error
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
