"""A model's own pre- and postprocessing: a Python file in its folder, run only where the server allows that.

The file has a class, `Pipeline` unless the spec names another:

    class Pipeline:
        def __init__(self, folder, options): ...        the model's folder (a Path), and the spec's `options`
        def preprocess(self, inputs): ...               raw inputs of `server.types` -> arrays by tensor name
        def postprocess(self, outputs, top_k): ...      arrays by tensor name -> an answer for each row
        def describe(self): ...                         optional: more of what `describe` tells, JSON values
        def example(self): ...                          a raw input: a row (dict or list), a text, or an ImageInput

An answer is one of `server.answers`, or any JSON value. `InvalidRequest` is for what a caller got wrong; anything else
that it raises fails the request as our own fault, with the text in the log alone.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import Field

from server.answers import Custom, Prediction
from server.errors import EngineFailure, InvalidRequest, ModelLoadFailed, ServingError
from server.pipeline.base import PROCESSING_FILE
from server.pipeline.classification import SpecModel
from server.tensor import Array
from server.types import ImageInput, RawInput, RowInput, TextInput

TASK: Literal["custom"] = "custom"
_KINDS = get_args(Prediction)


class CustomSpec(SpecModel):
    """What `processing.yaml` says of a model that brings its own code."""

    task: Literal["custom"] = TASK
    file: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\.py$")]
    """In the model's folder."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "Pipeline"
    """The class in it."""
    options: Mapping[str, Any] = {}
    """What the class is given, as it stands here."""


class CustomPipeline:
    """`server.pipeline.base.Pipeline` around a model's own class."""

    task: str = TASK

    def __init__(self, spec: CustomSpec, folder: Path, allowed: Container[str]) -> None:
        """Runs the file, once.

        Raises:
            ModelLoadFailed: the model is not among the `allowed` ones, or its file or class can't be used.
        """
        self._model_name = folder.name
        if folder.name not in allowed:
            problem = (
                f"custom runs the code of {spec.file}, and the server does not allow it: --custom-code {folder.name}"
            )
            raise ModelLoadFailed(folder.name, f"{PROCESSING_FILE}: task", problem)
        self._file = spec.file
        made = getattr(self._run(folder / spec.file), spec.name, None)
        if made is None:
            raise self._failed(f"has no {spec.name}")
        try:
            self._own = made(folder, dict(spec.options))
        except Exception as error:
            raise self._failed(f"{spec.name} can't be made: {_told(error)}") from error
        for method in ("preprocess", "postprocess", "example"):
            if not callable(getattr(self._own, method, None)):
                raise self._failed(f"{spec.name} has no method {method}")

    def preprocess(self, inputs: Sequence[RawInput]) -> Mapping[str, Array]:
        """What the model's class makes of the inputs.

        Raises:
            InvalidRequest: as its class raises it.
            EngineFailure: it raised anything else, or gave something other than arrays with a row for each input.
        """
        found = self._call("preprocess", list(inputs))
        if not isinstance(found, Mapping) or not found:
            raise self._wrong("preprocess gave no arrays by name")
        for name, array in found.items():
            if not isinstance(array, np.ndarray) or array.ndim < 1 or len(array) != len(inputs):
                raise self._wrong(f"preprocess: {name!r} is no array with {len(inputs)} rows")
        return found

    def postprocess(self, outputs: Mapping[str, Array], top_k: int = 0) -> list[Prediction]:
        """What the model's class answers, one for each row.

        Raises:
            InvalidRequest: as its class raises it.
            EngineFailure: it raised anything else, or an answer is none, or there are not as many as rows.
        """
        found = self._call("postprocess", outputs, top_k)
        rows = len(next(iter(outputs.values())))
        if not isinstance(found, Sequence) or len(found) != rows:
            raise self._wrong(f"postprocess gave no list of {rows} answers")
        return [self._answer(one) for one in found]

    def describe(self) -> Mapping[str, object]:
        """The task, and whatever the class tells."""
        told: Mapping[str, object] = self._call("describe") if hasattr(self._own, "describe") else {}
        return {"input": {"kind": "custom"}, "labels": [], **told, "task": self.task}

    def example(self) -> RawInput:
        """The class's own. Raises EngineFailure if it is no input."""
        found = self._call("example")
        match found:
            case ImageInput() | TextInput() | RowInput():
                return found
            case str():
                return TextInput(found)
            case dict() | list():
                return RowInput(found)
        raise self._wrong("example gave neither a row, a text nor an ImageInput")

    def _run(self, path: Path) -> ModuleType:
        """The file as a module of its own: not in `sys.modules`, and nothing compiled is left in the folder."""
        module = ModuleType(path.stem)
        module.__file__ = str(path)
        try:
            exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # nosec B102 # noqa: S102 - allowed by name
        except OSError as error:
            raise self._failed(f"can't be read: {error.strerror}") from error
        except Exception as error:
            raise self._failed(f"can't be run: {_told(error)}") from error
        return module

    def _call(self, method: str, *given: Any) -> Any:
        try:
            return getattr(self._own, method)(*given)
        except ServingError:
            raise
        except Exception as error:
            raise self._wrong(f"{method}: {_told(error)}") from error

    def _answer(self, one: Any) -> Prediction:
        if isinstance(one, _KINDS):
            return one  # type: ignore[no-any-return]
        try:
            return Custom(json.loads(json.dumps(one, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise self._wrong(f"postprocess: an answer is no JSON value: {error}") from error

    def _failed(self, problem: str) -> ModelLoadFailed:
        return ModelLoadFailed(self._model_name, self._file, problem)

    def _wrong(self, problem: str) -> EngineFailure:
        return EngineFailure(self._model_name, f"{self._file}: {problem}")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


__all__ = ["CustomPipeline", "CustomSpec", "InvalidRequest"]
