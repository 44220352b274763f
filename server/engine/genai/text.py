"""One text that is being written: its prompt, its tokens so far, and what of them was told."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
from numpy.typing import NDArray

from server.engine.genai.detokenize import Detokenizer, Spell
from server.engine.genai.parameters import Sampling
from server.engine.genai.sampling import Likely, Sampler
from server.engine.genai.stops import StopStrings
from server.tensor import Tensor

TEXT = "text_output"
FINISH = "finish_reason"
CUMULATIVE = "cumulative_logprob"
LOGPROBS = "logprobs"
PROMPT_TOKENS = "num_input_tokens"
TOKENS = "num_output_tokens"

STOP, LENGTH = "stop", "length"
"""Why a text ends: an end token or a stop string, or as many tokens as it may have. Names: vLLM's, and OpenAI's."""

_ONE = (1,)
_COUNT, _FLOAT = struct.Struct("<I"), struct.Struct("<f")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request wants to be told."""

    outputs: frozenset[str]
    stream: bool
    """Pieces as they are made; else all in one."""
    prompt: str
    """Told in front of the text; empty for none."""


@dataclass(slots=True, eq=False)
class Text:
    """`prompt` has 1 token or more, and with `max_tokens` no more than the context."""

    prompt: NDArray[np.int64]
    max_tokens: int
    sampling: Sampling
    wanted: Wanted
    sampler: Sampler
    detokenizer: Detokenizer
    stops: StopStrings
    ends: Collection[int]
    spell: Spell
    row: int = -1
    length: int = 0
    """Tokens in the cache."""
    made: int = 0
    """Tokens chosen, an end token counted in."""
    last: int = 0
    """The token that was chosen last; it is not in the cache yet."""
    finish: str = ""
    """Why it ended; empty while it goes on."""
    tells_logprobs: bool = field(init=False)
    _ends: Collection[int] = field(init=False)
    _untold: list[str] = field(default_factory=list)
    """None of them empty, while the text goes on."""
    _logprobs: list[list[Likely]] = field(default_factory=list)
    _logprob: float = 0.0
    _told: int = 0
    """Of `made`."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    def __post_init__(self) -> None:
        self.tells_logprobs = bool({LOGPROBS, CUMULATIVE} & self.wanted.outputs)
        self._ends = () if self.sampling.ignore_eos else self.ends

    def add(self, token: int, likely: Sequence[Likely]) -> None:
        """It goes on with this token. `likely`: itself first; empty if that is not told."""
        self.last = token
        self.made += 1
        if likely:
            self._logprob += likely[0].logprob
            self._logprobs.append(list(likely))
        ended = token in self._ends
        piece = "" if ended and self.sampling.skip_special_tokens else self.detokenizer.push(token)
        if piece:
            self._pass_on(piece)
            if self.finish:
                return
        if ended:
            self._end(STOP)
        elif self.made >= self.max_tokens:
            self._end(LENGTH)

    def _pass_on(self, piece: str) -> None:
        if not self.sampling.stop or self.made < self.sampling.min_tokens:
            self._untold.append(piece)
            return
        told = self.stops.push(piece)
        if told.text:
            self._untold.append(told.text)
        if told.stopped is not None:
            self.finish = STOP

    def _end(self, reason: str) -> None:
        self._untold.append(self.stops.flush())
        self.finish = reason

    def tell(self) -> list[Tensor] | None:
        """The outputs of the next response; None: there is nothing to tell yet."""
        wanted = self.wanted
        if not self.finish and not (wanted.stream and self._untold):
            return None
        text = "".join(self._untold)
        self._untold.clear()
        if wanted.prompt and not self._told:
            text = wanted.prompt + text
        if len(wanted.outputs) == 1 and TEXT in wanted.outputs:
            # As most streams are: what they are told of each token is half of what it costs beside the pass.
            outputs = [_string(TEXT, text.encode())]
        else:
            outputs = [self._make(name, text) for name in wanted.outputs]
            self._logprobs.clear()
        self._told = self.made
        return outputs

    def _make(self, name: str, text: str) -> Tensor:
        if name == TEXT:
            return _string(name, text.encode())
        if name == FINISH:
            return _string(name, self.finish.encode())
        if name == LOGPROBS:
            return _string(name, self._tell_logprobs())
        if name == CUMULATIVE:
            return Tensor(name, "FP32", _ONE, _FLOAT.pack(self._logprob))
        count = len(self.prompt) if name == PROMPT_TOKENS else self.made - self._told
        return Tensor(name, "UINT32", _ONE, _COUNT.pack(count))

    def _tell_logprobs(self) -> bytes:
        """As Triton's vLLM backend: for each token an object by token, the chosen one first."""
        told = [
            {str(one.token): {"logprob": one.logprob, "rank": one.rank, **self.spell(one.token)} for one in likely}
            for likely in self._logprobs
        ]
        return orjson.dumps(told)


def _string(name: str, value: bytes) -> Tensor:
    return Tensor(name, "BYTES", _ONE, _COUNT.pack(len(value)) + value)
