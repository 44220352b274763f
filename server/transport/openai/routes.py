"""OpenAI's routes: /v1/models, /v1/completions, /v1/chat/completions, over any model here that writes text.

A request of several choices is as many requests to the model, each with the next seed; they are served and cancelled
together. Errors have OpenAI's form, and the statuses that they have everywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import wraps
from typing import TYPE_CHECKING, NamedTuple

import orjson

from server.call import Responses
from server.errors import InvalidRequest, ServingError, UnknownModel, Unsupported
from server.transport.exchange import failure_reply
from server.transport.http1.reply import Headers, Reply, StreamedReply, json_reply
from server.transport.openai.answers import Answers, Choice
from server.transport.openai.dialect import PROMPT, Dialect, Piece, writes_text
from server.transport.openai.fields import Ask, read_chat, read_completion
from server.transport.status import failure_of
from server.types import InferRequest, InferResponse

if TYPE_CHECKING:
    from server.dataplane import DataPlane
    from server.transport.exchange import Exchange

_EVENTS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_DONE = b"data: [DONE]\n\n"
_SAMPLING_FIELD = "sampling_parameters."

Handler = Callable[["Exchange"], Awaitable[Reply | StreamedReply]]


def _in_its_form(prompt: str = PROMPT) -> Callable[[Handler], Handler]:
    """`prompt`: the field of the body that the model's prompt comes from."""

    def form(handler: Handler) -> Handler:
        @wraps(handler)
        async def handle(exchange: Exchange) -> Reply | StreamedReply:
            try:
                return await handler(exchange)
            except ServingError as error:
                plain = failure_reply(error)
                return Reply(plain.status, orjson.dumps(_error(error, prompt)), plain.headers)

        return handle

    return form


def _error(error: BaseException, prompt: str = PROMPT) -> dict[str, object]:
    failure = failure_of(error)
    field, message = None, failure.message
    if isinstance(error, InvalidRequest | Unsupported):
        # By its name in the body; to the model it has another one.
        field = prompt if error.field == PROMPT else error.field.removeprefix(_SAMPLING_FIELD)
        if message.startswith(error.field):
            message = field + message[len(error.field) :]
    kind = "invalid_request_error" if failure.http < 500 and failure.http != 429 else "server_error"
    told = {
        "message": message,
        "type": "rate_limit_error" if failure.http == 429 else kind,
        "param": field,
        "code": "model_not_found" if isinstance(error, UnknownModel) else failure.code.value,
    }
    return {"error": told}


@_in_its_form()
async def models(exchange: Exchange) -> Reply:
    """The models in service that write text."""
    dataplane = exchange.dataplane
    names = dict.fromkeys(entry.name for entry in dataplane.repository_index(ready=True))
    return json_reply({"object": "list", "data": [_model(name) for name in names if _writes(dataplane, name)]})


@_in_its_form()
async def model(exchange: Exchange) -> Reply:
    """One of them. Raises UnknownModel."""
    name = exchange.names["model"]
    if not _writes(exchange.dataplane, name):
        raise UnknownModel(name)
    return json_reply(_model(name))


def _writes(dataplane: DataPlane, name: str) -> bool:
    try:
        return writes_text(dataplane.model_metadata(name))
    except ServingError:
        return False


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "forwardpass"}


@_in_its_form("prompt")
async def completions(exchange: Exchange) -> Reply | StreamedReply:
    """Texts that continue their prompts."""
    ask = read_completion(await exchange.body())
    return await _answer(exchange, ask, ask.prompts, chat=False)


@_in_its_form("messages")
async def chat_completions(exchange: Exchange) -> Reply | StreamedReply:
    """The next message of a conversation."""
    ask = read_chat(await exchange.body())
    template = exchange.dataplane.chat_template(ask.model)
    if template is None:
        raise Unsupported("messages", f"model '{ask.model}' has no chat template: use /v1/completions")
    prompt = await asyncio.to_thread(template.render, ask.messages)
    return await _answer(exchange, ask, [prompt], chat=True)


async def _answer(exchange: Exchange, ask: Ask, prompts: Sequence[str], *, chat: bool) -> Reply | StreamedReply:
    dialect = Dialect(exchange.dataplane.model_metadata(ask.model))
    calls = _calls(exchange, ask, prompts, dialect, chat=chat)
    answers = Answers(ask.model, chat=chat, logprobs=ask.logprobs is not None, choices_of_a_prompt=ask.n)
    choices = [Choice(index) for index in range(len(calls))]
    told = _told(exchange.dataplane, calls, dialect, choices)
    if not ask.stream:
        async with aclosing(told):
            async for _ in told:
                pass
        return json_reply(answers.whole(choices))
    # The first piece decides the status: an error before it is answered as anywhere else.
    try:
        first = await anext(told)
    except BaseException:
        await told.aclose()
        raise
    opened = range(len(choices)) if chat else ()
    pieces = _events(first, told, answers, choices, opened, include_usage=ask.include_usage)
    return StreamedReply(200, _EVENTS, pieces, lambda error: _event(_error(error)))


class _Call(NamedTuple):
    number: int
    request: InferRequest
    responses: Responses
    arrived: asyncio.Event


def _calls(exchange: Exchange, ask: Ask, prompts: Sequence[str], dialect: Dialect, *, chat: bool) -> list[_Call]:
    arrived = asyncio.Event()
    calls: list[_Call] = []
    for prompt in prompts:
        for number in range(ask.n):
            sampling = ask.sampling if ask.seed is None else {**ask.sampling, "seed": _next(ask.seed, number)}
            responses = Responses(arrived.set)
            request = InferRequest(
                ask.model,
                dialect.ask(prompt, sampling, stream=ask.stream, logprobs=ask.logprobs, templated=chat),
                on_settle=responses.settle,
                received_ns=exchange.received_ns,
                deadline_ns=exchange.deadline_ns(),
                parameters={"priority": ask.priority} if ask.priority else {},
                tenant=exchange.tenant,
                caller=responses,
            )
            request.metadata = exchange.metadata
            calls.append(_Call(len(calls), request, responses, arrived))
    return calls


def _next(seed: int, number: int) -> int:
    """A seed is of 64 bits, and wraps."""
    return (seed + number + 2**63) % 2**64 - 2**63


async def _told(
    dataplane: DataPlane, calls: Sequence[_Call], dialect: Dialect, choices: Sequence[Choice]
) -> AsyncGenerator[tuple[int, Piece]]:
    """Pieces of all choices as they come, which are added to `choices` as well. Closing it cancels what is not over.

    Raises:
        ServingError: as one of them was settled; the others are cancelled.
    """
    under_way = list(calls)
    dataplane.stream([call.request for call in calls])
    try:
        while under_way:
            calls[0].arrived.clear()
            taken = [(call, popped) for call in under_way if (popped := call.responses.pop()) is not None]
            for call, (outcome, last) in taken:
                if not isinstance(outcome, InferResponse):
                    raise outcome
                if last:
                    under_way.remove(call)
                piece = dialect.read(outcome)
                choices[call.number].add(piece, last=last)
                yield call.number, piece
            if not taken:
                await calls[0].arrived.wait()
    finally:
        for call in under_way:
            if not call.request.settled:
                dataplane.cancel(call.request)
            call.responses.forget()


async def _events(
    first: tuple[int, Piece],
    told: AsyncGenerator[tuple[int, Piece]],
    answers: Answers,
    choices: Sequence[Choice],
    opened: Sequence[int],
    *,
    include_usage: bool,
) -> AsyncGenerator[bytes]:
    async with aclosing(told):
        ended: set[int] = set()
        yield b"".join([_event(answers.opening(index)) for index in opened]) + _next_events(
            first, answers, choices, ended
        )
        async for piece in told:
            yield _next_events(piece, answers, choices, ended)
        yield (_event(answers.counted(choices)) if include_usage else b"") + _DONE


def _next_events(piece: tuple[int, Piece], answers: Answers, choices: Sequence[Choice], ended: set[int]) -> bytes:
    index, told = piece
    events = _event(answers.piece(index, told)) if told.text or told.logprobs else b""
    if choices[index].finish and index not in ended:
        ended.add(index)
        events += _event(answers.ending(index, choices[index].finish))
    return events


def _event(document: object) -> bytes:
    return b"data: %s\n\n" % orjson.dumps(document)
