"""What is told, in OpenAI's words: whole answers and the chunks of a stream.

Source: OpenAI API reference, "The chat completion object", "The chat completion chunk object", "The completion object".
"""

from __future__ import annotations

import codecs
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.transport.openai.dialect import Piece

_BROKEN = "\ufffd"
Logprobs = Sequence[Mapping[str, Mapping[str, Any]]]


@dataclass(slots=True)
class Choice:
    """One text, as far as it was told."""

    index: int
    text: str = ""
    finish: str = ""
    prompt_tokens: int | None = None
    tokens: int | None = None
    logprobs: list[Mapping[str, Mapping[str, Any]]] = field(default_factory=list)

    def add(self, piece: Piece, *, last: bool) -> None:
        """`last`: the model has said all. Without a reason of its own it came to an end by itself."""
        self.text += piece.text
        self.finish = piece.finish or (("stop" if last else "") if not self.finish else self.finish)
        if piece.prompt_tokens is not None:
            self.prompt_tokens = piece.prompt_tokens
        if piece.tokens is not None:
            self.tokens = (self.tokens or 0) + piece.tokens
        self.logprobs += piece.logprobs


class Answers:
    """To one request, of either kind."""

    def __init__(self, model: str, *, chat: bool, logprobs: bool, choices_of_a_prompt: int) -> None:
        self._chat = chat
        self._logprobs = logprobs
        self._n = choices_of_a_prompt
        self._whole = {
            "id": ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._chunk = {**self._whole, "object": "chat.completion.chunk" if chat else "text_completion"}
        self._offsets: dict[int, _Offset] = defaultdict(_Offset)

    def whole(self, choices: Sequence[Choice]) -> dict[str, object]:
        told = [
            {
                "index": choice.index,
                "finish_reason": choice.finish,
                "logprobs": self._tell(choice.index, choice.logprobs),
                **(
                    {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
                    if self._chat
                    else {"text": choice.text}
                ),
            }
            for choice in choices
        ]
        return {**self._whole, "choices": told, "usage": self.usage(choices)}

    def opening(self, index: int) -> dict[str, object]:
        """The chunk that begins a choice of a chat."""
        return self._of(index, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def piece(self, index: int, piece: Piece) -> dict[str, object]:
        content = {"delta": {"content": piece.text}} if self._chat else {"text": piece.text}
        return self._of(index, content, self._tell(index, piece.logprobs), None)

    def ending(self, index: int, finish: str) -> dict[str, object]:
        return self._of(index, {"delta": {}} if self._chat else {"text": ""}, None, finish)

    def counted(self, choices: Sequence[Choice]) -> dict[str, object]:
        """The last chunk, where it was asked for."""
        return {**self._chunk, "choices": [], "usage": self.usage(choices)}

    def usage(self, choices: Sequence[Choice]) -> dict[str, int] | None:
        """None: the model counts no tokens. A prompt of several choices is counted once."""
        if any(choice.tokens is None or choice.prompt_tokens is None for choice in choices):
            return None
        prompt = sum(choice.prompt_tokens or 0 for choice in choices if choice.index % self._n == 0)
        tokens = sum(choice.tokens or 0 for choice in choices)
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}

    def _of(self, index: int, content: Mapping[str, object], logprobs: object, finish: str | None) -> dict[str, object]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}
        return {**self._chunk, "choices": [choice]}

    def _tell(self, index: int, logprobs: Logprobs) -> dict[str, object] | None:
        if not self._logprobs:
            return None
        if self._chat:
            return {"content": [_chat_token(one) for one in logprobs], "refusal": None}
        tokens = [_chosen(one) for one in logprobs]
        offset = self._offsets[index]
        return {
            "tokens": [_name(token) for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [_by_name(of.values()) for of in logprobs],
            "text_offset": [offset.of_next(token) for token in tokens],
        }


class _Offset:
    """Where the tokens of a text begin, in its characters: a part of one is none yet."""

    __slots__ = ("_decode", "_so_far")

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._so_far = 0

    def of_next(self, token: Mapping[str, Any]) -> int:
        before = self._so_far
        self._so_far += len(self._decode(bytes(token.get("bytes") or token["decoded_token"].encode())))
        return before


def _chosen(token: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(iter(token.values()))


def _chat_token(token: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    best = sorted(token.values(), key=lambda one: one["rank"])
    # The chosen one is told in any case; of the likeliest it is one only by its rank.
    count = len(best) - (_chosen(token)["rank"] >= len(best))
    return {**_one(_chosen(token)), "top_logprobs": [_one(one) for one in best[:count]]}


def _one(token: Mapping[str, Any]) -> dict[str, object]:
    text = token["decoded_token"]
    # A part of a character has no text; without its bytes, they are not known.
    spelled = token.get("bytes") or (None if _BROKEN in text else list(text.encode()))
    return {"token": text, "logprob": token["logprob"], "bytes": spelled}


def _by_name(tokens: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Of those with the same name the first one's: the chosen one is the first of all."""
    told: dict[str, float] = {}
    for one in tokens:
        told.setdefault(_name(one), one["logprob"])
    return told


def _name(token: Mapping[str, Any]) -> str:
    """A part of a character by its bytes, as OpenAI's completions name it: several would have the same text."""
    if "bytes" in token:
        return "bytes:" + "".join([f"\\x{byte:02x}" for byte in token["bytes"]])
    return str(token["decoded_token"])
