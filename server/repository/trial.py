"""Whether a pipeline fits its model: its own example goes all the way. Who runs the model is the caller's business."""

from __future__ import annotations

from collections.abc import Mapping

from server.errors import ModelLoadFailed, ServingError
from server.pipeline.base import PROCESSING_FILE, Pipeline, answers
from server.repository.model_config import ModelConfig
from server.repository.tensors import misfit
from server.tensor import Array


def example_tensors(config: ModelConfig, pipeline: Pipeline) -> Mapping[str, Array]:
    """What the pipeline makes of its example: one row of the model's inputs.

    Raises:
        ModelLoadFailed: it refuses the example, or makes other tensors than the model takes.
    """
    try:
        tensors = pipeline.preprocess([pipeline.example()])
    except ServingError as error:
        raise ModelLoadFailed(config.name, PROCESSING_FILE, f"refuses its own example: {error}") from error
    needed = {spec.name for spec in config.inputs if not spec.optional}
    if not needed <= set(tensors) <= {spec.name for spec in config.inputs}:
        made, wanted = ", ".join(sorted(tensors)), ", ".join(sorted(spec.name for spec in config.inputs))
        raise ModelLoadFailed(config.name, PROCESSING_FILE, f"makes the tensors {made}; the model takes {wanted}")
    for spec in config.inputs:
        if spec.name in tensors and (problem := misfit(tensors[spec.name], spec, config.max_batch_size)):
            raise ModelLoadFailed(config.name, PROCESSING_FILE, f"tensor {problem}")
    return tensors


def check_postprocessing(config: ModelConfig, pipeline: Pipeline, outputs: Mapping[str, Array]) -> None:
    """Raises ModelLoadFailed: the pipeline can make no answer of what the model makes of its example."""
    try:
        answers(pipeline, [pipeline.example()], outputs)
    except (ServingError, ValueError, KeyError, IndexError, TypeError) as error:
        problem = f"can't make an answer of the model's outputs: {error}"
        raise ModelLoadFailed(config.name, PROCESSING_FILE, problem) from error
