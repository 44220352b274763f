"""Sentence-transformers' modules.json: where the encoder stands, how its tokens become one vector, and what follows.

A folder without one is an encoder alone: the mean of its tokens is taken, and not normalised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from exporter.errors import DataError
from exporter.text.network import Pooling

MODULES_FILE = "modules.json"
_POOLING: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_FOLLOWING = ("Normalize", "Dense")
_ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    each.__name__: each for each in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.SiLU)
}


class Normalize(nn.Module):
    """Vectors [B, D] of the length 1."""

    def forward(self, vectors_bd: torch.Tensor) -> torch.Tensor:
        return functional.normalize(vectors_bd, p=2.0, dim=1)


@dataclass(frozen=True)
class Modules:
    """What modules.json says of the encoder's tokens."""

    pooling: Pooling
    following: tuple[tuple[str, Path], ...] = ()
    """Behind the pooling, in this order: Normalize or Dense, with its folder."""

    @property
    def normalized(self) -> bool:
        return bool(self.following) and self.following[-1][0] == "Normalize"

    def dimensions(self, width: int) -> int:
        """Of the vectors, where those of tokens have `width`. Raises DataError."""
        for _, folder in (each for each in self.following if each[0] == "Dense"):
            width = int(_dense_settings(folder)["out_features"])
        return width

    def layers(self) -> list[nn.Module]:
        """What follows the pooling. Raises DataError: weights are missing, or do what is not known here."""
        return [Normalize() if kind == "Normalize" else _dense(folder) for kind, folder in self.following]


def encoder_folder(path: Path) -> Path:
    """Where the encoder's own files are: in older folders not beside modules.json."""
    told = _told(path) if (path / MODULES_FILE).is_file() else ()
    return next((folder for kind, folder in told if kind == "Transformer"), path)


def read_modules(path: Path) -> Modules:
    """Of a folder. Raises DataError for what is not known here: another pooling, another module, another order."""
    if not (path / MODULES_FILE).is_file():
        return Modules("mean")
    told = list(_told(path))
    kinds = [kind for kind, _ in told]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= set(_FOLLOWING):
        known = f"Transformer, Pooling, then any of {', '.join(_FOLLOWING)}"
        raise DataError(f"{path}: {MODULES_FILE} has {', '.join(kinds) or 'nothing'}; known is {known}")
    return Modules(_pooling(told[1][1]), tuple(told[2:]))


def read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON file with an object in it. Raises DataError."""
    if optional and not path.is_file():
        return {}
    found = _json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: an object is wanted, not {type(found).__name__}")
    return found


def _told(path: Path) -> Iterator[tuple[str, Path]]:
    found = _json(path / MODULES_FILE)
    if not isinstance(found, list):
        raise DataError(f"{path / MODULES_FILE}: a list is wanted, not {type(found).__name__}")
    for each in found:
        if not isinstance(each, dict) or not isinstance(each.get("type"), str) or not isinstance(each.get("path"), str):
            raise DataError(f"{path / MODULES_FILE}: each module needs the texts type and path; there is {each!r}")
        yield each["type"].rpartition(".")[2], path / each["path"]


def _pooling(folder: Path) -> Pooling:
    told = read_object(folder / "config.json")
    if told.get("include_prompt") is False:
        raise DataError(f"{folder}: include_prompt is false: pooling without the prompt's tokens is not known here")
    if "pooling_mode" in told:  # as newer versions write it
        modes = told["pooling_mode"] if isinstance(told["pooling_mode"], list) else [told["pooling_mode"]]
        chosen = [f"pooling_mode_{mode}_token{'' if mode == 'cls' else 's'}" for mode in modes]
    else:
        chosen = [key for key, value in told.items() if key.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _POOLING:
        raise DataError(f"{folder}: pools by {', '.join(chosen) or 'nothing'}; known are: {', '.join(_POOLING)}")
    return _POOLING[chosen[0]]


def _dense_settings(folder: Path) -> dict[str, Any]:
    told = read_object(folder / "config.json")
    activation = str(told.get("activation_function") or "Identity").rpartition(".")[2]
    problem = (
        f"{each} is {told[each]}"
        for each in ("use_residual", "module_output_name")
        if told.get(each) not in (None, False, "sentence_embedding")
    )
    refused = next(problem, "" if activation in _ACTIVATIONS else f"activation_function is {activation}")
    sizes = [told.get(each) for each in ("in_features", "out_features")]
    if refused or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise DataError(f"{folder}: {refused or 'in_features and out_features are no sizes'}: not known here")
    return told | {"activation_function": activation}


def _dense(folder: Path) -> nn.Module:
    told = _dense_settings(folder)
    linear = nn.Linear(told["in_features"], told["out_features"], bias=bool(told.get("bias", True)))
    weights = {name.removeprefix("linear."): each for name, each in _weights(folder).items()}
    try:
        linear.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{folder}: its weights are not those of config.json: {error}") from error
    return nn.Sequential(linear.float(), _ACTIVATIONS[told["activation_function"]]())


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    for name, load in (("model.safetensors", load_file), ("pytorch_model.bin", _load_pickled)):
        if (folder / name).is_file():
            try:
                return load(folder / name)
            except Exception as error:  # each of the two has many
                raise DataError(f"{folder / name} can't be read: {error}") from error
    raise DataError(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")


def _load_pickled(path: Path) -> dict[str, torch.Tensor]:
    """Tensors alone: code in it is not run."""
    found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
