"""What a client asks and gets, whatever the wire: the calls, their answers, and the two protocols."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from server.client.errors import ClientError
from server.errors import Code
from server.explain import Explained, parse_server_timing
from server.tensor import Array, Tensor
from server.types import IndexEntry, ModelMetadata, PredictResponse, RawInput, Written

T = TypeVar("T")

OnExplained = Callable[[Explained], None]
"""Gets the server's account of where the time of a call went, before the call returns."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One message ready to be sent, and the function that reads its answer; knows no socket."""

    request: Any
    read: Callable[[Any], T]
    explain: OnExplained | None = None
    """Given, the call asks the server to explain it."""

    def answer(self, reply: Any, url: str, server_timing: str = "") -> T:
        """The answer in `reply`. Raises ClientError INTERNAL if it is not one of this protocol."""
        try:
            answer = self.read(reply)
            explained = parse_server_timing(server_timing) if self.explain and server_timing else None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ClientError(Code.INTERNAL, f"{url}: the answer can't be read: {error!r}") from error
        if self.explain is not None and explained is not None:
            self.explain(explained)
        return answer


class Messages(Protocol):
    """The calls as messages of one wire: plain functions of their arguments, the same for sync and asyncio."""

    def predict(self, model: str, version: str, inputs: Sequence[RawInput], top_k: int) -> Call[PredictResponse]: ...

    def predict_stream(
        self, model: str, version: str, prompt: str, sampling: Mapping[str, object]
    ) -> Call[Written]: ...

    def infer(
        self, model: str, version: str, inputs: Sequence[Tensor], outputs: Sequence[str]
    ) -> Call[dict[str, Array]]: ...

    def server_ready(self) -> Call[bool]: ...

    def models(self) -> Call[list[IndexEntry]]: ...

    def model_metadata(self, model: str, version: str) -> Call[ModelMetadata]: ...


class Transport(Protocol):
    """Moves messages over connections that it keeps."""

    def send(self, call: Call[T], timeout_s: float | None) -> T: ...

    def stream(self, call: Call[T], timeout_s: float | None) -> Iterator[T]: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    async def send(self, call: Call[T], timeout_s: float | None) -> T: ...

    def stream(self, call: Call[T], timeout_s: float | None) -> AsyncGenerator[T]: ...

    async def close(self) -> None: ...
