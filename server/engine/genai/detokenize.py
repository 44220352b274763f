"""Tokens to text as they come, never in the middle of a character. Pure.

A token of a byte-level vocabulary is some bytes of UTF-8, whatever stands around it: these are looked up. What others
say may depend on those before them (a space in front). So there a token is decoded together with those since the last
whole character, and its text is what that adds, but for a replacement character at the end: more may be needed there.
At a text's end what makes no whole character is left out.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

Decode = Callable[[Sequence[int]], str]
"""Text of a list of tokens; bytes that make no character as U+FFFD."""
Spell = Callable[[int], Mapping[str, object]]

_BROKEN = "\ufffd"
_WINDOW, _KEPT = 32, 8
"""Where no token ends with a whole character for so many, the last ones are decoded without those before them."""


class Detokenizer(Protocol):
    """Of one text."""

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is not whole."""


def detokenizers(tokenizer: Any, *, skip_special_tokens: bool) -> Callable[[], Detokenizer]:
    """What makes one for each text of a tokenizer (of `tokenizers`)."""
    if _byte_level(tokenizer):
        return partial(Lookup, TokenBytes(tokenizer, skip_special_tokens=skip_special_tokens))
    return partial(Window, partial(tokenizer.decode, skip_special_tokens=skip_special_tokens))


def _byte_level(tokenizer: Any) -> bool:
    return type(tokenizer.decoder).__name__ == "ByteLevel"


def _byte_of_character() -> Mapping[str, int]:
    """Byte-level vocabularies are written in characters that can be seen. Source: GPT-2's bytes_to_unicode."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in seen]
    return {**{chr(byte): byte for byte in seen}, **{chr(256 + at): byte for at, byte in enumerate(others)}}


_BYTE_OF = _byte_of_character()


class TokenBytes(dict[int, bytes]):
    """What each token of a byte-level vocabulary says, found out when it is first asked for. One that is none, or is
    left out, says nothing."""

    def __init__(self, tokenizer: Any, *, skip_special_tokens: bool) -> None:
        super().__init__()
        self._name_of = tokenizer.id_to_token
        added = tokenizer.get_added_tokens_decoder().values() if skip_special_tokens else ()
        self._skipped = {token.content for token in added if token.special}

    def __missing__(self, token: int) -> bytes:
        name = self._name_of(token)
        if name is None or name in self._skipped:
            said = b""
        else:
            try:
                said = bytes([_BYTE_OF[character] for character in name])
            except KeyError:  # one that was added, as it is written
                said = name.encode()
        self[token] = said
        return said


def spelling(tokenizer: Any) -> Spell:
    """How each token of a tokenizer is written, as Triton's vLLM backend tells it beside its probability; of a part of
    a character, by a byte-level vocabulary, the ``bytes`` as well."""
    bytes_of = TokenBytes(tokenizer, skip_special_tokens=False) if _byte_level(tokenizer) else None

    def spell(token: int) -> Mapping[str, object]:
        text = tokenizer.decode([token], skip_special_tokens=False)
        if bytes_of is None or _BROKEN not in text:
            return {"decoded_token": text}
        return {"decoded_token": text, "bytes": list(bytes_of[token])}

    return spell


class Lookup:
    """Of tokens that are bytes."""

    __slots__ = ("_bytes_of", "_decode")

    def __init__(self, bytes_of: Mapping[int, bytes]) -> None:
        self._bytes_of = bytes_of
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token: int) -> str:
        """See `Detokenizer`."""
        return self._decode(self._bytes_of[token])


class Window:
    """Of any tokens. All that `push` returned, joined, is the text of all tokens, to the last whole character."""

    __slots__ = ("_decode", "_fresh", "_told", "_window")

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        """The tokens that are decoded together: the last ones that were told whole, and those since."""
        self._fresh = 0
        """How many of them came since."""
        self._told = ""
        """What was told of the window's text."""

    def push(self, token: int) -> str:
        """See `Detokenizer`."""
        self._window.append(token)
        self._fresh += 1
        text = self._decode(self._window)
        # Of several broken characters only the last one may still become whole.
        whole = text.removesuffix(_BROKEN)
        new, self._told = whole[len(self._told) :], whole
        if len(whole) == len(text):
            self._keep(self._fresh)
        elif len(self._window) > _WINDOW:
            self._keep(_KEPT)
        return new

    def _keep(self, tokens: int) -> None:
        self._window, self._fresh = self._window[-tokens:], 0
        self._told = self._decode(self._window).removesuffix(_BROKEN)
