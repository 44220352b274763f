"""Every setting of the server, in one frozen tree.

A field's string below it is its help: the flags of `serve` are generated from this tree, and so is the
reference page. A setting comes from a flag, else from the environment (``FORWARDPASS_GRPC__PORT``), else
from its default. An unknown name is an error, in the environment as on the command line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

ENV_PREFIX = "FORWARDPASS_"
ENV_NESTED = "__"

ModelControlMode = Literal["none", "poll", "explicit"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


def flag(name: str) -> dict[str, Any]:
    """Mark a field with the flag of `serve` that sets it. A field without one is set by environment only."""
    return {"flag": name}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RepositorySettings(Section):
    path: Annotated[Path, Field(json_schema_extra=flag("--model-repository"))] = Path("model_repository")
    """The folder of models, in Triton's layout."""
    control_mode: Annotated[ModelControlMode, Field(json_schema_extra=flag("--model-control-mode"))] = "none"
    """none: load everything at start. poll: also follow changes of the folder. explicit: load what --load-model
    names, then what the control API asks for."""
    load_models: Annotated[tuple[str, ...], Field(json_schema_extra=flag("--load-model"))] = ()
    """A model to load at start in explicit mode; may be repeated, * for all."""
    poll_s: Annotated[float, Field(gt=0, json_schema_extra=flag("--repository-poll-secs"))] = 15.0
    """Seconds between two looks at the folder in poll mode."""
    strict_readiness: Annotated[bool, Field(json_schema_extra=flag("--strict-readiness"))] = False
    """Ready only when every model has loaded. Off: ready when every model that can load has loaded."""
    warmup_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that the warm-up of one version may take; the batch sizes left cold are logged."""


class HttpSettings(Section):
    port: Annotated[int, Field(ge=0, le=65535, json_schema_extra=flag("--http-port"))] = 8000
    """REST; 0 picks a free port."""
    max_body_bytes: Annotated[int, Field(gt=0, json_schema_extra=flag("--http-max-input-size"))] = 64 * 1024 * 1024
    """Bytes of a request's body, after decompression."""
    keep_alive_s: Annotated[int, Field(gt=0)] = 75
    """Seconds that an idle connection is kept; longer than the 60 s of common proxies, so that they close first."""


class GrpcSettings(Section):
    port: Annotated[int, Field(ge=0, le=65535, json_schema_extra=flag("--grpc-port"))] = 8001
    """gRPC; 0 picks a free port."""
    max_message_bytes: Annotated[int, Field(gt=0)] = 64 * 1024 * 1024
    """Bytes of a message, received or sent."""


class MetricsSettings(Section):
    port: Annotated[int, Field(ge=0, le=65535, json_schema_extra=flag("--metrics-port"))] = 8002
    """Prometheus metrics at /metrics; 0 picks a free port."""


class SchedulerSettings(Section):
    default_max_queue_size: Annotated[int, Field(ge=1)] = 8192
    """Requests that may wait for one version of a model whose config.pbtxt sets no max_queue_size. Triton's
    default is no limit, which turns overload into memory and time-outs."""


class EngineSettings(Section):
    threads: Annotated[int, Field(ge=0, json_schema_extra=flag("--engine-threads"))] = 0
    """Threads of one forward pass where config.pbtxt sets no intra_op_thread_count; 0: the cores that this
    process may use (cgroup quota and affinity, not the host's), shared out over the instances."""


class PipelineSettings(Section):
    threads: Annotated[int, Field(ge=0, json_schema_extra=flag("--pipeline-threads"))] = 0
    """Threads that decode pictures and build answers; 0: the cores that this process may use."""
    max_pixels: Annotated[int, Field(gt=0)] = 50_000_000
    """Pixels of a decoded picture, whatever a model's processing.yaml allows."""


class ShutdownSettings(Section):
    delay_s: Annotated[float, Field(ge=0, json_schema_extra=flag("--drain-delay-secs"))] = 0.25
    """Seconds between turning unready and closing the listeners: for load balancers to notice, and for requests
    that are already on the wire to be read. Behind a load balancer set it to its detection time, 10 s or so."""
    grace_s: Annotated[float, Field(ge=0, json_schema_extra=flag("--exit-timeout-secs"))] = 30.0
    """Seconds in which everything admitted is answered before the rest is settled as UNAVAILABLE."""


class LogSettings(Section):
    level: Annotated[LogLevel, Field(json_schema_extra=flag("--log-level"))] = "info"
    """The least severe level that is written."""
    format: Annotated[LogFormat, Field(json_schema_extra=flag("--log-format"))] = "text"
    """text for people, json for collectors."""


class Settings(BaseSettings):
    """The root. Build it with `load_settings`, which also refuses unknown environment variables."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_NESTED,
        use_attribute_docstrings=True,
    )

    host: Annotated[str, Field(json_schema_extra=flag("--host"))] = "127.0.0.1"
    """The address of all three listeners."""
    repository: RepositorySettings = RepositorySettings()
    http: HttpSettings = HttpSettings()
    grpc: GrpcSettings = GrpcSettings()
    metrics: MetricsSettings = MetricsSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    engine: EngineSettings = EngineSettings()
    pipeline: PipelineSettings = PipelineSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    log: LogSettings = LogSettings()


def known_environment() -> dict[str, Any]:
    """Every environment variable that sets something, with the type of what it sets."""
    types: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        variable, section = f"{ENV_PREFIX}{name}".upper(), field.annotation
        types[variable] = section
        if _is_section(section):
            inner = section.model_fields.items()
            types.update({f"{variable}{ENV_NESTED}{key}".upper(): field.annotation for key, field in inner})
    return types


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the environment under `overrides` (nested by section, as flags give them).

    Raises:
        ValueError: a value is out of range, or a FORWARDPASS_ variable is unknown (pydantic-settings
            reads only the names it knows and would pass over a misspelt one).
    """
    known = known_environment()
    stray = sorted(name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name.upper() not in known)
    if stray:
        raise ValueError(f"unknown environment variable: {', '.join(stray)}")
    try:
        return Settings(**(overrides or {}))
    except SettingsError as error:
        raise ValueError(f"not JSON, as its value must be: {', '.join(_not_json())}") from error


def _not_json() -> list[str]:
    """The variables at fault when the environment can't be parsed: those of a section or a list take JSON."""
    known = known_environment()
    takers = {name for name, kind in known.items() if _is_section(kind) or get_origin(kind) is tuple}
    return sorted(name for name, value in os.environ.items() if name.upper() in takers and not _is_json(value))


def _is_section(kind: Any) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)


def _is_json(value: str) -> bool:
    try:
        json.loads(value)
    except ValueError:
        return False
    return True
