"""The table of tasks: from a model's folder to its pipeline, and from a spec to processing.yaml.

What a task needs is imported with the first model that has it: a server pays at each start, in time and in memory, for
its own tasks alone.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Container, Hashable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from server.errors import ModelLoadFailed
from server.pipeline.base import PROCESSING_FILE, Pipeline

if TYPE_CHECKING:
    from server.pipeline.custom import CustomSpec
    from server.pipeline.image_spec import ImageSpec
    from server.pipeline.recommendation import RecommendationSpec
    from server.pipeline.regression import RegressionSpec
    from server.pipeline.tabular import TabularSpec
    from server.pipeline.text_spec import TextClassificationSpec, TextEmbeddingSpec, TokenClassificationSpec

    TabularSpecs = TabularSpec | RegressionSpec | RecommendationSpec
    TextSpecs = TextClassificationSpec | TextEmbeddingSpec | TokenClassificationSpec
    Spec = ImageSpec | TabularSpecs | TextSpecs | CustomSpec

_SPECS: Mapping[str, tuple[str, str]] = {
    "image-classification": ("image_spec", "ImageSpec"),
    "tabular-classification": ("tabular", "TabularSpec"),
    "tabular-regression": ("regression", "RegressionSpec"),
    "recommendation": ("recommendation", "RecommendationSpec"),
    "text-classification": ("text_spec", "TextClassificationSpec"),
    "text-embedding": ("text_spec", "TextEmbeddingSpec"),
    "token-classification": ("text_spec", "TokenClassificationSpec"),
    "custom": ("custom", "CustomSpec"),
}
"""What processing.yaml holds, by its task: the module and the class. A new task is one more line here, one more member
of `Spec`, and one more case in `load_pipeline`."""

_SHOWN_CHARACTERS = 60


# The parser in C, where PyYAML was built with it, reads a spec of 30 columns in 4 ms instead of 40.
_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class UniqueKeys(_SafeLoader):  # type: ignore[misc, valid-type]
    """YAML's safe subset; a key given twice is an error instead of the last one winning in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


def read_spec(folder: Path) -> Spec:
    """The spec in a model's folder.

    Raises:
        ModelLoadFailed: processing.yaml is missing, is no YAML, or has a field that is unknown or wrong.
    """
    try:
        content = yaml.load((folder / PROCESSING_FILE).read_bytes(), Loader=UniqueKeys)  # nosec B506 # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = _where_in_yaml(error) if isinstance(error, yaml.MarkedYAMLError) else type(error).__name__
        raise ModelLoadFailed(folder.name, PROCESSING_FILE, f"can't be read: {reason}") from error
    try:
        return _understood(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        where = f"{PROCESSING_FILE}: {field}" if field else PROCESSING_FILE
        raise ModelLoadFailed(folder.name, where, _problem(first)) from error


def _understood(content: object) -> Spec:
    """Raises ValidationError."""
    task = content.get("task") if isinstance(content, Mapping) else None
    if isinstance(task, str) and task in _SPECS:
        kind = _class(task)
    else:  # It is nobody's, and pydantic says why.
        kind = Annotated[functools.reduce(operator.or_, map(_class, _SPECS)), Field(discriminator="task")]
    spec: Spec = TypeAdapter(kind).validate_python(content)
    return spec


def _class(task: str) -> Any:
    module, name = _SPECS[task]
    return getattr(import_module(f"server.pipeline.{module}"), name)


def load_pipeline(folder: Path, max_pixels: int | None = None, custom_code: Container[str] = ()) -> Pipeline:
    """The pipeline of the model in `folder` (for example ``model_repository/digits``).

    `max_pixels` is the server's own limit on pictures, whatever the spec allows; `custom_code` has the names of the
    models whose own code may run.

    Raises:
        ModelLoadFailed: the spec or a file that it names can't be used; says where and why.
    """
    spec = read_spec(folder)
    if spec.task == "image-classification":
        from server.pipeline.image import ImagePipeline

        return ImagePipeline(spec, folder, max_pixels)
    if spec.task == "tabular-classification":
        from server.pipeline.tabular import TabularPipeline

        return TabularPipeline(spec, folder)
    if spec.task == "tabular-regression":
        from server.pipeline.regression import RegressionPipeline

        return RegressionPipeline(spec, folder)
    if spec.task == "recommendation":
        from server.pipeline.recommendation import RecommendationPipeline

        return RecommendationPipeline(spec, folder)
    if spec.task == "custom":
        from server.pipeline.custom import CustomPipeline

        return CustomPipeline(spec, folder, custom_code)
    return _of_texts(spec, folder)


def _of_texts(spec: TextSpecs, folder: Path) -> Pipeline:
    from server.pipeline.text import TextClassificationPipeline, TextEmbeddingPipeline
    from server.pipeline.token_classification import TokenClassificationPipeline

    if spec.task == "text-classification":
        return TextClassificationPipeline(spec, folder)
    if spec.task == "text-embedding":
        return TextEmbeddingPipeline(spec, folder)
    return TokenClassificationPipeline(spec, folder)


def write_spec(spec: Spec, folder: Path) -> None:
    """Write processing.yaml; `read_spec` gives back an equal spec, and an equal spec gives the same bytes."""
    content = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    (folder / PROCESSING_FILE).write_text(content, encoding="utf-8")


def _problem(error: ErrorDetails) -> str:
    """What is wrong; a choice that is not among the known ones is named."""
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        return f"{error['input'][:_SHOWN_CHARACTERS]!r} is not known, it must be {error['ctx']['expected']}"
    return error["msg"]


def _where_in_yaml(error: yaml.MarkedYAMLError) -> str:
    line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
    return f"{error.problem or 'not YAML'}{line}"
