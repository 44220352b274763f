"""What `serve` prints when it is ready: for each model a command that can be pasted and gives an answer."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from server.dataplane import DataPlane
from server.pipeline.base import Pipeline
from server.proto.triton import model_config_pb2
from server.settings import Settings, without_secrets
from server.transport.openai.dialect import writes_text
from server.types import ImageInput, ModelMetadata, RowInput

_MOST_ELEMENTS = 4096
_PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


def banner(dataplane: DataPlane, settings: Settings, ports: dict[str, int]) -> str:
    """The addresses, every version with its state, and one command for each model that serves."""
    host = _bracketed(settings.host)
    url = f"http{'s' if settings.rest_tls.certificate else ''}://{host}:{ports['http']}"
    lines = [
        "",
        f"Forwardpass is {'ready' if dataplane.ready() else 'NOT ready'}.",
        f"  REST     {url}",
        f"  gRPC     {host}:{ports['grpc']}{', the same port' if settings.one_port else ''}",
        *([f"  console  {url}/"] if settings.http.console else []),
        f"  metrics  http://{_bracketed(settings.metrics.host)}:{ports['metrics']}/metrics",
        "",
    ]
    lines += [
        f"  {entry.name} version {entry.version or '-'}: {entry.state} {entry.reason}".rstrip()
        for entry in dataplane.repository_index()
    ]
    if not dataplane.repository_index():
        folders = ", ".join(map(without_secrets, settings.repository.path))
        lines.append(f"  {folders} holds no models yet: exporter/README.md says how one gets there.")
    lines.append("")
    for name in sorted({entry.name for entry in dataplane.repository_index(ready=True)}):
        lines += [f"# {name}", command(dataplane, settings, name, url), ""]
    return "\n".join(lines) + "\n"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def command(dataplane: DataPlane, settings: Settings, name: str, url: str) -> str:
    """A curl command that asks `name` for a prediction, or where it has no pipeline for a text or an inference."""
    pipeline = dataplane.pipeline(name)
    if pipeline is None:
        metadata = dataplane.model_metadata(name)
        if writes_text(metadata):
            body = {"model": name, "prompt": "The", "max_tokens": 32, "stream": True}
            return _post(f"{url}/v1/completions", body).replace("curl -s", "curl -sN", 1)
        return _infer(metadata, url, _sequence(dataplane.model_config(name)))
    folders = [Path(path) / name for path in settings.repository.path]
    return _predict(pipeline, folders, f"{url}/v2/models/{name}/predict")


def _predict(pipeline: Pipeline, folders: list[Path], url: str) -> str:
    example = pipeline.example()
    if not isinstance(example, ImageInput):
        value = example.values if isinstance(example, RowInput) else example.text
        return _post(url, {"inputs": [value]})
    for picture in sorted(picture for folder in folders for picture in folder.glob("example.*")):
        if picture.suffix in _PICTURES:
            kind = _PICTURES[picture.suffix]
            return f"curl -s {url} -H 'Content-Type: {kind}' --data-binary @{shlex.quote(str(picture))}"
    return _post(url, {"inputs": [{"b64": base64.b64encode(example.data).decode()}]})


def _infer(metadata: ModelMetadata, url: str, more: Mapping[str, object]) -> str:
    """With zeros; where these are too many to be pasted, the command asks what the model takes."""
    inputs, elements = [], 0
    for spec in metadata.inputs:
        shape = [1 if dim == -1 else dim for dim in spec.dims]
        size = 1
        for dim in shape:
            size *= dim
        elements += size
        if elements > _MOST_ELEMENTS:
            return f"curl -s {url}/v2/models/{metadata.name}"
        zero: object = {"BYTES": "", "BOOL": False}.get(spec.datatype, 0)
        inputs.append({"name": spec.name, "datatype": spec.datatype, "shape": shape, "data": [zero] * size})
    return _post(f"{url}/v2/models/{metadata.name}/infer", {**more, "inputs": inputs})


def _sequence(config: model_config_pb2.ModelConfig) -> Mapping[str, object]:
    """The parameters by which the example is a whole sequence, where the model batches such."""
    if not config.HasField("sequence_batching"):
        return {}
    controls = [control for tensor in config.sequence_batching.control_input for control in tensor.control]
    text = any(control.data_type == model_config_pb2.TYPE_STRING for control in controls)
    return {"parameters": {"sequence_id": "1" if text else 1, "sequence_start": True, "sequence_end": True}}


def _post(url: str, body: object) -> str:
    return f"curl -s {url} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body, default=list))}"
