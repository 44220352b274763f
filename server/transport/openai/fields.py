"""OpenAI's bodies -> what is asked: every field is read, or refused by its name.

Sampling options beyond OpenAI's have vLLM's names, as its own server takes them.
Source: OpenAI API reference, "Create chat completion", "Create completion".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest, Unsupported
from server.transport.codec.tensors import quoted
from server.transport.codec.v2_rest import load_json

MOST_CHOICES = 16
"""Of all prompts of a request together."""
MOST_MESSAGES = 4096
MOST_TOP_LOGPROBS = 20
_ROLES = ("system", "developer", "user", "assistant")

_SAMPLING = frozenset(
    {
        *("temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty", "stop"),
        *("min_tokens", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"),
    }
)
"""Handed on as they are; the model checks them."""
_WITHOUT_EFFECT: Mapping[str, tuple[object, ...]] = {
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
"""What is not done here, with the values that ask for nothing."""
_READ = frozenset({"model", "n", "stream", "stream_options", "seed", "max_tokens", "priority", "logprobs", "user"})
"""`user` names the caller's own user, and nothing is made of it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, in Triton's terms. `sampling` has vLLM's names."""

    model: str
    prompts: Sequence[str]
    """Empty for a chat, whose prompt is made of `messages`."""
    messages: Sequence[Mapping[str, object]]
    sampling: Mapping[str, Any]
    seed: int | None
    n: int
    stream: bool
    include_usage: bool
    logprobs: int | None
    """So many of the likeliest tokens; None: none, and no probabilities."""
    priority: int


def read_completion(body: bytes) -> Ask:
    """Raises InvalidRequest, Unsupported: names the field."""
    document = _document(body, _READ | {"prompt"})
    prompt = document.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise InvalidRequest("prompt", "must be a string, or a list of 1 or more")
    logprobs = _whole(document, "logprobs", 0, 5)
    return _ask(document, prompts, (), logprobs, document.get("max_tokens", 16))


def read_chat(body: bytes) -> Ask:
    """Raises InvalidRequest, Unsupported: names the field."""
    document = _document(body, _READ | {"messages", "max_completion_tokens", "top_logprobs"})
    messages = document.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= MOST_MESSAGES:
        raise InvalidRequest("messages", f"must be a list of 1 to {MOST_MESSAGES}")
    wanted = _flag(document, "logprobs")
    top = _whole(document, "top_logprobs", 0, MOST_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise InvalidRequest("top_logprobs", "needs logprobs to be true")
    if document.get("max_tokens") is not None and document.get("max_completion_tokens") is not None:
        raise InvalidRequest("max_completion_tokens", "is another name of max_tokens, which is there as well")
    most = document.get("max_completion_tokens")
    return _ask(
        document,
        (),
        [_message(f"messages[{index}]", message) for index, message in enumerate(messages)],
        (top or 0) if wanted else None,
        document.get("max_tokens") if most is None else most,
    )


def _document(body: bytes, known: frozenset[str]) -> dict[str, Any]:
    document = load_json("body", body)
    if not isinstance(document, dict):
        raise InvalidRequest("body", "must be an object")
    for name, value in document.items():
        if name in known or name in _SAMPLING or value is None:
            continue
        if name not in _WITHOUT_EFFECT:
            raise InvalidRequest(name[:64], "is not known")
        if value not in _WITHOUT_EFFECT[name]:
            raise Unsupported(name, "is not supported")
    if not isinstance(document.get("model"), str):
        raise InvalidRequest("model", "must be the name of a model")
    return document


def _ask(
    document: Mapping[str, Any],
    prompts: Sequence[str],
    messages: Sequence[Mapping[str, object]],
    logprobs: int | None,
    max_tokens: Any,
) -> Ask:
    sampling = {name: value for name, value in document.items() if name in _SAMPLING and value is not None}
    n = _whole(document, "n", 1, MOST_CHOICES) or 1
    if n * max(1, len(prompts)) > MOST_CHOICES:
        raise InvalidRequest("n", f"makes {n * len(prompts)} choices of {len(prompts)} prompts, at most {MOST_CHOICES}")
    stream = _flag(document, "stream")
    options = document.get("stream_options")
    if options is not None and (not isinstance(options, dict) or not stream):
        raise InvalidRequest("stream_options", "must be an object, and stream true")
    if strange := set(options or ()) - {"include_usage"}:
        raise InvalidRequest(f"stream_options.{sorted(strange)[0][:64]}", "is not known")
    return Ask(
        model=document["model"],
        prompts=prompts,
        messages=messages,
        sampling={**sampling, "max_tokens": max_tokens},
        seed=_whole(document, "seed", -(2**63), 2**63 - 1),
        n=n,
        stream=stream,
        include_usage=_flag(options or {}, "include_usage"),
        logprobs=logprobs,
        priority=_whole(document, "priority", 0, 2**31 - 1) or 0,
    )


def _message(field: str, message: Any) -> dict[str, object]:
    if not isinstance(message, dict):
        raise InvalidRequest(field, "must be an object")
    role = message.get("role")
    if role not in _ROLES:
        told = quoted(role) if isinstance(role, str) else "none"
        raise InvalidRequest(f"{field}.role", f"must be one of {', '.join(_ROLES)}, got {told}")
    for name, value in message.items():
        if name not in ("role", "content", "name") and value is not None:
            raise Unsupported(f"{field}.{name[:64]}", "is not supported")
    named = {"name": message["name"]} if isinstance(message.get("name"), str) else {}
    return {"role": role, "content": _content(f"{field}.content", message.get("content")), **named}


def _content(field: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(field, "must be a string, or a list of parts")
    parts = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise Unsupported(f"{field}[{index}]", "only parts of type text, with their text, are supported")
        parts.append(part["text"])
    return "".join(parts)


def _whole(document: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(name, f"must be a whole number from {low} to {high}")
    return value


def _flag(document: Mapping[str, Any], name: str) -> bool:
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(name, "must be true or false")
    return bool(value)
