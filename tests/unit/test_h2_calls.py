"""Prepared calls: their header blocks mean what their variant says, to a decoder that reads them in order."""

from __future__ import annotations

import struct

import pytest
from hpack import Decoder
from tritonclient.grpc import service_pb2 as pb

from loadtests.h2_calls import BLOCKS, DATA, END_HEADERS, END_STREAM, HEADERS, Calls, prepare

COUNT = 40
MESSAGE = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\0" * 8]).SerializeToString()


def parts(calls: Calls) -> list[tuple[int, bytes, bytes]]:
    """Stream, header block and message of each call, taken out of its two frames."""
    found = []
    for frames in calls.frames:
        head, flags, stream = struct.unpack_from(">IBI", frames)
        at = 9 + (head >> 8)
        assert (head & 0xFF, flags) == (HEADERS, END_HEADERS)
        data_head, data_flags, data_stream = struct.unpack_from(">IBI", frames, at)
        assert (data_head & 0xFF, data_flags, data_stream) == (DATA, END_STREAM, stream)
        data = frames[at + 9 :]
        assert (len(data), data[:5]) == (data_head >> 8, b"\0" + (len(data) - 5).to_bytes(4, "big"))
        found.append((stream, frames[9:at], data[5:]))
    return found


@pytest.mark.parametrize("table_bytes", [4096, 512, 0])
@pytest.mark.parametrize("variant", BLOCKS)
def test_every_block_says_where_the_call_goes(variant: str, table_bytes: int) -> None:
    """Whatever dynamic table the server allows."""
    decoder = Decoder()
    decoder.max_allowed_table_size = table_bytes
    decoder.header_table_size = table_bytes
    calls = parts(prepare(variant, MESSAGE, "/s/M", "host:1", COUNT, table_bytes))
    assert [stream for stream, _, _ in calls] == list(range(1, 2 * COUNT, 2))
    seen = set()
    for _, block, _ in calls:
        headers = dict(decoder.decode(block))
        assert (headers[":method"], headers[":path"], headers[":authority"]) == ("POST", "/s/M", "host:1")
        assert (headers["te"], headers["content-type"]) == ("trailers", "application/grpc")
        seen.add((headers.get("grpc-timeout"), headers.get("traceparent")))
    assert len(seen) == (COUNT if variant in ("literals", "inserted") else 1)


def test_the_same_headers_are_the_same_bytes_from_the_second_call_on() -> None:
    """Everything is in the dynamic table by then."""
    blocks = [block for _, block, _ in parts(prepare("same", MESSAGE, "/s/M", "host:1", COUNT))]
    assert len(set(blocks[1:])) == 1
    assert len(blocks[1]) == 7


def test_literals_leave_the_dynamic_table_alone_and_inserted_fields_do_not() -> None:
    """That is all that these two variants differ in."""
    heads = {}
    for variant in ("literals", "inserted"):
        decoder = Decoder()
        blocks = [block for _, block, _ in parts(prepare(variant, MESSAGE, "/s/M", "host:1", COUNT))]
        decoder.decode(blocks[0])
        before = decoder.header_table.dynamic_entries[0]
        decoder.decode(blocks[1])
        heads[variant] = decoder.header_table.dynamic_entries[0] is before
    assert heads == {"literals": True, "inserted": False}


def test_ids_differ_and_nothing_else() -> None:
    """The message is the caller's but for its id."""
    messages = [message for _, _, message in parts(prepare("ids", MESSAGE, "/s/M", "host:1", COUNT))]
    requests = [pb.ModelInferRequest.FromString(message) for message in messages]
    assert len({request.id for request in requests}) == COUNT
    for request in requests:
        request.id = ""
        assert request.SerializeToString() == MESSAGE
