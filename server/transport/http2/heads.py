"""Header blocks to the heads of their calls, remembering what repeats.

Most clients send the same bytes again, or bytes that are alike: each way here is for what the one before can't tell.

1. as a block whose bytes are known;
2. as a block of a known pattern (`alike.py`);
3. decoded, as a list of fields with a known outline, most likely the last one's;
4. field by field.

What bytes mean depends on HPACK's dynamic table, so 1 and 2 hold while the table does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from server.errors import Code
from server.security.gate import HEADERS
from server.transport.forwarding import forwarded
from server.transport.http2.alike import Outline, OutlineKey, Pattern, outline_key
from server.transport.http2.fields import Field, check_request
from server.transport.http2.head import Head, Opening, read_head, refused, within
from server.transport.http2.hpack import Decoder, HeaderListTooLarge
from server.transport.methods import Method
from server.transport.status import Failure

if TYPE_CHECKING:
    from server.security.gate import Gate

_READ = (
    b":method",
    b":path",
    b"content-type",
    b"content-length",
    b"grpc-encoding",
    b"grpc-accept-encoding",
    b"x-explain",
    b"x-tenant",
    *HEADERS,
)
"""The fields that a head depends on, beside grpc-timeout."""
_KEPT = 256
"""Blocks that are remembered; a client repeats a handful."""
_KEPT_BYTES = 1024
"""Of a block, so that a connection can't make much of being remembered."""
_PATTERNS = 8
"""Few, because they are tried one after the other."""


class Heads:
    """The heads of one connection."""

    __slots__ = (
        "_alike",
        "_decoder",
        "_gate",
        "_latest",
        "_max_list_bytes",
        "_methods",
        "_outlines",
        "_patterns",
        "_seen",
        "known",
    )

    def __init__(
        self, decoder: Decoder, methods: Mapping[bytes, Method], max_list_bytes: int, gate: Gate | None = None
    ) -> None:
        self._decoder = decoder
        self._gate = gate
        self._methods = methods
        self._max_list_bytes = max_list_bytes
        self.known: dict[bytes, Opening] = {}
        """By blocks."""
        self._seen: set[int] = set()
        """Hashes of blocks that came once since the table changed. Those that come again will be `known`."""
        self._patterns: list[Pattern] = []
        """Blocks came of the first one last."""
        self._outlines: dict[OutlineKey, Outline] = {}
        self._latest: Outline | None = None
        """That of the last list of fields, if it was among them."""
        self._alike: dict[tuple[bytes | None, ...], Head] = {}
        """By what is read of the fields, for lists that differ in what nobody reads."""

    def read(self, block: bytes) -> Opening:
        """What is in a block that is not `known`, which it may be from then on.

        Raises:
            HpackError: the block can't be decoded, nor can any that follows.
            StreamFault: the request is malformed.
        """
        for pattern in self._patterns:
            opening = pattern.opening(block)
            if opening is not None:
                if pattern is not self._patterns[0]:
                    self._patterns.remove(pattern)
                    self._patterns.insert(0, pattern)
                if block == pattern.latest:
                    self._keep(block, opening)
                pattern.latest = block
                return opening
        before = self._decoder.insertions
        try:
            fields = self.fields(block)
        except HeaderListTooLarge as error:
            return refused(Failure(Code.TOO_LARGE, str(error))), 0
        outline = self._latest
        opening = outline.opening(fields) if outline is not None else None
        if opening is None:
            key = outline_key(fields)
            outline = self._latest = self._outlines.get(key)
            opening = outline.opening(fields) if outline is not None else None
            if opening is None:
                opening = self._learn(key, fields)
        if self._decoder.insertions == before:
            self._remember(block, opening)
            if outline is not None and outline.varies:
                self._learn_pattern(block, fields, outline)
        return opening

    def fields(self, block: bytes) -> Sequence[Field]:
        """Decode any block, for the table's sake if for no other.

        Raises:
            HpackError, HeaderListTooLarge
        """
        before = self._decoder.insertions
        try:
            return self._decoder.decode(block, self._max_list_bytes)
        finally:
            if self._seen and self._decoder.insertions != before:
                # Whatever is remembered was seen first; mostly it is nothing, where a client inserts with each call.
                self.known.clear()
                self._seen.clear()
                self._patterns.clear()

    def _learn(self, key: OutlineKey, fields: Sequence[Field]) -> Opening:
        """What is in a list of fields whose outline is not known, or which may be malformed. Raises StreamFault."""
        check_request(fields)
        outline = Outline(self._find(dict(fields)), fields)
        if sum([len(name) + len(value) for name, value in fields]) <= _KEPT_BYTES:
            if len(self._outlines) >= _KEPT:
                self._outlines.clear()
            self._outlines[key] = outline
        return outline.checked_opening(fields)

    def _find(self, values: Mapping[bytes, bytes]) -> Head:
        key = tuple(map(values.get, _READ))
        head = self._alike.get(key)
        if head is None:
            head = read_head(values, self._methods, self._gate)
            if sum([len(value) for value in key if value]) <= _KEPT_BYTES:
                if len(self._alike) >= _KEPT:
                    self._alike.clear()
                self._alike[key] = head
        return head

    def _learn_pattern(self, block: bytes, fields: Sequence[Field], outline: Outline) -> None:
        """Others like this block may come: it has an outline that came before."""
        if len(self._patterns) < _PATTERNS and len(block) <= _KEPT_BYTES:
            with suppress(ValueError):
                self._patterns.insert(0, Pattern(block, fields, outline, self._max_list_bytes))

    def _remember(self, block: bytes, opening: Opening) -> None:
        mark = hash(block)
        if mark not in self._seen:
            if len(self._seen) >= _KEPT:
                self._seen.clear()
            self._seen.add(mark)
        else:
            self._keep(block, opening)

    def _keep(self, block: bytes, opening: Opening) -> None:
        if len(block) <= _KEPT_BYTES:
            if len(self.known) >= _KEPT:
                self.known.clear()
            self.known[block] = opening


class ForwardingHeads(Heads):
    """Of a server that hands metadata on: what heads say may differ from call to call, so those alone are remembered
    whose bytes come again."""

    __slots__ = ("_forwards",)

    def __init__(
        self,
        decoder: Decoder,
        methods: Mapping[bytes, Method],
        max_list_bytes: int,
        forwards: Sequence[str],
        gate: Gate | None = None,
    ) -> None:
        """`forwards`: names, in lower case."""
        super().__init__(decoder, methods, max_list_bytes, gate)
        self._forwards = forwards

    def read(self, block: bytes) -> Opening:
        before = self._decoder.insertions
        try:
            fields = self.fields(block)
        except HeaderListTooLarge as error:
            return refused(Failure(Code.TOO_LARGE, str(error))), 0
        check_request(fields)
        values = dict(fields)
        head = read_head(values, self._methods, self._gate)
        head.metadata = forwarded(self._forwards, lambda name: values.get(name.encode(), b"").decode("latin-1"))
        head.asks = head.asks or bool(head.metadata)
        timeout = values.get(b"grpc-timeout")
        opening = (head, 0) if timeout is None or head.refusal is not None else within(head, timeout)
        if self._decoder.insertions == before:
            self._remember(block, opening)
        return opening
