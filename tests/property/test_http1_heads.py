"""Heads without the fields that nobody asks for are the heads that they would be with them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.settings import HttpSettings
from server.transport.http1.head import Head, Heads, Refused
from server.transport.varying import VARYING

SETTINGS = HttpSettings(max_head_bytes=400, max_headers=6)
BYTES = st.sampled_from([b"", b"1", b" 2 ", b"\t", b"a\x80", b"a\x7f", b"a\r", b"a\n", b"\0", b'"', b"x" * 300])
LINES = st.one_of(
    st.builds(
        lambda name, middle, value: name + middle + value,
        st.sampled_from(
            [*sorted(VARYING)[:4], b"TRACEPARENT", b"traceparents", b"Content-Length", b"A", b"Host", b"Expect"]
        ),
        st.sampled_from([b":", b": ", b":\t", b" :", b""]),
        BYTES,
    ),
    st.sampled_from([b" folded", b"\tfolded", b"Transfer-Encoding: chunked", b"Connection: close, b3"]),
)


def said(heads: Heads, data: bytes) -> Any:
    try:
        head = heads.find(data)
    except Refused as refused:
        return refused.status, refused.cause
    fields = [(name, value) for name, value in head.headers if name not in VARYING]
    return head.method, head.path, fields, head.length, head.chunked, head.keep_alive, head.expects_continue


def _planned(_head: Head) -> None:
    """Nobody looks at it."""


@given(st.lists(st.lists(LINES, max_size=6), min_size=1, max_size=4))
def test_a_head_means_the_same_without_what_nobody_asks_for(messages: list[list[bytes]]) -> None:
    """Also what is refused is refused as it would be, whatever was known before."""
    apart, whole = Heads(SETTINGS, _planned, VARYING), Heads(SETTINGS, _planned)
    for lines in messages * 2:
        data = b"\r\n".join([b"POST /v2 HTTP/1.1", b"Host: x", *lines, b"", b""])
        assert said(apart, data) == said(whole, data)
