"""The SLO file: what is asked of a server, how much of it, and what it must hold to.

warm_up_s: 5                  # cut off at the start
window_s: 5                   # confidence intervals are from windows of so long
max_lag_ms: 5                 # the 99th percentile of how late the generator itself was; over it the run is invalid
objectives:
  - kind: rest predict digits   # transport, call, model
    rate: 50                    # requests a second
    arrivals: poisson           # when they are due
    latency_ms: { p50: 20, p99: 100 }
    max_error_rate: 0.001       # of all requests: failed, or answered wrongly
    max_refused_rate: 0.0       # of all requests: not taken in because of other work
    min_answers_per_s: 45       # right ones
    rows: { 1: 0.8, 8: 0.2 }    # sizes of requests, by how often they come; without it all have one row
  - kind: grpc stream story     # ModelStreamInfer; over rest generate_stream
    rate: 5
    replay: trace.jsonl         # what is sent and what is right (replay.py), beside this file
    first_answer_ms: { p99: 50 }
    between_answers_ms: { p99: 20 }
  - kind: rest chat tales       # OpenAI's chat with stream: true; answers are pieces of text
    rate: 2
    optional: true              # asked only where the models' folder has the model
    first_answer_ms: { p95: 500 }       # to the first token
    between_answers_ms: { p95: 100 }    # from token to token
  - kind: rest infer digits
    arrivals: trace             # when the replay file says, and in its order; it has no rate
    replay: trace.jsonl
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from loadtests.arrivals import PROCESSES
from server.pipeline.load import UniqueKeys

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
MOST_MS = 120_000
"""No latency is recorded above."""


class SloFault(Exception):
    """The SLO file can't be read; the text names the field."""


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Kind(Strict):
    """What is asked: ``rest predict digits``."""

    transport: Literal["grpc", "rest", "json"]
    """rest: with binary tensors; json: REST with tensors in JSON."""
    call: Literal["infer", "predict", "stream", "chat"]
    """chat: OpenAI's, which streams."""
    model: Annotated[str, Field(min_length=1)]

    @classmethod
    def parse(cls, text: str) -> Kind:
        """Raises ValueError."""
        words = text.split(maxsplit=2)
        if len(words) != 3:
            calls = "infer, predict, stream, chat"
            raise ValueError(f"must be a transport (grpc, rest, json), a call ({calls}) and a model")
        return cls.model_validate(dict(zip(("transport", "call", "model"), words, strict=True)))

    @property
    def wire(self) -> Literal["grpc", "rest"]:
        return "grpc" if self.transport == "grpc" else "rest"

    def __str__(self) -> str:
        return f"{self.transport} {self.call} {self.model}"


Latencies = dict[Annotated[str, Field(pattern=r"^p\d{1,2}(\.\d+)?$")], Annotated[float, Field(gt=0, le=MOST_MS)]]
TRACE = "trace"
STREAMS = ("stream", "chat")


class Objective(Strict):
    """Of one kind of request."""

    kind: Kind
    rate: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    arrivals: str = "poisson"
    rows: dict[Annotated[int, Field(ge=1, le=65_536)], Positive] = {}
    replay: Path | None = None
    optional: bool = False
    """It is asked only where the models' folder has the model."""
    latency_ms: Latencies = {}
    first_answer_ms: Latencies = {}
    between_answers_ms: Latencies = {}
    max_error_rate: Share = 0.0
    max_refused_rate: Share = 0.0
    min_answers_per_s: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("kind", mode="before")
    @classmethod
    def _kind(cls, value: object) -> object:
        return Kind.parse(value) if isinstance(value, str) else value

    @field_validator("arrivals")
    @classmethod
    def _arrivals(cls, value: str) -> str:
        if value not in (*PROCESSES, TRACE):
            raise ValueError(f"must be one of {', '.join(PROCESSES)}, {TRACE}")
        return value

    @model_validator(mode="after")
    def _together(self) -> Objective:
        if self.arrivals == TRACE and (self.replay is None or self.rate):
            raise ValueError(f"arrivals: {TRACE} needs a replay file, which says when requests are due, and no rate")
        if self.arrivals != TRACE and not self.rate:
            raise ValueError("rate: must be above 0")
        if self.kind.call == "chat" and (self.kind.transport != "rest" or self.replay is not None):
            raise ValueError("kind: a chat is asked over rest, with the model's golden prompts")
        if self.kind.call not in STREAMS and (self.first_answer_ms or self.between_answers_ms):
            raise ValueError("first_answer_ms, between_answers_ms: are of streams")
        if self.rows and (self.replay or self.kind.call in STREAMS):
            raise ValueError("rows: are of golden inputs, and of no stream")
        return self


class Slo(Strict):
    warm_up_s: Annotated[float, Field(ge=0)] = 5.0
    window_s: Annotated[float, Field(ge=0.1)] = 5.0
    max_lag_ms: Positive = 5.0
    objectives: tuple[Objective, ...]

    @field_validator("objectives")
    @classmethod
    def _each_once(cls, value: tuple[Objective, ...]) -> tuple[Objective, ...]:
        """What came of requests is recorded by their kind."""
        kinds = [str(one.kind) for one in value]
        if twice := [kind for number, kind in enumerate(kinds) if kind in kinds[:number]]:
            raise ValueError(f"{twice[0]} is there twice; its sizes are mixed by rows, or by a replay file")
        if not value:
            raise ValueError("must have one or more")
        return value


def read_slo(path: Path, repository: Path | None = None) -> Slo:
    """A replay file is beside the SLO file. With a `repository` optional objectives are there only where their models
    are. Raises SloFault."""
    try:
        slo = Slo.model_validate(yaml.load(path.read_text(), UniqueKeys))  # nosec B506 # noqa: S506 - a safe loader
        beside = [
            one.model_copy(update={"replay": path.parent / one.replay}) if one.replay else one
            for one in slo.objectives
            if not (one.optional and repository is not None and not (repository / one.kind.model).is_dir())
        ]
        if not beside:
            raise SloFault(f"{path}: {repository} has none of its models, and all its objectives are optional")
        return slo.model_copy(update={"objectives": tuple(beside)})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SloFault(f"{path}: {error}") from error
    except ValidationError as error:
        faults = [
            ": ".join(filter(None, [".".join(str(step) for step in fault["loc"]), fault["msg"]]))
            for fault in error.errors()
        ]
        raise SloFault(f"{path}: {'; '.join(faults)}") from error
