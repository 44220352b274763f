"""gRPC over HTTP/2: heads, messages, statuses and refusals, in bytes, without a socket."""

from __future__ import annotations

import asyncio
import gc
import gzip
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from server.errors import InvalidRequest, Overloaded, QueueFull
from server.proto.forwardpass.v1 import prediction_pb2 as ours
from server.settings import GrpcSettings
from server.tensor import Tensor
from server.transport.codec import predict_grpc
from server.transport.http2 import answers, frames
from server.transport.http2.answers import percent_encoded
from server.transport.http2.calls import Calls, Service
from server.transport.http2.frames import DATA, HEADERS, ErrorCode, window_update
from server.transport.http2.head import parse_timeout
from server.transport.http2.hpack_encode import encode
from server.transport.http2.messages import MessageReader
from server.transport.http2.unary import UnaryCall
from server.transport.inflate import inflate
from server.types import NO_DEADLINE, InferRequest
from tests.support.fake_dataplane import MODEL, FakeDataPlane
from tests.support.http2_client import (
    END_HEADERS,
    END_STREAM,
    INFER,
    LIVE,
    STREAM,
    Field,
    Frame,
    Peer,
    call_fields,
    data,
    headers,
    message,
    reset_code,
)

PREDICT = b"/forwardpass.v1.PredictionService/Predict"


def request(id: str = "x", model: str = MODEL, elements: int = 4) -> bytes:
    asked = pb.ModelInferRequest(model_name=model, id=id)
    for name in ("a", "b"):
        asked.inputs.add(name=name, datatype="FP32", shape=[1, elements])
        asked.raw_input_contents.append(np.arange(elements, dtype="<f4").tobytes())
    return bytes(asked.SerializeToString())


def predict_message(picture: bytes, model_name: str = "photos", model_version: str = "") -> bytes:
    inputs = [ours.Input(image=ours.Image(data=picture))]
    asked = ours.PredictRequest(model_name=model_name, model_version=model_version, inputs=inputs)
    return bytes(asked.SerializeToString())


class Session(Peer):
    """A peer whose connection has calls on it, over a scripted data plane."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self.dataplane = FakeDataPlane()
        self.service = Service(self.dataplane, self.connection.settings, Counter())
        self.wakes = 0
        self.calls = Calls(self.service, self.connection, self._woken)

    def _woken(self) -> None:
        self.wakes += 1

    def send(self, *parts: bytes) -> list[Frame]:
        """One read of the socket, and what goes out for it at once."""
        sent = super().send(*parts)
        if hasattr(self, "calls"):
            self.calls.handle(self.events)
        return sent + self.sent()

    async def settled(self) -> list[Frame]:
        """What goes out once the tasks have run."""
        found: list[Frame] = []
        for _ in range(20):
            await asyncio.sleep(0)
            found += self.sent()
        return found

    async def answered(self) -> list[Frame]:
        """What goes out until the call's trailers: what is large is inflated on a thread."""
        found: list[Frame] = []
        async with asyncio.timeout(30):
            while not any(f.kind == frames.HEADERS and f.flags & END_STREAM for f in found):
                await asyncio.sleep(0.001)
                found += self.sent()
        return found

    def call(self, path: bytes, body: bytes, *more: Field, stream_id: int = 1) -> list[Frame]:
        return self.send(headers(stream_id, call_fields(path, *more)), data(stream_id, body, END_STREAM))

    def status(self, sent: list[Frame]) -> tuple[int, str]:
        """Of the trailers, which are the last frame of HEADERS."""
        last = [f for f in sent if f.kind == frames.HEADERS][-1]
        assert last.flags & END_STREAM
        fields = self.fields(last)
        return int(fields[b"grpc-status"]), fields.get(b"grpc-message", b"").decode()


@pytest.fixture
async def session() -> Session:
    return Session()


async def test_an_infer_call(session: Session) -> None:
    """HEADERS with status 200, DATA with the one message, HEADERS with grpc-status 0."""
    head, body, trailers = session.call(INFER, message(request()))
    assert session.fields(head) == {b":status": b"200", b"content-type": b"application/grpc"}
    assert (body.flags, body.payload[:1], int.from_bytes(body.payload[1:5])) == (0, b"\0", len(body.payload) - 5)
    assert pb.ModelInferResponse.FromString(body.payload[5:]).id == "x"
    assert (session.fields(trailers), trailers.flags) == ({b"grpc-status": b"0"}, END_STREAM | END_HEADERS)
    assert not session.connection.streams


async def test_calls_of_one_read_go_to_the_data_plane_together(session: Session) -> None:
    """Whatever the order of their frames, and one that fails does not take the others with it."""
    given: list[int] = []
    submit = session.dataplane.submit
    session.calls._submit = lambda requests: (given.append(len(requests)), submit(requests))[1]  # type: ignore[func-returns-value]
    session.send(headers(101), data(101, message(request()), END_STREAM))
    bodies = [data(i, message(b"\xff" if i == 105 else request(str(i))), END_STREAM) for i in range(103, 121, 2)]
    sent = session.send(*[headers(i) for i in range(103, 121, 2)], *bodies)
    assert given == [1, 8]
    assert len([f for f in sent if f.kind == frames.DATA]) == 8


@pytest.mark.parametrize("size", [1, 3, 5, 6, 100])
async def test_a_message_in_pieces(session: Session, size: int) -> None:
    """However its DATA is cut, and with empty frames between, the message is the same."""
    whole = message(request())
    session.send(headers())
    pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
    sent = session.send(*[data(1, piece) + data(1) for piece in pieces], data(1, b"", END_STREAM))
    assert session.status(sent) == (0, "")
    assert len(session.dataplane.requests) == 1


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"", 12, "request: has no message"),
        (message(request()) * 2, 12, "request: has more than one message"),
        (message(request())[:-1], 3, "message: is cut off"),
        (b"\0\0", 3, "message: is cut off"),
        (b"\2" + message(request())[1:], 3, "message: has the compressed-flag 2"),
        (message(b"\xff\xff"), 3, "message: is not a valid inference.ModelInferRequest"),
        (message(request(), 1), 3, "message: is compressed, and grpc-encoding does not say how"),
        (b"\0\xff\xff\xff\xff", 8, "message: 4294967295 bytes, over the limit"),
        (message(request(model="y")), 5, "Request for unknown model: 'y' is not found"),
    ],
    ids=["none", "two", "cut off", "prefix cut", "flag 2", "no message", "compressed without", "length", "model"],
)
async def test_bad_requests(session: Session, body: bytes, code: int, text: str) -> None:
    """Each is answered by its status alone, and the next call on the connection is served."""
    sent = session.call(INFER, body) + await session.settled()
    assert [f.kind for f in sent if f.kind != frames.RST_STREAM] == [frames.HEADERS]
    status = session.status(sent)
    assert status[0] == code
    assert status[1].startswith(text)
    assert session.status(session.call(INFER, message(request()), stream_id=3)) == (0, "")
    assert session.calls.held_bytes == 0


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (call_fields(LIVE, without=[b"content-type"]), b"415"),
        (call_fields(LIVE, (b"content-type", b"application/json"), without=[b"content-type"]), b"415"),
        (call_fields(LIVE, (b"content-type", b"application/grpc-web"), without=[b"content-type"]), b"415"),
        ([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"x")], b"405"),
        ([(b":method", b"CONNECT"), (b":authority", b"x")], b"405"),
    ],
    ids=["no content-type", "json", "grpc-web", "GET", "CONNECT"],
)
@pytest.mark.parametrize("body", [False, True], ids=["without a body", "with a body"])
async def test_what_is_not_grpc(session: Session, fields: list[Field], status: bytes, body: bool) -> None:
    """A request that is not gRPC's is answered in HTTP's words, whether it has a body or not."""
    for stream_id in (1, 3):
        flags = END_HEADERS if body else END_HEADERS | END_STREAM
        sent = session.send(headers(stream_id, fields, flags), data(stream_id, b"x", END_STREAM) if body else b"")
        told = session.fields(sent[0])
        assert (told[b":status"], told[b"content-length"]) == (status, b"%d" % len(answers.NOT_GRPC))
        assert b"".join(f.payload for f in sent[1:]) == answers.NOT_GRPC
        assert [(f.kind, bool(f.flags & END_STREAM)) for f in sent] == [(HEADERS, False), (DATA, False), (DATA, True)]
        assert not session.connection.streams


async def test_head_is_told_the_same_without_the_text(session: Session) -> None:
    """RFC 9110 section 9.3.2: nothing behind the headers, which are those of a GET."""
    fields = [(b":scheme", b"http"), (b":path", b"/"), (b":authority", b"x")]
    get = session.send(headers(1, [(b":method", b"GET"), *fields], END_HEADERS | END_STREAM))
    head = session.send(headers(3, [(b":method", b"HEAD"), *fields], END_HEADERS | END_STREAM))
    assert session.fields(head[0]) == session.fields(get[0])
    assert [(f.kind, bool(f.flags & END_STREAM)) for f in head] == [(HEADERS, True)]


async def test_the_text_waits_for_the_clients_window(session: Session) -> None:
    """It is DATA as any other."""
    session.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 10}))
    fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"x")]
    sent = session.send(headers(1, fields, END_HEADERS | END_STREAM))
    assert [f.payload for f in sent[1:]] == [answers.NOT_GRPC[:10]]
    sent = session.send(window_update(1, 1000))
    assert [f.payload for f in sent] == [answers.NOT_GRPC[10:], b""]
    assert sent[-1].flags & END_STREAM
    assert not session.connection.streams


@pytest.mark.parametrize("content_type", [b"application/grpc", b"application/grpc+proto", b"application/grpc;x=y"])
async def test_content_types(session: Session, content_type: bytes) -> None:
    """gRPC with protobuf, under each of its names."""
    fields = call_fields(LIVE, (b"content-type", content_type), without=[b"content-type"])
    sent = session.send(headers(1, fields), data(1, message(), END_STREAM))
    assert session.status(sent) == (0, "")


async def test_an_unknown_method(session: Session) -> None:
    """UNIMPLEMENTED, as Trailers-Only: at the end of the request, or after a moment if it does not end."""
    sent = session.call(b"/no.Such/Method", message(b"x"), stream_id=101)
    assert session.status(sent) == (12, "Method not found!")
    assert len(sent) == 1
    assert session.send(headers(103, call_fields(b"/no.Such/Method")), data(103, b"x")) == []
    assert len(session.send(data(103, b"x", END_STREAM))) == 1
    assert session.send(headers(1001, call_fields(b"/no.Such/Method"))) == []
    session.calls.handle(session.connection.tick(session.now_ns + 10**8 + 1))
    sent = session.sent()
    assert session.status(sent) == (12, "Method not found!")
    assert reset_code(sent, 1001) is ErrorCode.NO_ERROR
    assert session.send(data(1001, b"x" * 100), data(1001, b"", END_STREAM)) == []


async def test_an_unknown_encoding(session: Session) -> None:
    """UNIMPLEMENTED, and the answer says which encodings are known."""
    sent = session.call(INFER, message(b"x", 1), (b"grpc-encoding", b"br"))
    fields = session.fields(sent[0])
    assert fields[b"grpc-status"] == b"12"
    assert fields[b"grpc-accept-encoding"] == b"identity,deflate,gzip"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("accepts", [True, False], ids=["accepted", "not accepted"])
async def test_compression(session: Session, encoding: str, accepts: bool) -> None:
    """Compressed requests are read; their answers are compressed if the client takes it and they are large."""
    compress = gzip.compress if encoding == "gzip" else zlib.compress
    for elements, stream_id in ((4, 1), (5000, 3)):
        more = [(b"grpc-encoding", encoding.encode())]
        if accepts:
            more.append((b"grpc-accept-encoding", b"identity, deflate, gzip"))
        session.call(INFER, message(compress(request(elements=elements)), 1), *more, stream_id=stream_id)
        sent = await session.answered()
        assert session.status(sent) == (0, "")
        body = b"".join(f.payload for f in sent if f.kind == frames.DATA)
        compressed = accepts and elements == 5000
        assert body[0] == compressed
        answer = inflate("message", body[5:], encoding, 10**6) if compressed else body[5:]
        assert len(pb.ModelInferResponse.FromString(answer).raw_output_contents[0]) == elements * 4
        assert session.fields(sent[0]).get(b"grpc-encoding") == (encoding.encode() if accepts else None)


@pytest.mark.parametrize(
    ("encoding", "body", "code"),
    [
        (b"gzip", gzip.compress(bytes(10**6)), 8),
        (b"deflate", zlib.compress(bytes(10**6)), 8),
        (b"gzip", gzip.compress(bytes(1000))[:-9], 3),
        (b"gzip", b"not gzip", 3),
        (b"identity", b"x", 3),
    ],
    ids=["gzip bomb", "deflate bomb", "cut off", "no gzip", "identity"],
)
async def test_bad_compression(encoding: bytes, body: bytes, code: int) -> None:
    """A bomb is stopped at the limit of a message; what is no such encoding is the client's error."""
    session = Session(max_message_bytes=100_000)
    session.call(INFER, message(body, 1), (b"grpc-encoding", encoding))
    assert session.status(await session.settled())[0] == code


async def test_limits_of_messages() -> None:
    """Too large a request is refused by its length alone; too large an answer by its own."""
    session = Session(max_message_bytes=1000)
    sent = session.send(headers(), data(1, message(bytes(2000))[:10]))
    assert session.status(sent) == (8, "message: 2000 bytes, over the limit of 1000 bytes")
    assert reset_code(sent) is ErrorCode.NO_ERROR
    session.dataplane.answers = []
    session.dataplane.outcome = None
    big = request(elements=100)
    assert session.status(session.call(INFER, message(big), stream_id=3))[0] == 0
    session = Session(max_message_bytes=500)
    assert len(request(elements=40)) < 500
    session.dataplane.answers = [Tensor.from_numpy("sum", np.zeros(600, np.uint8))]
    assert session.status(session.call(INFER, message(request(elements=40))))[0] == 8


async def test_what_is_over_a_limit_is_counted() -> None:
    """Header lists by themselves; messages, whichever way they go and whether or not they are compressed."""
    session = Session(max_message_bytes=1000, max_header_list_bytes=1024)
    session.call(INFER, message(), (b"x-long", bytes(1024)))
    assert session.service.refused == {"header_list_too_large": 1}
    session.send(headers(3), data(3, message(bytes(2000))[:10]))
    session.call(INFER, message(gzip.compress(bytes(10**5)), 1), (b"grpc-encoding", b"gzip"), stream_id=5)
    assert session.status(await session.settled())[0] == 8
    session.send(headers(7, call_fields(STREAM)), data(7, message(bytes(2000))[:10]))
    session.dataplane.answers = [Tensor.from_numpy("sum", np.zeros(1000, np.uint8))]
    session.call(INFER, message(request()), stream_id=9)
    assert session.service.refused == {"header_list_too_large": 1, "message_too_large": 4}


async def test_what_all_connections_hold_is_bounded() -> None:
    """A call that goes over it is refused, on whichever connection; there is room again once others are gone."""
    first, second = Session(max_unfinished_bytes=50_000), Session()
    second.calls.service = first.service
    half = message(bytes(40_000))[:15_000]
    for session, stream_id in ((first, 1), (second, 1), (first, 3)):
        assert session.send(headers(stream_id), data(stream_id, half)) == []
    for stream_id, fields in ((5, call_fields()), (7, call_fields(STREAM))):
        sent = second.send(headers(stream_id, fields), data(stream_id, half))
        assert second.status(sent) == (8, "all connections: over the limit of 50000 bytes")
    assert first.service.refused == {"out_of_memory": 2}
    assert (first.calls.held_bytes, second.calls.held_bytes) == (30_000, 15_000)
    first.calls.close()
    assert second.send(headers(9), data(9, half)) == []
    second.calls.close()
    await second.settled()
    assert first.service.memory.take(50_000)


async def test_a_stream_holds_nothing_of_the_messages_that_it_has_taken_up(session: Session) -> None:
    """However many there were: else a stream that lives for long would come to its connection's limit."""
    session.send(headers(1, call_fields(STREAM)))
    asked = message(request())
    for _ in range(50):
        session.send(data(1, asked))
        await session.settled()
        assert session.calls.held_bytes == 0
    session.send(data(1, asked[:7]))
    assert session.calls.held_bytes == 7


async def test_messages_weigh_more_than_their_bytes() -> None:
    """Those that wait are counted with what keeps them: empty ones would else cost next to nothing."""
    session = Session(max_received_bytes=50_000)
    sent = session.send(headers(1, call_fields(STREAM)), data(1, message() * 300), data(1, message() * 300))
    assert session.status(sent)[0] == 8
    assert session.service.refused == {"too_much_received": 1}
    session.send(headers(3, call_fields(STREAM)), data(3, message() * 300))
    assert session.calls.held_bytes > 10 * 1500
    await session.settled()
    assert session.calls.held_bytes == 0


async def test_what_one_connection_holds_is_bounded() -> None:
    """Unfinished requests of a connection share a limit; the one that goes over it is refused, its bytes let go."""
    session = Session(max_received_bytes=50_000)
    half = message(bytes(40_000))[:15_000]
    for stream_id in (1, 3, 5):
        assert session.send(headers(stream_id), data(stream_id, half)) == []
    assert session.calls.held_bytes == 45_000
    sent = session.send(headers(7), data(7, half))
    assert session.status(sent) == (8, "connection: over the limit of 50000 bytes")
    assert session.service.refused == {"too_much_received": 1}
    assert session.calls.held_bytes == 45_000
    session.send(headers(9, call_fields(STREAM)), data(9, half))
    await session.settled()
    assert session.calls.held_bytes == 45_000
    session.send(*[frames.rst_stream(i, ErrorCode.CANCEL) for i in (1, 3, 5)])
    assert session.calls.held_bytes == 0


@pytest.mark.parametrize(
    ("text", "ns"),
    [(b"1n", 1), (b"5u", 5_000), (b"20m", 20_000_000), (b"3S", 3 * 10**9), (b"2M", 120 * 10**9), (b"1H", 3600 * 10**9)],
)
def test_timeouts(text: bytes, ns: int) -> None:
    """Each unit of grpc-timeout."""
    assert parse_timeout(text) == ns


@pytest.mark.parametrize("text", [b"", b"5", b"S", b"-1S", b"1.5S", b"123456789S", b"1x", b" 1S"])
def test_bad_timeouts(text: bytes) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidRequest, match="grpc-timeout"):
        parse_timeout(text)


async def test_deadlines(session: Session) -> None:
    """grpc-timeout counts from the read of the socket; a bad one is refused."""
    session.call(INFER, message(request()), (b"grpc-timeout", b"5S"))
    session.call(INFER, message(request()), stream_id=3)
    assert [r.deadline_ns for r in session.dataplane.requests] == [session.now_ns + 5 * 10**9, NO_DEADLINE]
    assert session.status(session.call(INFER, message(request()), (b"grpc-timeout", b"x"), stream_id=5))[0] == 3


async def test_a_deadline_ends_a_task(session: Session) -> None:
    """A call that waits in a task ends when its time is over, though its client never says so."""
    session.dataplane.held = True
    asked = ours.PredictRequest(model_name=MODEL, inputs=[ours.Input(text="t")]).SerializeToString()
    session.call(PREDICT, message(asked), (b"grpc-timeout", b"10m"))
    await session.dataplane.gone.wait()
    assert session.status(await session.settled()) == (4, "deadline exceeded")
    assert session.wakes


async def test_a_prediction_without_a_task_is_answered_by_the_call_that_settles_it(session: Session) -> None:
    """At once, where it is settled at once; in the bytes of one that has a task."""
    body = message(predict_message(b"x", MODEL))
    session.call(PREDICT, body)
    by_task = await session.settled()
    session.dataplane.without_tasks = True
    assert [f.payload for f in session.call(PREDICT, body, stream_id=3)] == [f.payload for f in by_task]
    session.dataplane.held = True
    assert session.call(PREDICT, body, stream_id=5) == []
    session.dataplane.release()
    assert [f.payload for f in session.sent()] == [f.payload for f in by_task]
    assert (session.wakes, session.calls.held_bytes, session.connection.streams) == (3, 0, {})


@pytest.mark.parametrize("held", [False, True])
async def test_a_prediction_without_a_task_that_was_answered_has_no_time_left_to_run_out(
    session: Session, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was answered at once or later."""
    expired: list[object] = []
    monkeypatch.setattr(UnaryCall, "_expire", lambda call: expired.append(call))
    session.dataplane.without_tasks, session.dataplane.held = True, held
    session.call(PREDICT, message(predict_message(b"x")), (b"grpc-timeout", b"20m"))
    session.dataplane.release()
    await asyncio.sleep(0.05)
    assert not expired


async def test_a_prediction_is_read_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that turns out to take a task: a picture is not copied for nothing."""
    read: list[object] = []
    decode = predict_grpc.decode_predict
    monkeypatch.setattr(predict_grpc, "decode_predict", lambda *given: read.append(given) or decode(*given))
    for stream_id, without in ((1, True), (3, False)):
        session.dataplane.without_tasks = without
        sent = session.call(PREDICT, message(predict_message(b"x")), stream_id=stream_id)
        assert session.status(sent or await session.settled())[0] == 0
        assert len(read) == (stream_id + 1) / 2


async def test_a_prediction_without_a_task_has_the_status_of_its_error(session: Session) -> None:
    """Whether it can't be read, is not taken in, or is settled with one; and an answer may be too large."""
    session.dataplane.without_tasks = True
    assert session.status(session.call(PREDICT, message(b"\xff")))[0] == 3
    session.dataplane.outcome = Overloaded(MODEL, 1)
    assert session.status(session.call(PREDICT, message(predict_message(b"x")), stream_id=3))[0] == 8
    session.dataplane.outcome = None
    session.calls._max_bytes = 10
    assert session.status(session.call(PREDICT, message(predict_message(b"x")), stream_id=5))[0] == 8
    assert (session.calls.held_bytes, session.connection.streams) == (0, {})


@pytest.mark.parametrize("how", ["reset", "connection lost", "its time is over"])
async def test_a_prediction_without_a_task_is_cancelled(session: Session, how: str) -> None:
    """Its request is, at once; and that it was, nobody is told any more."""
    session.dataplane.without_tasks = session.dataplane.held = True
    timeout = ((b"grpc-timeout", b"10m"),) if how == "its time is over" else ()
    session.call(PREDICT, message(predict_message(b"x")), *timeout)
    if how == "reset":
        assert session.send(frames.rst_stream(1, ErrorCode.CANCEL)) == []
    elif how == "connection lost":
        session.calls.close()
    else:
        assert session.status(await session.answered()) == (4, "deadline exceeded")
    assert session.dataplane.cancelled == session.dataplane.requests
    assert (session.sent(), session.calls.held_bytes) == ([], 0)


@pytest.mark.parametrize("how", ["reset", "connection lost"])
async def test_cancellation(session: Session, how: str) -> None:
    """A reset stream, or the loss of the connection, cancels the requests at once; nothing is sent for them."""
    session.dataplane.held = True
    session.send(
        headers(), data(1, message(request()), END_STREAM), headers(3), data(3, message(request()), END_STREAM)
    )
    if how == "reset":
        assert session.send(frames.rst_stream(1, ErrorCode.CANCEL), frames.rst_stream(3, ErrorCode.CANCEL)) == []
    else:
        session.calls.close()
    assert session.dataplane.cancelled == session.dataplane.requests
    assert session.sent() == []


async def test_a_call_that_is_reset_in_the_same_read_is_not_begun(session: Session) -> None:
    """What was cancelled before anybody saw it costs the data plane nothing."""
    session.send(headers(), data(1, message(request()), END_STREAM), frames.rst_stream(1, ErrorCode.CANCEL))
    session.send(headers(3), frames.rst_stream(3, ErrorCode.CANCEL))
    assert session.dataplane.requests == []


async def test_an_answer_that_can_not_be_written(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    """It is that call's fault alone: whoever settles it goes on with the rest of the batch."""
    session.dataplane.answers = [Tensor("sum", "no such datatype", (1,), b"1")]
    sent = session.call(INFER, message(request()))
    assert session.status(sent) == (13, "internal error")
    assert "no such datatype" in caplog.text
    session.dataplane.answers = None
    assert session.status(session.call(INFER, message(request()), stream_id=3)) == (0, "")


async def test_metadata(session: Session) -> None:
    """x-tenant reaches the request, x-explain brings server-timing; both also where the message comes in pieces."""
    whole = message(request())
    session.call(INFER, whole, (b"x-tenant", b"ann"))
    session.send(
        headers(3, call_fields(INFER, (b"x-tenant", b"bob"))), data(3, whole[:9]), data(3, whole[9:], END_STREAM)
    )
    session.call(INFER, whole, (b"x-tenant", b"eve"), (b"x-explain", b"1"), stream_id=5)
    sent = await session.settled()
    assert [r.tenant for r in session.dataplane.requests] == ["ann", "bob", "eve"]
    assert b"total;dur=" in session.fields(sent[-1])[b"server-timing"]
    sent = session.call(INFER, whole, (b"x-explain", b"perhaps"), stream_id=7) + await session.settled()
    assert session.status(sent) == (3, "X-Explain: must be 1 or 0")


@pytest.mark.parametrize("in_one_read", [True, False])
async def test_a_picture_there_is_no_time_for_is_dropped_as_it_comes(session: Session, in_one_read: bool) -> None:
    """Its model is read of the message's begin; nothing of it is held, and the status comes behind its last byte."""
    session.dataplane.refusal = Overloaded("photos", 120, 30)
    body = message(predict_message(bytes(40_000)))
    read = [headers(1, call_fields(PREDICT, (b"grpc-timeout", b"100m")))]
    read += [data(1, body[at : at + 16_384]) for at in range(0, 32_768, 16_384)]
    last = data(1, body[32_768:], END_STREAM)
    if in_one_read:
        sent = session.send(*read, last)
    else:
        assert session.send(*read) == []
        assert session.calls.held_bytes == 0
        sent = session.send(last)
    code, text = session.status(sent)
    assert (code, "overloaded" in text) == (8, True)
    assert session.calls.refused_ns == 100_000_000
    assert session.dataplane.looked_at == [("photos", len(body) - 5)]
    assert session.dataplane.predicts == []
    assert session.connection.streams == {}
    assert session.calls.held_bytes == 0


async def test_a_client_that_stops_amid_a_dropped_picture_is_told_when_its_time_is_over(session: Session) -> None:
    session.dataplane.refusal = Overloaded("photos", 120, 30)
    body = message(predict_message(bytes(40_000)))
    assert session.send(headers(1, call_fields(PREDICT, (b"grpc-timeout", b"5S"))), data(1, body[:16_384])) == []
    begun_ns = session.connection.now_ns
    assert session.connection.tick(begun_ns + 4_900_000_000) == []
    session.calls.handle(session.connection.tick(begun_ns + 5_100_000_000))
    assert session.status(session.sent())[0] == 8


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ((), message(predict_message(b"x"))),
        (((b"grpc-timeout", b"1S"), (b"x-explain", b"1")), message(predict_message(b"x"))),
        (((b"grpc-timeout", b"1S"), (b"grpc-encoding", b"gzip")), message(gzip.compress(predict_message(b"x")), 1)),
        (((b"grpc-timeout", b"1S"),), message(predict_message(b"x", model_version="3"))),
        (((b"grpc-timeout", b"1S"),), message(predict_message(b"x", model_name="m" * 128))),
    ],
    ids=["without a deadline", "explained", "compressed", "of a version", "of a very long name"],
)
async def test_what_is_not_plain_is_read_and_asked_for(
    session: Session, fields: tuple[Field, ...], body: bytes
) -> None:
    session.dataplane.refusal = Overloaded("photos", 120, 30)
    session.call(PREDICT, body, *fields)
    await session.settled()
    assert session.dataplane.looked_at == []
    assert len(session.dataplane.predicts) == 1


async def test_errors_carry_text_and_details(session: Session) -> None:
    """The message is percent-encoded, the details are base64 without padding."""
    session.dataplane.outcome = InvalidRequest("schön", "50% of it\n")
    sent = session.call(INFER, message(request()))
    assert session.fields(sent[0])[b"grpc-message"] == b"sch%C3%B6n: 50%25 of it%0A"
    session.dataplane.outcome = QueueFull(MODEL, 4, 1200)
    [only] = session.call(INFER, message(request()), stream_id=3)
    details = session.fields(only)[b"grpc-status-details-bin"]
    assert details
    assert not details.endswith(b"=")


@pytest.mark.parametrize(
    ("text", "told"), [("", b""), ("plain ~ text", b"plain ~ text"), ("%\x7f\u20ac", b"%25%7F%E2%82%AC")]
)
def test_percent_encoding(text: str, told: bytes) -> None:
    """Bytes beyond printable ASCII, and %, are escaped."""
    assert percent_encoded(text) == told


async def test_a_slow_writer_is_told_so() -> None:
    """A unary request that does not come to its end is answered, and its bytes are let go."""
    session = Session(request_timeout_s=5)
    for start in ([headers()], [headers(3), data(3, message(request())[:20])]):
        session.send(*start)
    assert session.calls.held_bytes == 20
    events = session.connection.tick(session.now_ns + 6 * 10**9)
    session.calls.handle(events)
    sent = session.sent()
    assert session.status(sent) == (4, "request: not here as a whole after 5 s")
    assert {f.stream_id for f in sent if f.kind == frames.HEADERS} == {1, 3}
    assert session.calls.held_bytes == 0
    assert not session.connection.streams
    assert session.service.refused == {"slow_writer": 2}


async def test_shutting_down(session: Session) -> None:
    """What is under way when the grace is over is UNAVAILABLE, and cancelled."""
    session.dataplane.held = True
    session.call(INFER, message(request()))
    session.send(headers(3, call_fields(STREAM)))
    session.calls.shut()
    assert session.status(session.sent()) == (14, "the server is shutting down")
    assert session.dataplane.cancelled == session.dataplane.requests
    await session.settled()
    assert not session.connection.streams


async def test_a_stream_of_messages_is_held_up_by_its_windows() -> None:
    """A client that gives no window gets no more, and what it sends is not taken up without bound."""
    session = Session(stream_window_bytes=65_535)
    session.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 100}))
    session.send(headers(1, call_fields(STREAM)))
    asked = message(request(elements=1000))
    await session.settled()
    for _ in range(7):
        session.send(data(1, asked))
    sent = await session.settled()
    assert sum(len(f.payload) for f in sent if f.kind == frames.DATA) == 100
    assert session.connection.sender.pending_bytes > 0
    session.send(frames.window_update(1, 10**6), data(1, b"", END_STREAM))
    sent = session.sent() + await session.settled()
    assert session.status(sent) == (0, "")
    assert session.calls.held_bytes == 0


def test_a_message_in_frames_of_a_byte_is_kept_in_few_parts() -> None:
    """All that one read brings of it is one, so that it weighs what it has."""
    reader = MessageReader(100_000)
    for piece in (message(bytes(50_000))[:5], bytes(40_000)):
        assert reader.feed([piece[at : at + 1] for at in range(len(piece))]) == []
    assert len(reader._parts) == 1
    assert reader.feed([bytes(10_000)]) == [(False, bytes(50_000))]


def test_message_reader_limits() -> None:
    """An empty message is one; the reader's own limit holds at its edge."""
    reader = MessageReader(3)
    assert reader.feed([message(b"") + message(b"abc") + message(b"")]) == [(False, b""), (False, b"abc"), (False, b"")]
    reader.end()
    assert reader.feed([b"\0"]) == []
    with pytest.raises(InvalidRequest):
        reader.end()


async def test_settings_are_those_of_the_server() -> None:
    """The defaults hold in the core as they stand in the settings."""
    assert Session().connection.settings == GrpcSettings()


async def test_blocks_that_differ_in_their_ends(session: Session) -> None:
    """A block whose indexed start is known is read from there on, and means the same as it would as a whole."""
    start = call_fields(INFER)
    insert = b"".join(b"\x40" + bytes((len(n),)) + n + bytes((len(v),)) + v for n, v in start)
    indexed = bytes(range(0x80 + 62 + len(start) - 1, 0x80 + 61, -1))
    session.send(headers(101, block=insert), data(101, message(request()), END_STREAM))

    def ask(stream_id: int, *more: Field) -> list[Frame]:
        block = indexed + encode(more)
        return session.send(headers(stream_id, block=block), data(stream_id, message(request()), END_STREAM))

    for stream_id, timeout in ((103, 5), (105, 7), (107, 9)):
        assert session.status(ask(stream_id, (b"grpc-timeout", b"%dS" % timeout), (b"traceparent", b"00-1"))) == (0, "")
        assert session.dataplane.requests[-1].deadline_ns == session.now_ns + timeout * 10**9
    assert session.status(ask(109, (b"traceparent", b"00-2"))) == (0, "")
    assert session.dataplane.requests[-1].deadline_ns == NO_DEADLINE
    assert session.status(ask(111, (b"grpc-timeout", b"soon")))[0] == 3
    assert session.status(ask(113, (b"x-tenant", b"ann"), (b"grpc-timeout", b"1S"))) == (0, "")
    assert session.dataplane.requests[-1].tenant == "ann"
    for stream_id, bad in ((115, (b":path", b"/")), (117, (b"X", b"y")), (119, (b"traceparent", b" x"))):
        assert reset_code(ask(stream_id, bad), stream_id) is ErrorCode.PROTOCOL_ERROR
    # Once the table moves on, the same bytes are other fields.
    session.send(headers(121, block=indexed + b"\x40\x01x\x01y"), data(121, message(request()), END_STREAM))
    assert reset_code(ask(123, (b"grpc-timeout", b"1S")), 123) is ErrorCode.PROTOCOL_ERROR


def test_an_answered_call_leaves_nothing_to_the_garbage_collector() -> None:
    """Call and stream know each other while it is under way; a pair that kept doing so would be freed by the
    collector alone, which stops everybody for milliseconds."""
    session = Session()
    session.call(INFER, message(request()))
    session.dataplane.requests.clear()
    gc.collect()
    of_others = {id(thing): thing for thing in gc.get_objects() if type(thing) is InferRequest}
    gc.disable()
    try:
        for number in range(20):
            session.call(INFER, message(request()), stream_id=2 * number + 3)
        assert len(session.dataplane.requests) == 20
        session.dataplane.requests.clear()
        session.events.clear()
        left = [thing for thing in gc.get_objects() if type(thing) is InferRequest and id(thing) not in of_others]
        assert not left
    finally:
        gc.enable()


async def test_a_stream_that_is_gone_before_its_task_has_run_holds_nothing(session: Session) -> None:
    """Several reads may come in one turn of the loop; of a task that is cancelled before it nothing runs."""
    session.send(headers(1, call_fields(STREAM)), data(1, message(request())[:20]))
    assert session.calls.held_bytes == 20
    session.send(frames.rst_stream(1, ErrorCode.CANCEL))
    await session.settled()
    assert session.calls.held_bytes == 0
