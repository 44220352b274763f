"""Many texts written at once: each step gives every text its next token, and takes in some of the prompts that wait.

Prompts are taken in piece by piece, `chunk` tokens each. Texts that run wait for one piece a step, and for up to
`_MOST_PIECES` the more prompts wait beside them: a pass over few rows takes nearly as long as one over many, so that
those who begin soon are worth a little waiting. First pieces that lie side by side share a pass. Where a prompt's
pieces begin depends on the prompt alone, and a row's numbers are the same in any company: so a text is the same, too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.engine.genai.cache import KvCache
from server.engine.genai.forward import Forward
from server.engine.genai.rows import Rows
from server.engine.genai.sampling import Likely, likely
from server.engine.genai.text import LOGPROBS, Text
from server.tensor import Tensor

_MOST_PIECES = 4
"""A step takes in, where all wait and nobody runs."""


@dataclass(slots=True)
class Step:
    """What one step did."""

    pieces: list[tuple[Text, Sequence[Tensor]]] = field(default_factory=list)
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
        left = self.takes_in(len(self._prompts), len(self._rows.active))
        while self._prompts and (group := self._group(left)):
            before = group[0].length
            pieces = [text.prompt[before : before + self._chunk] for text in group]
            logits = self._forward.prefill(group[0].row, pieces, before)
            left -= len(group) * max(map(len, pieces))
            whole = []
            for number, (text, piece) in enumerate(zip(group, pieces, strict=True)):
                text.length += len(piece)
                step.prefilled += len(piece)
                if text.length == len(text.prompt):
                    whole.append(number)
            for number in whole:
                self._prompts.remove(group[number])
                self._rows.activate(group[number])
            if whole:
                self._choose([group[number] for number in whole], logits[whole], step)

    def takes_in(self, waiting: int, running: int) -> int:
        """See `WritingInstance`."""
        return self._chunk * max(1, round(_MOST_PIECES * waiting / (waiting + running)))

    def _group(self, most: int) -> Sequence[Text]:
        """Whose next piece the next pass takes in: the oldest's, and of those behind it in the cache who begin with it,
        as many as make no more than `most` tokens, which a quarter may be padding of. Empty: it is too long."""
        first = self._prompts[0]
        longest = total = min(self._chunk, len(first.prompt) - first.length)
        if longest > most:
            return ()
        group = [first]
        beginning = {} if first.length else {text.row: text for text in self._prompts if not text.length}
        while (text := beginning.get(first.row + len(group))) is not None:
            size = min(self._chunk, len(text.prompt))
            longest, total = max(longest, size), total + size
            padded = longest * (len(group) + 1)
            if padded > most or 4 * total < 3 * padded:
                break
            group.append(text)
        return group

    def _choose(self, texts: Sequence[Text], logits: NDArray[np.float32], step: Step) -> None:
        best = logits.argmax(axis=1)
        # Of all rows together: a call of numpy for each would take longer than a pass of a small model.
        finite = np.isfinite(logits[np.arange(len(texts)), best]).tolist()
        for index, (text, token) in enumerate(zip(texts, best.tolist(), strict=True)):
            if not finite[index]:
                step.failed.append(text)
                self.leave(text)
                continue
            if not text.sampler.plain:
                token = text.sampler.choose(logits[index], text.made)
            told: Sequence[Likely] = ()
            if text.tells_logprobs:
                count = (text.sampling.logprobs or 0) if LOGPROBS in text.wanted.outputs else 0
                told = likely(logits[index], token, count)
            text.add(token, told)
            step.wrote.append(text)
            outputs = text.tell()
            if outputs is not None:
                step.pieces.append((text, outputs))
            if text.finish:
                self.leave(text)
