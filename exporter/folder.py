"""The files of a run's folder: read with what is wrong told, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from exporter.errors import RunError
from exporter.recipes.base import Evaluation, RunConfig
from server.pipeline.classification import DecisionThreshold
from server.whole import write_text

CONFIG_FILE = "config.yaml"
DATA_FILE = "data.json"
EVALUATION_FILE = "evaluation.json"
ENVIRONMENT_FILE = "environment.json"
MODEL_FILE = "model.onnx"


def read_json(path: Path) -> dict[str, Any]:
    """Raises RunError where there is none that can be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} can't be read: {error}") from error
    return found


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder. Raises RunError if there is none."""
    try:
        return RunConfig.model_validate(yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except OSError as error:
        raise RunError(f"{folder} is no run folder: it has no {CONFIG_FILE}") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise RunError(f"{folder / CONFIG_FILE} is damaged: {error}") from error


def write_config(folder: Path, config: RunConfig) -> None:
    """As `read_config` reads it."""
    write_text(folder / CONFIG_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def read_evaluation(folder: Path) -> Evaluation:
    """Raises RunError where training has not come to its end."""
    try:
        found = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} has not been evaluated; go on with: train --resume") from error
    decision = found.pop("decision")
    found["notes"] = tuple(found["notes"])
    return Evaluation(**found, decision=None if decision is None else DecisionThreshold(**decision))


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """As `read_evaluation` reads it."""
    decision = evaluation.decision
    found = {
        "metrics": dict(evaluation.metrics),
        "baseline": dict(evaluation.baseline),
        "baseline_name": evaluation.baseline_name,
        "decision": None if decision is None else decision.model_dump(),
        "chosen": dict(evaluation.chosen),
        "notes": list(evaluation.notes),
    }
    write_text(folder / EVALUATION_FILE, json.dumps(found, indent=2) + "\n")
