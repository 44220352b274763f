"""One request as bytes, and how its answer is read: KServe v2 over gRPC and REST, and plain JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from loadtests.benchmarks.peers.workloads import Answer, Workload

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Call:
    """A request that is sent again and again."""

    grpc: bool
    """A unary gRPC call; else a POST over HTTP/1.1."""
    path: str
    body: bytes
    """Of gRPC: the message, without its prefix."""
    read: Callable[[bytes], Answer]
    """From the answer's message or body. Raises ValueError, KeyError, IndexError or TypeError for another answer."""
    headers: Mapping[str, str] = field(default_factory=dict)
    answer: Answer | None = None
    """What is right, where it is not the workload's own answer."""
    model: str = ""
    """Who is asked, where it is not the model with the workload's name."""


def v2_grpc(workload: Workload, model: str | None = None) -> Call:
    """ModelInfer: a row as raw contents, or a picture as one BYTES element."""
    name = model or workload.name
    request = pb.ModelInferRequest(model_name=name)
    if workload.picture is None:
        request.inputs.add(name="x", datatype="FP32", shape=workload.row.shape)
        request.raw_input_contents.append(workload.row.tobytes())
    else:
        request.inputs.add(name="picture", datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(len(workload.picture).to_bytes(4, "little") + workload.picture)
    return Call(True, MODEL_INFER, request.SerializeToString(), read_v2_grpc)


def read_v2_grpc(message: bytes) -> Answer:
    response = pb.ModelInferResponse.FromString(message)
    output = response.outputs[0]
    if output.datatype == "BYTES":
        if response.raw_output_contents:
            return response.raw_output_contents[0][4:].decode()
        return bytes(output.contents.bytes_contents[0]).decode()
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], np.float32)
    return np.array(output.contents.fp32_contents, np.float32)


def v2_rest(workload: Workload) -> Call:
    """The same as JSON; a picture as base64."""
    if workload.picture is None:
        data = [round_trip(value) for value in workload.row.reshape(-1)]
        tensor = {"name": "x", "datatype": "FP32", "shape": list(workload.row.shape), "data": data}
    else:
        text = base64.b64encode(workload.picture).decode()
        tensor = {"name": "picture", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    body = json.dumps({"inputs": [tensor]}).encode()
    return Call(False, f"/v2/models/{workload.name}/infer", body, read_v2_rest, JSON)


def v2_rest_binary(workload: Workload) -> Call:
    """The same with the tensors as bytes behind the JSON, both ways (Triton's binary tensor data extension)."""
    if workload.picture is None:
        raw, tensor = workload.row.tobytes(), {"name": "x", "datatype": "FP32", "shape": list(workload.row.shape)}
        output = "y"
    else:
        raw = len(workload.picture).to_bytes(4, "little") + workload.picture
        tensor, output = {"name": "picture", "datatype": "BYTES", "shape": [1, 1]}, "label"
    inputs = [{**tensor, "parameters": {"binary_data_size": len(raw)}}]
    outputs = [{"name": output, "parameters": {"binary_data": True}}]
    text = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return Call(False, f"/v2/models/{workload.name}/infer", text + raw, read_v2_rest, headers)


def read_v2_rest(body: bytes) -> Answer:
    """Of either form; what is text in it is ASCII."""
    document, length = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    output = document["outputs"][0]
    if "data" not in output:
        raw = body[length:]
        return raw[4:].decode() if output["datatype"] == "BYTES" else np.frombuffer(raw, np.float32)
    if output["datatype"] == "BYTES":
        return str(output["data"][0])
    return np.array(output["data"], np.float32)


def plain_json(workload: Workload, path: str, *, wrap: Callable[[object], object] = lambda x: {"x": x}) -> Call:
    """For servers with a protocol of their own: a row as nested lists, in the object that `wrap` makes of it."""
    row = [round_trip(value) for value in workload.row.reshape(-1)]
    nested = np.array(row, dtype=object).reshape(workload.row.shape[1:]).tolist()
    return Call(False, path, json.dumps(wrap(nested)).encode(), read_plain_json, JSON)


def read_plain_json(body: bytes) -> Answer:
    """{"y": row}, {"label": name}, or the bare value."""
    value = json.loads(body)
    if isinstance(value, dict):
        value = value["label"] if "label" in value else value["y"]
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else np.array(value, np.float32)


def round_trip(value: np.float32) -> float:
    """The shortest decimal that is this float32 again, as clients write it."""
    return float(str(value))
