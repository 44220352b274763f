"""PredictStream: a text in pieces as it is written, or the one answer of Predict.

A text is asked for as OpenAI's routes do it, so that models of the embedded engine and those of Triton's backends for
text answer alike. Who cancels the call, or whose deadline comes, ends the text; who reads slowly holds up its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from server.call import Responses, each
from server.errors import InvalidRequest
from server.transport.codec import predict_grpc
from server.transport.messages import only
from server.transport.openai.dialect import Dialect, Piece, writes_text
from server.types import InferRequest, InferResponse, PredictRequest, TextInput, Written

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.transport.methods import CallInfo


async def predict_stream(dataplane: DataPlane, messages: AsyncIterator[Any], info: CallInfo) -> AsyncGenerator[Any]:
    """The answers to the one message. Raises ServingError."""
    message = await only(messages)
    request = predict_grpc.decode_predict(message, info.deadline_ns, streams=True)
    request.tenant, request.metadata, request.received_ns = info.tenant, info.metadata, info.received_ns
    metadata = dataplane.model_metadata(request.model_name, request.model_version)
    if not writes_text(metadata):
        if message.HasField("sampling"):
            raise InvalidRequest("sampling", f"model '{request.model_name}' writes no text")
        yield predict_grpc.encode_predict(await dataplane.predict(request))
        return
    prompt = _prompt(request)
    dialect = Dialect(metadata)
    tensors = dialect.ask(prompt, predict_grpc.sampling_of(message), stream=True, logprobs=None, templated=False)
    finish = ""
    async with aclosing(_responses(dataplane, request, tensors)) as responses:
        async for response in responses:
            piece = _written(dialect.read(response))
            finish = piece.finish_reason or finish
            if response.outputs:
                yield predict_grpc.encode_written(response.model_name, response.model_version, request.id, piece)
    if not finish:
        # Of a model that tells no reason: it came to an end by itself, as over OpenAI's routes.
        piece = Written("", "stop", 0, 0)
        yield predict_grpc.encode_written(response.model_name, response.model_version, request.id, piece)


def _prompt(request: PredictRequest) -> str:
    if request.top_k:
        raise InvalidRequest("top_k", f"model '{request.model_name}' names no labels; tokens are of sampling.top_k")
    if len(request.inputs) != 1:
        raise InvalidRequest("inputs", f"must be 1 of a model that writes text, got {len(request.inputs)}")
    [prompt] = request.inputs
    if not isinstance(prompt, TextInput):
        raise InvalidRequest("inputs[0]", "must be text")
    return prompt.text


def _responses(dataplane: DataPlane, asked: PredictRequest, tensors: Any) -> AsyncGenerator[InferResponse]:
    arrived = asyncio.Event()
    responses = Responses(arrived.set)
    request = InferRequest(
        asked.model_name,
        tensors,
        on_settle=responses.settle,
        received_ns=asked.received_ns,
        model_version=asked.model_version,
        id=asked.id,
        deadline_ns=asked.deadline_ns,
        tenant=asked.tenant,
        caller=responses,
    )
    if asked.metadata:
        request.metadata = asked.metadata
    dataplane.stream((request,))
    return each(request, responses, arrived, dataplane.cancel)


def _written(piece: Piece) -> Written:
    return Written(piece.text, piece.finish, piece.prompt_tokens or 0, piece.tokens or 0)
