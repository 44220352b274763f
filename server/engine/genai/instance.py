"""A loaded model that writes text: prompts are checked and turned into tokens here, and written by its `Writer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from server.engine.base import EngineSpec
from server.engine.genai.cache import KvCache
from server.engine.genai.detokenize import detokenizers, spelling
from server.engine.genai.folder import GenaiConfig
from server.engine.genai.forward import Forward
from server.engine.genai.options import EXCLUDE, PROMPT, RETURNS, SAMPLING, STREAM, Options
from server.engine.genai.parameters import Sampling, read_sampling
from server.engine.genai.sampling import Sampler
from server.engine.genai.stops import StopStrings
from server.engine.genai.text import TEXT, Text, Wanted
from server.engine.genai.writer import Step, Writer
from server.errors import EngineFailure, InvalidRequest
from server.tensor import Array
from server.types import Batch, Parameter

_LONGEST_TOKEN = 64
"""Bytes of a prompt for each token of the context, where no token of the vocabulary has more. It is not the longest
token alone because some tokenizers make one token of any run of spaces."""


class GenaiInstance:
    """`prepare` may be called by any thread; all else by one at a time."""

    device = "cpu"

    def __init__(
        self,
        spec: EngineSpec,
        config: GenaiConfig,
        options: Options,
        tokenizer: Any,
        forward: Forward,
        cache: KvCache,
        writer: Writer,
        threads: int,
    ) -> None:
        self.name = f"{spec.model_name}_0_cpu"
        self.threads = threads
        self.rows = options.rows
        self.kv_tokens = options.kv_tokens
        self._chunk = options.chunk
        self._model_name = spec.model_name
        self._outputs = frozenset(tensor.name for tensor in spec.outputs)
        self._config = config
        self._context = options.context
        self._tokenizer = tokenizer
        longest = max(len(token.encode()) for token in tokenizer.get_vocab())
        self._most_bytes = options.context * max(_LONGEST_TOKEN, longest)
        self._spell = spelling(tokenizer)
        self._detokenizers = {skip: detokenizers(tokenizer, skip_special_tokens=skip) for skip in (True, False)}
        self._forward = forward
        self._cache = cache
        self._writer = writer

    # --- a request ---------------------------------------------------------------------------------

    def prepare(
        self, inputs: Mapping[str, Array], parameters: Mapping[str, Parameter], outputs: Sequence[str] = ()
    ) -> Text:
        """Check a request, and turn its prompt into tokens. `outputs`: those it names; none: the text, and what it asks
        for by inputs.

        Raises:
            InvalidRequest: a parameter that is not known or out of its range, a prompt that is not UTF-8, has no
                token, or leaves no room in the context; an output that the model's config does not have.
        """
        document = _only(SAMPLING, inputs)
        sampling = read_sampling(document, parameters)
        raw = _only(PROMPT, inputs)
        assert raw is not None
        if len(raw) > self._most_bytes:
            # Before its tokens are counted, which would take seconds and gigabytes.
            room = f"the model's context of {self._context} tokens at most {self._most_bytes}"
            raise InvalidRequest(PROMPT, f"has {len(raw)} bytes, and {room}")
        try:
            prompt = raw.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(PROMPT, f"is not UTF-8: byte {error.start}") from error
        tokens: list[int] = self._tokenizer.encode(prompt, add_special_tokens=sampling.add_special_tokens).ids
        most = self._most(tokens, sampling)
        return Text(
            np.array(tokens, np.int64),
            most,
            sampling,
            self._wanted(inputs, outputs, prompt),
            Sampler(sampling, tokens, self._config.vocab_size, self._config.end_tokens),
            self._detokenizers[sampling.skip_special_tokens](),
            StopStrings(sampling.stop, include=sampling.include_stop_str_in_output),
            self._config.end_tokens,
            self._spell,
        )

    def _most(self, tokens: Sequence[int], sampling: Sampling) -> int:
        """Tokens that may be written."""
        if not tokens:
            raise InvalidRequest(PROMPT, "has no token")
        left = self._context - len(tokens)
        if left < 1:
            problem = f"has {len(tokens)} tokens, and the model's context is {self._context}: at least 1 must be left"
            raise InvalidRequest(PROMPT, problem)
        most = sampling.max_tokens or left
        if most > left:
            problem = (
                f"is {most}, and {len(tokens)} tokens of prompt leave {left} of the model's context of {self._context}"
            )
            raise InvalidRequest("max_tokens", problem)
        if sampling.min_tokens > most:
            raise InvalidRequest("min_tokens", f"is {sampling.min_tokens}, and max_tokens {most}")
        return most

    def _wanted(self, inputs: Mapping[str, Array], named: Sequence[str], prompt: str) -> Wanted:
        stream = _flag(STREAM, inputs, default=False)
        exclude = _flag(EXCLUDE, inputs, default=stream)
        if stream and not exclude:
            raise InvalidRequest(EXCLUDE, "must be true in a stream")
        outputs = set(named) or {TEXT} | {name for flag, name in RETURNS.items() if _flag(flag, inputs, default=False)}
        if missing := outputs - self._outputs:
            problem = f"asks for {', '.join(sorted(missing))}, which the model's config.pbtxt has no output for"
            raise InvalidRequest("outputs", problem)
        return Wanted(frozenset(outputs), stream, "" if exclude else prompt)

    # --- writing -----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return self._writer.busy

    @property
    def tokens(self) -> int:
        """In the cache now."""
        return self._writer.tokens

    def join(self, text: Text) -> None:
        self._writer.join(text)

    def leave(self, text: Text) -> None:
        self._writer.leave(text)

    def hold(self, text: Text) -> None:
        self._writer.hold(text)

    def go_on(self, text: Text) -> None:
        self._writer.go_on(text)

    def takes_in(self, waiting: int, running: int) -> int:
        """See `WritingInstance`."""
        return self._writer.takes_in(waiting, running)

    def step(self) -> Step:
        """Raises EngineFailure: a pass failed."""
        try:
            return self._writer.step()
        except Exception as error:
            raise EngineFailure(self._model_name, f"{self.name}: {error}") from error

    # --- for the loading of a model -----------------------------------------------------------------

    def run(self, batch: Batch) -> Mapping[str, Array]:
        """Write the text to each prompt, as a whole, one after another: what golden files are compared with.

        Raises:
            EngineFailure: see `step`.
            InvalidRequest: see `prepare`.
        """
        said = {name: array for name, array in batch.inputs.items() if name not in (PROMPT, STREAM)}
        told = [
            self._write(self.prepare({**said, PROMPT: prompt}, {})) for prompt in batch.inputs[PROMPT].reshape(-1, 1)
        ]
        return {name: np.concatenate([outputs[name] for outputs in told]) for name in told[0]}

    def warm_up(self) -> None:
        """A piece of a prompt, and two tokens behind it."""
        sampling = Sampling(max_tokens=2, temperature=0, ignore_eos=True)
        prompt = np.zeros(min(self._chunk, self._context - 2), np.int64)
        sampler = Sampler(sampling, prompt, self._config.vocab_size, ())
        wanted = Wanted(frozenset({TEXT}), stream=False, prompt="")
        detokenizer = self._detokenizers[True]()
        self._write(Text(prompt, 2, sampling, wanted, sampler, detokenizer, StopStrings(()), (), self._spell))

    def _write(self, text: Text) -> Mapping[str, Array]:
        self.join(text)
        try:
            while True:
                step = self.step()
                if text in step.failed:
                    raise EngineFailure(self._model_name, "the model's logits are no numbers")
                for _, outputs in step.pieces:
                    return {tensor.name: tensor.numpy() for tensor in outputs}
        finally:
            self.leave(text)

    def resident_bytes(self) -> int:
        """Memory of the cache that holds something."""
        return self._cache.resident_bytes()

    def close(self) -> None:
        """Free the model and its cache."""
        self._forward.close()
        self._cache.close()


def _only(name: str, inputs: Mapping[str, Array]) -> Any:
    """The one element of an input; None: it was left out."""
    array = inputs.get(name)
    if array is None:
        return None
    if array.size != 1:
        raise InvalidRequest(name, f"must have 1 element, got {array.size}: a request is one prompt")
    return array.reshape(-1)[0]


def _flag(name: str, inputs: Mapping[str, Array], *, default: bool) -> bool:
    value = _only(name, inputs)
    return default if value is None else bool(value)
