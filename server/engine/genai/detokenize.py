"""Tokens to text as they come, never in the middle of a character. Pure.

A token of a byte-level vocabulary may hold a part of a UTF-8 character, or what it says may depend on the tokens
before it (a space in front). So a token is decoded together with those since the last whole character, and its text is
what that adds, but for a replacement character at the end: more may be needed there. At a text's end it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
"""Text of a list of tokens; bytes that make no character as U+FFFD."""

_BROKEN = "\ufffd"
_WINDOW, _KEPT = 32, 8
"""Where no token ends with a whole character for so many, the last ones are decoded without those before them."""


class Detokenizer:
    """Of one text. All that `push` returned, joined, is the text of all tokens, to the last whole character."""

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
        """The text that this token completes; empty while a character is not whole."""
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
