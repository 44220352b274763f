"""The link between a server's processes, and what they count, replace and share, without a process."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.environment import load_settings
from server.errors import EngineLost, InvalidRequest, ModelNotReady, QueueFull, UnknownModel
from server.explain import Explanation, WaitReason
from server.scheduler.statistics import ModelStatistics
from server.shared_memory.places import SMALLEST_BYTES, Places, view_of
from server.tensor import Tensor
from server.types import InferRequest, InferResponse, Outcome, Timing
from server.workers.children import Child, emptiest
from server.workers.control import COUNTS, LISTENERS, Word, channel, hear, say
from server.workers.counts import since, summed, told
from server.workers.deaths import Deaths
from server.workers.frames import HEAD, BadFrame, Frames, Kind, frame
from server.workers.front import share_of
from server.workers.link import Link
from server.workers.messages import (
    Shapes,
    number_of,
    read_answer,
    read_error,
    read_infer,
    read_json,
    write_answer,
    write_failure,
    write_infer,
)
from server.workers.streams import Streamed


def nobody(_request: InferRequest, _outcome: Outcome) -> None:
    """Nobody waits in these tests."""


def request(*tensors: Tensor, **more: Any) -> InferRequest:
    return InferRequest("m", list(tensors), on_settle=nobody, received_ns=5, **more)


def whole(sent: tuple[bytes, Sequence[Any]]) -> tuple[int, memoryview]:
    """The one frame of what is sent."""
    [found] = Frames().feed(b"".join((sent[0], *sent[1])))
    return found


X = Tensor("x", "FP32", (2, 3), np.arange(6, dtype=np.float32).tobytes())
TEXT = Tensor("t", "BYTES", (1,), b"\3\0\0\0abc")


# --- frames -------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.binary(max_size=50)), max_size=6), st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[tuple[Kind, bytes]], data: st.DataObject
) -> None:
    """Any cuts of the stream give the same frames in the same order."""
    stream = b"".join(frame(kind, body) for kind, body in sent)
    frames, found, at = Frames(), [], 0
    while at < len(stream):
        end = data.draw(st.integers(at + 1, len(stream)))
        found += [(kind, bytes(body)) for kind, body in frames.feed(stream[at:end])]
        at = end
    assert found == sent


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    """No bytes raise anything but BadFrame, and none are taken for more than there is."""
    try:
        found = Frames(100).feed(data)
    except BadFrame:
        return
    assert sum(HEAD.size + len(body) for _, body in found) <= len(data)


@pytest.mark.parametrize("data", [HEAD.pack(1, 0), HEAD.pack(1, 99), HEAD.pack(101, Kind.INFER)])
def test_an_unknown_kind_or_a_length_over_the_limit_is_refused_by_its_head(data: bytes) -> None:
    """Nobody waits for the rest of it."""
    with pytest.raises(BadFrame):
        Frames(100).feed(data)


# --- messages -----------------------------------------------------------------------------------------


def test_a_request_arrives_as_it_was() -> None:
    """Its tensors, outputs, times, parameters, tenant and the wish to be explained."""
    sent = request(X, TEXT, outputs=("y",), deadline_ns=77, parameters={"priority": 2}, tenant="t")
    sent.explanation = Explanation(5)
    kind, body = whole(write_infer(Shapes(), 9, 3, sent))
    read = read_infer(Shapes(), body)

    assert kind == Kind.INFER
    assert (read.number, read.received_ns, read.deadline_ns, read.shape.handle) == (9, 5, 77, 3)
    assert [(t.name, t.datatype, t.shape, bytes(t.data)) for t in read.inputs] == [
        ("x", "FP32", (2, 3), X.data),
        ("t", "BYTES", (1,), TEXT.data),
    ]
    assert (read.shape.outputs, read.parameters, read.tenant) == (("y",), {"priority": 2}, "t")
    assert read.explanation is not None


def test_requests_of_one_shape_share_a_form() -> None:
    """So that the next one need not be checked again; one that says more has none. Ids and traces are no more."""
    shapes, reader = Shapes(), Shapes()
    first, second = (read_infer(reader, whole(write_infer(shapes, n, 1, request(X)))[1]) for n in (1, 2))
    other = read_infer(reader, whole(write_infer(shapes, 3, 1, request(X, tenant="t")))[1])

    named = request(X, id="i" * 300)
    named.metadata = (("x-other", "not told"), ("traceparent", "00-1-2-01"))
    read = read_infer(reader, whole(write_infer(shapes, 4, 1, named))[1])

    assert first.form is second.form is read.form is not None
    assert other.form is None
    assert (len(read.id), read.metadata) == (256, (("traceparent", "00-1-2-01"),))
    assert (first.id, first.metadata) == ("", ())


def test_an_answer_arrives_as_it_was() -> None:
    """Its outputs, and for one that asked, where its time went."""
    asked = request(X)
    asked.explanation, asked.enqueued_ns = Explanation(5), 42
    asked.explanation.waited = WaitReason.WINDOW
    timing = Timing(1, 2, 3, 4, 8, 0.5)
    kind, body = whole(write_answer(Shapes(), 9, asked, InferResponse("m", "1", [X], timing=timing)))
    read = read_answer(Shapes(), body)

    assert (kind, number_of(body)) == (Kind.ANSWER, 9)
    assert [bytes(tensor.data) for tensor in read.outputs] == [X.data]
    assert (read.enqueued_ns, read.waited, read.timing, read.version) == (42, WaitReason.WINDOW, timing, "1")

    asked.model_version, asked.explanation = "1", None
    read = read_answer(Shapes(), whole(write_answer(Shapes(), 9, asked, InferResponse("m", "1", [X])))[1])
    assert read.version == ""  # It is the one that was asked.


@pytest.mark.parametrize(
    "error",
    [InvalidRequest("f", "p"), QueueFull("m", 3, 7, 2), UnknownModel("m", "2"), ModelNotReady("m"), EngineLost()],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_it_was(error: Any) -> None:
    """Its class, its sentence and when to come back."""
    kind, body = whole((write_failure(4, error), ()))
    read = read_error(read_json(body))

    assert (kind, number_of(body), type(read)) == (Kind.FAILURE, 4, type(error))
    assert (read.public_message, read.retry_after_ms) == (error.public_message, error.retry_after_ms)


def test_a_foreign_error_is_our_fault_and_keeps_its_text_for_the_log() -> None:
    """The client will read nothing of it."""
    read = read_error(read_json(whole((write_failure(4, ZeroDivisionError("secret")), ()))[1]))
    assert "secret" not in read.public_message
    assert "secret" in getattr(read, "detail", "")


@given(st.data())
def test_a_request_cut_or_changed_anywhere_is_refused_or_read(data: st.DataObject) -> None:
    """Nothing but BadFrame is raised, and tensors never have other bytes than their shapes say."""
    body = bytearray(whole(write_infer(Shapes(), 9, 3, request(X, parameters={"a": 1})))[1])
    del body[data.draw(st.integers(0, len(body))) :]
    for place in data.draw(st.lists(st.integers(0, max(0, len(body) - 1)), max_size=3)):
        if body:
            body[place] = data.draw(st.integers(0, 255))
    try:
        read = read_infer(Shapes(), memoryview(bytes(body)))
    except BadFrame:
        return
    for tensor in read.inputs:
        assert tensor.datatype == "BYTES" or tensor.numpy().shape == tensor.shape


# --- the link -----------------------------------------------------------------------------------------


async def linked(answer: Any = None) -> tuple[Link, socket.socket, list[bool]]:
    """A link, the other side's socket, and whether it was lost."""
    ours, theirs = socket.socketpair()
    link = Link("the other side", lambda kind, body: None, answer)
    lost: list[bool] = []
    link.lost = lambda: lost.append(True)
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
    theirs.setblocking(False)
    return link, theirs, lost


@pytest.mark.parametrize(
    "data",
    [
        HEAD.pack(2**31, Kind.INFER),
        HEAD.pack(4, 200) + b"1234",
        frame(Kind.REPLY, b"\1"),
        frame(Kind.REPLY, b"\0\0\0\0", b"no JSON"),
        frame(Kind.ASK, b"\0\0\0\0", b"[]"),
    ],
    ids=["oversized", "unknown kind", "too short", "no JSON", "no object"],
)
async def test_what_is_no_frame_closes_the_link(data: bytes) -> None:
    """Whoever waits for a reply is told, and nothing hangs."""
    link, theirs, lost = await linked()
    asked = asyncio.ensure_future(link.ask("counts"))
    await asyncio.sleep(0)
    await asyncio.get_running_loop().sock_sendall(theirs, data)

    with pytest.raises(EngineLost):
        await asked
    assert lost == [True]
    theirs.close()


async def test_a_link_that_ends_in_the_middle_of_a_frame_is_lost() -> None:
    """Its questions fail."""
    link, theirs, lost = await linked()
    asked = asyncio.ensure_future(link.ask("counts"))
    await asyncio.sleep(0)
    await asyncio.get_running_loop().sock_sendall(theirs, HEAD.pack(100, Kind.REPLY) + b"abc")
    theirs.close()

    with pytest.raises(EngineLost):
        await asked
    assert lost == [True]
    with pytest.raises(EngineLost):
        await link.ask("counts")


async def test_questions_are_answered_or_refused_by_the_other_side() -> None:
    """With a value, or with the error that was raised there."""

    async def answer(question: dict[str, Any]) -> Any:
        if question["what"] == "load":
            raise UnknownModel(question["name"])
        return [question["what"]]

    ours, theirs = socket.socketpair()
    asking = Link("a", lambda kind, body: None, answer)
    answering = Link("b", lambda kind, body: None, answer)
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: asking, sock=ours)
    await loop.create_unix_connection(lambda: answering, sock=theirs)

    assert await asking.ask("index") == ["index"]
    with pytest.raises(UnknownModel, match="nobody"):
        await asking.ask("load", name="nobody")
    asking.close()
    answering.close()


# --- shared memory ------------------------------------------------------------------------------------


def test_places_are_given_out_once_and_again_when_they_are_free() -> None:
    """What is put is what the other side sees; where there is no room, there is none until a place comes back."""
    file = os.memfd_create("test")
    os.truncate(file, 2 * SMALLEST_BYTES)
    places, seen = Places(file, 2 * SMALLEST_BYTES), view_of(file, 2 * SMALLEST_BYTES)
    first, second = places.put([b"a" * 10, b"b" * 5]), places.put([b"c"])
    assert first is not None
    assert bytes(seen[first : first + 15]) == b"a" * 10 + b"b" * 5
    assert second not in (None, first)
    assert places.put([b"d"]) is None
    places.give_back(first)
    assert places.put([b"d"]) == first
    assert places.taken == 2
    os.close(file)


def test_inputs_in_shared_memory_are_read_from_there() -> None:
    """The frame has their place and lengths; a place beyond the memory is refused."""
    memory = memoryview(bytes(8) + bytes(X.data) + bytes(8))
    body = whole(write_infer(Shapes(), 1, 1, request(X), 8))[1]
    assert bytes(read_infer(Shapes(), body, memory).inputs[0].data) == X.data
    with pytest.raises(BadFrame):
        read_infer(Shapes(), body, None)
    with pytest.raises(BadFrame):
        read_infer(Shapes(), whole(write_infer(Shapes(), 1, 1, request(X), 100))[1], memory)


# --- counts, deaths, connections ----------------------------------------------------------------------


def counted(times: int) -> ModelStatistics:
    statistics = ModelStatistics("m", "1", wall=lambda: float(times))
    for _ in range(times):
        statistics.count_pass(2, 10, 20, 30)
        statistics.count_success([request(X)], 50, 60, 10, 20, 30)
        statistics.count_failure(QueueFull("m", 1), 5)
    return statistics


def test_the_sum_of_two_processes_is_what_one_would_have_counted() -> None:
    """Every count, whatever it is called: of requests, batches, sizes, failures and histograms."""
    total = told(summed([told(counted(2), 0), told(counted(3), 0)])["m", "1"], 0)
    wanted = told(counted(5), 0)
    wanted["last_inference_ms"] = 3000
    assert total == wanted


def test_what_was_counted_since_is_the_rest() -> None:
    """Every count, whatever it is called; what began anew is all new, and what is no count is as it is now."""
    before, now = counted(3), counted(5)
    before.pending = now.pending = 7
    now.request_duration.exemplify(50, "a1")
    rest, wanted = since(told(now, 0), told(before, 0)), counted(2)
    wanted.pending = 7
    wanted.request_duration.exemplars |= now.request_duration.exemplars
    assert rest == {**told(wanted, 0), "last_inference_ms": 5000}
    assert since(told(before, 0), told(now, 0)) == told(before, 0)
    closed = {"closed": {"http": {"limit": 5, "head": 1}}}
    assert since(closed, {"closed": {"http": {"limit": 2}}}) == {"closed": {"http": {"limit": 3, "head": 1}}}
    assert since(closed, {}) == closed


def test_a_process_that_dies_again_and_again_is_replaced_ever_later_then_no_more() -> None:
    """The first at once; whoever lived for a minute is forgotten."""
    deaths = Deaths(4)
    assert [deaths.wait_s(1.0) for _ in range(5)] == [0.0, 0.1, 0.2, 0.4, None]
    assert deaths.wait_s(100.0) == 0.0


def test_the_next_connection_goes_to_the_front_with_fewest_of_its_kind() -> None:
    """Those on their way count; a front that is not ready gets none."""
    ends = [channel() for _ in range(3)]
    one, two, three = (Child(str(n), n, ours) for n, (ours, _) in enumerate(ends))
    one.ready = two.ready = True
    one.sent[0] = 5
    one.told(COUNTS.pack(5, 5, 0, 0, 0, 0))
    assert emptiest([one, two, three], 0) == [two, one]
    two.sent[1] = 1
    assert emptiest([one, two, three], 1) == [one, two]
    for pair in ends:
        for end in pair:
            end.close()


def test_what_is_said_is_heard_with_its_files_and_the_end_is_heard_too() -> None:
    """Words in order; a descriptor is the receiver's own."""
    ours, theirs = channel()
    with Path(os.devnull).open() as file:
        assert say(ours, Word.LINK, b"front-0", [file.fileno()])
    assert say(ours, Word.STOP)
    first, second = hear(theirs)
    assert (first.word, first.more, second.word) == (Word.LINK, b"front-0", Word.STOP)
    os.fstat(first.files[0])
    os.close(first.files[0])
    ours.close()
    with pytest.raises(EOFError):
        list(hear(theirs))
    assert not say(theirs, Word.READY)
    theirs.close()
    assert len(LISTENERS) == 3


def test_settings_that_workers_can_not_have_are_refused_by_name() -> None:
    """grpcio takes no connection that another process accepted; regions of clients are known to one process."""
    with pytest.raises(ValueError, match=r"workers\.count above 1 needs grpc\.transport http2"):
        load_settings({"workers": {"count": 2}, "grpc": {"transport": "grpcio"}})
    with pytest.raises(ValueError, match=r"shared_memory\.allow needs workers\.count 1"):
        load_settings({"workers": {"count": 2}, "shared_memory": {"allow": "true"}})
    assert load_settings({"workers": {"count": 2}}).workers.count == 2


def test_each_front_has_its_part_of_what_all_may_hold() -> None:
    """Connections and bytes of bodies; rounded up, so that nobody is left with none. The rest is each one's own."""
    settings = load_settings(
        {
            "workers": {"count": 3},
            "http": {"max_connections": 10, "max_bodies_bytes": 100},
            "grpc": {"max_connections": 2, "max_unfinished_bytes": 1000},
        }
    )
    own = share_of(settings)
    assert (own.http.max_connections, own.http.max_bodies_bytes) == (4, 34)
    assert (own.grpc.max_connections, own.grpc.max_unfinished_bytes) == (1, 334)
    assert own.grpc.max_received_bytes == settings.grpc.max_received_bytes


def test_pieces_on_the_way_to_a_front_are_few() -> None:
    """Who writes is let go on at once while few are not said to be taken, and then when one is."""
    sent: list[int] = []
    streamed, went_on = Streamed(7, lambda number, _: sent.append(number)), 0

    def go_on() -> None:
        nonlocal went_on
        went_on += 1

    response = InferResponse("m", "1", ())
    while went_on == len(sent):
        streamed.take(response, go_on)
    written = len(sent)
    assert 2 < written < 64
    assert set(sent) == {7}
    streamed.taken()
    assert went_on == written
    streamed.take(response, go_on)
    assert went_on == written
    for _ in range(written):
        streamed.taken()
    assert went_on == written + 1
