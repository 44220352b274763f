"""REST: KServe v2 with the binary tensor extension, and `predict`. Messages first, then their two transports."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote

import httpx
import numpy as np

from server.client import answers
from server.client.arrays import array_of
from server.client.calls import Call
from server.client.errors import ClientError, code_of_http, seconds_of
from server.client.inputs import invalid
from server.errors import Code
from server.explain import ANSWER_KEY, REQUEST_KEY
from server.tensor import DATATYPES, Array, Tensor, TensorSpec
from server.types import (
    ImageInput,
    IndexEntry,
    ModelMetadata,
    PredictResponse,
    RawInput,
    RowInput,
    Written,
)

T = TypeVar("T")

DEADLINE_HEADER = "X-Request-Timeout"
KEY_HEADER = "X-Api-Key"
HEADER_LENGTH = "Inference-Header-Content-Length"
CONNECT_S = 5.0


def _only_grpc() -> ClientError:
    return ClientError(Code.UNSUPPORTED, "predict_stream: needs grpc://; over REST there are OpenAI's routes")


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `headers` is looked up without regard to case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def body(self) -> Any:
        """The JSON in a successful answer. Raises ClientError for any other status, ValueError for no JSON."""
        if not self.ok:
            raise self.error()
        return json.loads(self.content)

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def error(self) -> ClientError:
        try:
            message = str(json.loads(self.content)["error"])
        except (ValueError, LookupError, TypeError):
            message = f"HTTP {self.status}"
        return ClientError(code_of_http(self.status), message, seconds_of(self.headers.get("retry-after")))


# --- messages ------------------------------------------------------------------------------------


class Messages:
    """The calls as HTTP requests. Source: KServe v2 "HTTP/REST", Triton's binary data extension."""

    def predict(self, model: str, version: str, inputs: Sequence[RawInput], top_k: int) -> Call[PredictResponse]:
        path = f"{_model_path(model, version)}/predict"
        match inputs:
            case [ImageInput(data, content_type)] if content_type:
                params = {"top_k": str(top_k)} if top_k else {}
                return Call(Request("POST", path, data, {"Content-Type": content_type}, params), _read_predict)
        body: dict[str, Any] = {"inputs": [_json_input(raw) for raw in inputs]}
        if top_k:
            body["top_k"] = top_k
        return Call(Request("POST", path, _json(body), {"Content-Type": "application/json"}), _read_predict)

    def predict_stream(self, model: str, version: str, prompt: str, sampling: Mapping[str, object]) -> Call[Written]:
        """Raises ClientError."""
        raise _only_grpc()

    def infer(
        self, model: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str]
    ) -> Call[dict[str, Array]]:
        header: dict[str, Any] = {"inputs": [_json_tensor(tensor) for tensor in inputs]}
        if outputs:
            header["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        else:
            header["parameters"] = {"binary_data_output": True}
        head = _json(header)
        content = b"".join([head, *(tensor.data for tensor in inputs)])
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
        return Call(Request("POST", f"{_model_path(model, version)}/infer", content, headers), _read_infer)

    def server_ready(self) -> Call[bool]:
        # Servers of the protocol disagree on the status that says "not ready": 400 here, 503 there.
        return Call(Request("GET", "/v2/health/ready"), lambda reply: reply.ok)

    def models(self) -> Call[list[IndexEntry]]:
        request = Request("POST", "/v2/repository/index", b"{}", {"Content-Type": "application/json"})
        return Call(request, _read_models)

    def model_metadata(self, model: str, version: str) -> Call[ModelMetadata]:
        return Call(Request("GET", _model_path(model, version)), _read_metadata)


def _model_path(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise invalid("inputs", "JSON has no NaN and no infinity; a missing value is None") from error


def _json_input(raw: RawInput) -> Any:
    if isinstance(raw, ImageInput):
        image = {"b64": base64.b64encode(raw.data).decode()}
        return image | ({"content_type": raw.content_type} if raw.content_type else {})
    return raw.values if isinstance(raw, RowInput) else raw.text


def _json_tensor(tensor: Tensor) -> dict[str, Any]:
    size = memoryview(tensor.data).nbytes
    return {
        "name": tensor.name,
        "shape": tensor.shape,
        "datatype": tensor.datatype,
        "parameters": {"binary_data_size": size},
    }


def _read_predict(reply: Reply) -> PredictResponse:
    body = reply.body()
    predictions = [answers.of_json(one) for one in body["predictions"]]
    return PredictResponse(body["model_name"], body["model_version"], predictions, body.get("id", ""))


def _read_infer(reply: Reply) -> dict[str, Array]:
    if not reply.ok:
        raise reply.error()
    length = int(reply.headers.get(HEADER_LENGTH.lower(), len(reply.content)))
    body = json.loads(reply.content[:length])
    arrays: dict[str, Array] = {}
    for output in body["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            arrays[output["name"]] = _array_of_json(output)
            continue
        data = memoryview(reply.content)[length : length + size]
        tensor = Tensor(output["name"], output["datatype"], tuple(output["shape"]), data)
        arrays[output["name"]] = array_of(tensor)
        length += size
    return arrays


def _array_of_json(output: Mapping[str, Any]) -> Array:
    shape, data = tuple(output["shape"]), output["data"]
    if output["datatype"] == "BF16":
        return np.array(data, np.float32).reshape(shape)
    if output["datatype"] != "BYTES":
        return np.array(data, DATATYPES[output["datatype"]].numpy).reshape(shape)
    array = np.empty(prod(shape), dtype=object)
    array[:] = [text.encode() for text in np.array(data, dtype=object).reshape(-1)]
    return array.reshape(shape)


def _read_models(reply: Reply) -> list[IndexEntry]:
    return [
        IndexEntry(one["name"], one.get("version", ""), one.get("state", ""), one.get("reason", ""))
        for one in reply.body()
    ]


def _read_metadata(reply: Reply) -> ModelMetadata:
    body = reply.body()
    return ModelMetadata(
        body["name"],
        tuple(body.get("versions", ())),
        body["platform"],
        _specs(body["inputs"]),
        _specs(body["outputs"]),
        body.get("predict"),
    )


def _specs(described: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(one["name"], one["datatype"], tuple(one["shape"])) for one in described)


# --- transports ----------------------------------------------------------------------------------


class Transport:
    """Keeps connections alive. `proxy`: whether the environment's proxies are to be used."""

    def __init__(self, url: SplitResult, *, proxy: bool, api_key: str = "") -> None:
        self._url = url.geturl()
        self._http = httpx.Client(
            base_url=self._url, trust_env=proxy, limits=_LIMITS, headers={KEY_HEADER: api_key} if api_key else None
        )

    def stream(self, call: Call[T], timeout_s: float | None) -> Iterator[T]:
        """Raises ClientError."""
        raise _only_grpc()

    def send(self, call: Call[T], timeout_s: float | None) -> T:
        with _failures(self._url, timeout_s):
            response = self._http.request(**_arguments(call, timeout_s))
        return call.answer(_reply(response), self._url, response.headers.get(ANSWER_KEY, ""))

    def close(self) -> None:
        self._http.close()


class AsyncTransport:
    """`Transport` for asyncio."""

    def __init__(self, url: SplitResult, *, proxy: bool, api_key: str = "") -> None:
        self._url = url.geturl()
        self._http = httpx.AsyncClient(
            base_url=self._url, trust_env=proxy, limits=_LIMITS, headers={KEY_HEADER: api_key} if api_key else None
        )

    def stream(self, call: Call[T], timeout_s: float | None) -> AsyncGenerator[T]:
        """Raises ClientError."""
        raise _only_grpc()

    async def send(self, call: Call[T], timeout_s: float | None) -> T:
        with _failures(self._url, timeout_s):
            async with asyncio.timeout(timeout_s):
                response = await self._http.request(**_arguments(call, timeout_s))
        return call.answer(_reply(response), self._url, response.headers.get(ANSWER_KEY, ""))

    async def close(self) -> None:
        await self._http.aclose()


# The caller decides how many calls are in flight; a pool with a limit would queue them without telling.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=128)


def _arguments(call: Call[Any], timeout_s: float | None) -> dict[str, Any]:
    """What httpx needs. Its time-outs are of silence; the server, told the deadline, keeps the whole."""
    request: Request = call.request
    deadline = {} if timeout_s is None else {DEADLINE_HEADER: str(ceil(timeout_s * 1000))}
    explain = {} if call.explain is None else {REQUEST_KEY: "1"}
    return {
        "method": request.method,
        "url": request.path,
        "content": request.content,
        "headers": {**request.headers, **deadline, **explain},
        "params": request.params,
        "timeout": httpx.Timeout(timeout_s, connect=CONNECT_S if timeout_s is None else min(timeout_s, CONNECT_S)),
    }


def _reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, response.headers, response.content)


@contextmanager
def _failures(url: str, timeout_s: float | None) -> Iterator[None]:
    """Turn what httpx raises when there is no answer into a ClientError that names the server."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise ClientError(Code.UNAVAILABLE, f"{url}: can't connect in time") from error
    except (httpx.TimeoutException, TimeoutError) as error:
        raise ClientError(Code.DEADLINE, f"{url}: no answer within {timeout_s:g} s") from error
    except httpx.RequestError as error:
        raise ClientError(Code.UNAVAILABLE, f"{url}: {str(error) or type(error).__name__}") from error
