"""A chat that streams, as OpenAI's clients ask for it: what is asked, and whether its answer is whole and the same.

A message for each golden prompt of the model, chosen greedily. No file says what a chat's text is, for the template
stands between; so the first text of a message is what every later one must be, whoever writes beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests.slo.streams import AsksStream
from server.load.payloads import RIGHT, Judged
from server.repository.golden import Golden

_TOKENS = 32
_PROMPT = "text_input"
_DONE = b"[DONE]"


@dataclass(frozen=True)
class ChatPayload(AsksStream):
    path: str
    body: bytes
    weight: float = 1.0
    told: list[str] = field(default_factory=list)
    """The first text that was told."""

    def read(self, event: bytes) -> tuple[Any, bool]:
        if event == _DONE:
            return {"done": True}, False
        one = json.loads(event)
        return one, any(choice["delta"].get("content") for choice in one.get("choices", ()))

    def judge(self, given: Sequence[Mapping[str, Any]]) -> Judged:
        for one in given:
            if "error" in one:
                return "failed", str(one["error"].get("message", one["error"]))
        if not given or "done" not in given[-1]:
            return "wrong", "the stream has no end"
        choices = [choice for one in given for choice in one.get("choices", ())]
        if not choices or choices[-1].get("finish_reason") not in ("stop", "length"):
            return "wrong", "the text has no end"
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        if not self.told:
            self.told.append(text)
        return RIGHT if text == self.told[0] else ("wrong", "the text is not the one that was told before")


def golden_chats(model: str, golden: Golden) -> list[ChatPayload]:
    """Raises KeyError: the model takes no text."""
    made = []
    for prompt in golden.inputs[_PROMPT].reshape(-1).tolist():
        text = prompt.decode() if isinstance(prompt, bytes) else str(prompt)
        asked = {"model": model, "stream": True, "temperature": 0, "max_tokens": _TOKENS}
        body = {**asked, "messages": [{"role": "user", "content": text}]}
        made.append(ChatPayload("/v1/chat/completions", json.dumps(body).encode()))
    return made
