"""`Client` and `AsyncClient`: the same calls, the second awaited. The URL's scheme chooses the wire."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from types import ModuleType, TracebackType
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

from server.client.calls import AsyncTransport, Call, Messages, OnExplained, Transport
from server.client.errors import ClientError
from server.client.inputs import Input, invalid, raw_inputs, tensors
from server.errors import Code
from server.tensor import Array
from server.types import IndexEntry, ModelMetadata, PredictResponse, Written

_SCHEMES = ("http", "https", "grpc")


def _parse(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in _SCHEMES and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound:
        raise ClientError(Code.INVALID_ARG, f"url: {url!r} is not of the form http://HOST:PORT or grpc://HOST:PORT")
    return parts


def _wire(parts: SplitResult) -> ModuleType:
    if parts.scheme == "grpc":
        from server.client import grpcio

        return grpcio
    from server.client import rest

    return rest


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Calls:
    """What both clients have in common: every call's checks and its message."""

    _messages: Messages

    def _predict(
        self, model: str, version: str, inputs: Input | Sequence[Input], top_k: int, explain: OnExplained | None
    ) -> Call[PredictResponse]:
        if not 0 <= top_k < 2**32:
            raise invalid("top_k", f"{top_k} is out of range")
        return replace(self._messages.predict(_named(model), version, raw_inputs(inputs), top_k), explain=explain)

    def _infer(
        self, model: str, version: str, inputs: Mapping[str, Any], outputs: Sequence[str], explain: OnExplained | None
    ) -> Call[dict[str, Array]]:
        return replace(self._messages.infer(_named(model), version, tensors(inputs), outputs), explain=explain)

    def _predict_stream(self, model: str, version: str, prompt: str, sampling: Mapping[str, object]) -> Call[Written]:
        if not isinstance(prompt, str):
            raise invalid("prompt", f"must be a str, got {type(prompt).__name__}")
        return self._messages.predict_stream(_named(model), version, prompt, sampling)

    def _model_metadata(self, model: str, version: str) -> Call[ModelMetadata]:
        return self._messages.model_metadata(_named(model), version)


def _named(model: str) -> str:
    if not model:
        raise invalid("model", "the name is empty")
    return model


def _positive(timeout_s: float | None) -> float | None:
    if timeout_s is not None and not 0 < timeout_s < inf:
        raise invalid("timeout_s", f"{timeout_s} is no number of seconds above 0")
    return timeout_s


class Client(_Calls):
    """A client of one server, for any number of threads. It keeps connections: close it, or use it in `with`.

    `url` is ``http://HOST:PORT`` (or https) for REST or ``grpc://HOST:PORT`` (8001 if left out) for gRPC. Every
    method takes `timeout_s`: the server gets it as the deadline of the call, and None waits as long as it takes.
    `api_key` is shown with each call, where the server asks for one.
    A proxy set in the environment is not asked for a loopback address.

    Every method raises ClientError; the constructor does for a URL of another form.
    """

    def __init__(self, url: str, *, api_key: str = "") -> None:
        parts = _parse(url)
        wire = _wire(parts)
        self._messages = wire.Messages()
        self._transport: Transport = wire.Transport(parts, proxy=not _loopback(parts.hostname or ""), api_key=api_key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a second time does nothing."""
        self._transport.close()

    def predict(
        self,
        model: str,
        inputs: Input | Sequence[Input],
        *,
        version: str = "",
        top_k: int = 0,
        timeout_s: float | None = None,
        explain: OnExplained | None = None,
    ) -> PredictResponse:
        """One answer for each input, in their order.

        An input is a picture (a `pathlib.Path`, or its bytes), a text (str), or a row (a mapping by column, or a
        sequence in the columns' order); a Path that ends in ``.json`` holds one row or several. A list is always
        several inputs, so one row by order is ``[[5.1, 3.5]]``.

        Args:
            version: the version to ask; empty for the newest.
            top_k: how many labels to name; 0 for as many as the model's spec says.
            explain: asks the server where the call's time went, and is called with that before this returns (not
                by a server that does not tell, nor for an error): ``explain=print``.

        Raises:
            ClientError: see its codes.
            OSError: a file can't be read.
        """
        return self._transport.send(self._predict(model, version, inputs, top_k, explain), _positive(timeout_s))

    def predict_stream(
        self, model: str, prompt: str, *, version: str = "", timeout_s: float | None = None, **sampling: object
    ) -> Iterator[Written]:
        """A text in pieces, as a model writes it behind the prompt. Over gRPC; over REST there are OpenAI's routes.

        Args:
            sampling: `max_tokens`, `temperature`, `top_p`, `seed`, `stop`, ... as the model takes them.

        Closing the iterator ends the text, whose memory the server then frees.
        """
        return self._transport.stream(self._predict_stream(model, version, prompt, sampling), _positive(timeout_s))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        timeout_s: float | None = None,
        explain: OnExplained | None = None,
    ) -> dict[str, Array]:
        """The model's outputs (all of them, or those named) for input arrays by name, all with the batch first.

        An output of datatype BYTES is an array of bytes objects; the others are read-only views on the answer.
        `explain` is that of `predict`.
        """
        return self._transport.send(self._infer(model, version, inputs, outputs, explain), _positive(timeout_s))

    def server_ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether the server says that it is ready. A server that can't be reached is a ClientError, not False."""
        return self._transport.send(self._messages.server_ready(), _positive(timeout_s))

    def models(self, *, timeout_s: float | None = None) -> list[IndexEntry]:
        """Every version in the server's repository, with its state and why it is not served."""
        return self._transport.send(self._messages.models(), _positive(timeout_s))

    def model_metadata(self, model: str, *, version: str = "", timeout_s: float | None = None) -> ModelMetadata:
        """The names, datatypes and shapes of a model's tensors."""
        return self._transport.send(self._model_metadata(model, version), _positive(timeout_s))


class AsyncClient(_Calls):
    """`Client` for asyncio: the same URL, arguments, answers and errors. It belongs to the loop that first uses it.

    A `pathlib.Path` is read on the loop; give the bytes where that would hold others up.
    """

    def __init__(self, url: str, *, api_key: str = "") -> None:
        parts = _parse(url)
        wire = _wire(parts)
        self._messages = wire.Messages()
        self._transport: AsyncTransport = wire.AsyncTransport(
            parts, proxy=not _loopback(parts.hostname or ""), api_key=api_key
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a second time does nothing."""
        await self._transport.close()

    async def predict(
        self,
        model: str,
        inputs: Input | Sequence[Input],
        *,
        version: str = "",
        top_k: int = 0,
        timeout_s: float | None = None,
        explain: OnExplained | None = None,
    ) -> PredictResponse:
        """See `Client.predict`."""
        return await self._transport.send(self._predict(model, version, inputs, top_k, explain), _positive(timeout_s))

    def predict_stream(
        self, model: str, prompt: str, *, version: str = "", timeout_s: float | None = None, **sampling: object
    ) -> AsyncGenerator[Written]:
        """See `Client.predict_stream`."""
        return self._transport.stream(self._predict_stream(model, version, prompt, sampling), _positive(timeout_s))

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] = (),
        *,
        version: str = "",
        timeout_s: float | None = None,
        explain: OnExplained | None = None,
    ) -> dict[str, Array]:
        """See `Client.infer`."""
        return await self._transport.send(self._infer(model, version, inputs, outputs, explain), _positive(timeout_s))

    async def server_ready(self, *, timeout_s: float | None = None) -> bool:
        """See `Client.server_ready`."""
        return await self._transport.send(self._messages.server_ready(), _positive(timeout_s))

    async def models(self, *, timeout_s: float | None = None) -> list[IndexEntry]:
        """See `Client.models`."""
        return await self._transport.send(self._messages.models(), _positive(timeout_s))

    async def model_metadata(self, model: str, *, version: str = "", timeout_s: float | None = None) -> ModelMetadata:
        """See `Client.model_metadata`."""
        return await self._transport.send(self._model_metadata(model, version), _positive(timeout_s))
