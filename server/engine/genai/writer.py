"""Many texts written at once: each step gives every text its next token, and takes in some of the prompts that wait.

Prompts are taken in piece by piece, `chunk` tokens each; in a step as many pieces as one piece has room for: texts that
run wait for no more than that. Where a prompt's pieces begin depends on the prompt alone, and a row's numbers are the
same in any company, so that a text is the same alone and among others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.engine.genai.cache import KvCache
from server.engine.genai.forward import Forward
from server.engine.genai.rows import Rows
from server.engine.genai.sampling import Likely, likely
from server.engine.genai.text import LOGPROBS, Text
from server.tensor import Array


@dataclass(slots=True)
class Step:
    """What one step did."""

    pieces: list[tuple[Text, Mapping[str, Array]]] = field(default_factory=list)
    """Responses, one of a text at most."""
    wrote: list[Text] = field(default_factory=list)
    """Those that came to have a token more."""
    failed: list[Text] = field(default_factory=list)
    """Those for which the model gave what is no number. They are over."""
    prefilled: int = 0
    """Tokens of prompts that were taken in."""
    prefill_ns: int = 0
    """The part of its time that this took."""


class Writer:
    """Of one model. All methods are called by one thread."""

    def __init__(self, forward: Forward, cache: KvCache, chunk: int) -> None:
        self._forward = forward
        self._chunk = chunk
        self._rows: Rows[Text] = Rows(cache)
        self._prompts: deque[Text] = deque()
        """Those that are not wholly taken in, the oldest first."""
        self._held: set[Text] = set()

    @property
    def busy(self) -> bool:
        """There is something for a step to do."""
        return bool(self._prompts or self._rows.active)

    @property
    def tokens(self) -> int:
        """In the cache."""
        return sum(text.length for text in (*self._rows.active, *self._prompts, *self._held))

    def join(self, text: Text) -> None:
        """Begin a text. There is a free row."""
        self._rows.take(text)
        self._prompts.append(text)

    def leave(self, text: Text) -> None:
        """Free its memory. Does nothing for one that is over."""
        if text.row < 0:
            return
        if text in self._prompts:
            self._prompts.remove(text)
        self._held.discard(text)
        self._rows.release(text)

    def hold(self, text: Text) -> None:
        """No token more for now; it keeps its memory. Only what runs can be held."""
        if text.row >= 0 and text not in self._held and text not in self._prompts:
            self._held.add(text)
            self._rows.deactivate(text)

    def go_on(self, text: Text) -> None:
        """It was held, and is no more."""
        if text in self._held:
            self._held.remove(text)
            self._rows.activate(text)

    def step(self) -> Step:
        """Some tokens of prompts, and one of each text that runs."""
        step = Step()
        self._decode(step)
        if self._prompts:
            began_ns = time.monotonic_ns()
            self._prefill(step)
            step.prefill_ns = time.monotonic_ns() - began_ns
        return step

    def _decode(self, step: Step) -> None:
        texts = self._rows.active
        if not texts:
            return
        tokens = np.fromiter((text.last for text in texts), np.int64, len(texts))
        lengths = np.fromiter((text.length for text in texts), np.int64, len(texts))
        logits = self._forward.decode(tokens, lengths)
        for text in texts:
            text.length += 1
        self._choose(texts, logits, step)

    def _prefill(self, step: Step) -> None:
        while self._prompts:
            text = self._prompts[0]
            piece = text.prompt[text.length : text.length + self._chunk]
            if step.prefilled and step.prefilled + len(piece) > self._chunk:
                return
            logits = self._forward.prefill(text.row, piece, text.length)
            text.length += len(piece)
            step.prefilled += len(piece)
            if text.length == len(text.prompt):
                self._prompts.popleft()
                self._rows.activate(text)
                self._choose([text], logits[None], step)

    def _choose(self, texts: Sequence[Text], logits: NDArray[np.float32], step: Step) -> None:
        best = logits.argmax(axis=1)
        # Of all rows together: a call of numpy for each would take longer than a pass of a small model.
        finite = np.isfinite(logits[np.arange(len(texts)), best]).tolist()
        for text, token, sound, scores in zip(texts, best.tolist(), finite, logits, strict=True):
            if not sound:
                step.failed.append(text)
                self.leave(text)
                continue
            if not text.sampler.plain:
                token = text.sampler.choose(scores, text.made)
            told: Sequence[Likely] = ()
            if text.tells_logprobs:
                count = (text.sampling.logprobs or 0) if LOGPROBS in text.wanted.outputs else 0
                told = likely(scores, token, count)
            text.add(token, told)
            step.wrote.append(text)
            outputs = text.tell()
            if outputs is not None:
                step.pieces.append((text, outputs))
            if text.finish:
                self.leave(text)
