"""Configs of ensembles, and of the models that they are composed of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class StepText:
    """One step of a config."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    version: int = -1
    more: str = ""

    def __str__(self) -> str:
        maps = [("input_map", self.inputs), ("output_map", self.outputs)]
        entries = "\n".join(
            f'    {name} {{ key: "{key}" value: "{tensor}" }}'
            for name, mapped in maps
            for key, tensor in mapped.items()
        )
        head = f'    model_name: "{self.model}" model_version: {self.version} {self.more}'
        return f"  step {{\n{head}\n{entries}\n  }}"


@dataclass(frozen=True)
class EnsembleText:
    """A config.pbtxt; tensors are ``name: (datatype, dims)``, FP32 where a tuple of dims stands alone."""

    inputs: Mapping[str, object]
    outputs: Mapping[str, object]
    steps: Sequence[StepText]
    max_batch_size: int = 4
    more: str = ""
    optional: Sequence[str] = field(default=())

    def __str__(self) -> str:
        return "\n".join(
            [
                f'platform: "ensemble"\nmax_batch_size: {self.max_batch_size}\n{self.more}',
                *(tensor("input", name, of, optional=name in self.optional) for name, of in self.inputs.items()),
                *(tensor("output", name, of) for name, of in self.outputs.items()),
                "ensemble_scheduling {",
                *map(str, self.steps),
                "}\n",
            ]
        )

    def write(self, root: Path, name: str, *, version: str = "1") -> Path:
        """The model's folder, with an empty version folder unless `version` is empty."""
        folder = root / name
        (folder / version).mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(f'name: "{name}"\n{self}')
        return folder


def tensor(kind: str, name: str, of: object, *, optional: bool = False) -> str:
    datatype, dims = of if isinstance(of, tuple) and of and isinstance(of[0], str) else ("FP32", of)
    assert isinstance(dims, tuple)
    more = " optional: true" if optional else ""
    proto = {"BYTES": "STRING"}.get(datatype, datatype)
    return f'{kind} {{ name: "{name}" data_type: TYPE_{proto} dims: {list(dims)}{more} }}'


def model_text(
    inputs: Mapping[str, object],
    outputs: Mapping[str, object],
    *,
    max_batch_size: int = 4,
    optional: Sequence[str] = (),
    more: str = "dynamic_batching {}",
) -> str:
    """The config of a model with a file of its own."""
    return "\n".join(
        [
            f'backend: "onnxruntime"\nmax_batch_size: {max_batch_size}\n{more}',
            *(tensor("input", name, of, optional=name in optional) for name, of in inputs.items()),
            *(tensor("output", name, of) for name, of in outputs.items()),
        ]
    )
