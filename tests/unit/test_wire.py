"""Requests and answers read and written without protobuf where their shape was seen before."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from server.errors import InvalidRequest
from server.tensor import Tensor
from server.transport.codec import v2_grpc, v2_wire
from server.transport.codec.recent import Recent
from server.transport.codec.varint import read_length, varint
from server.transport.codec.wire_request import Forms
from server.transport.codec.wire_response import Templates
from server.types import InferRequest, InferResponse, Outcome


def _ignore(_request: InferRequest, _outcome: Outcome) -> None:
    """Nobody waits in these tests."""


def message(value: float = 1, id: str = "", size: int = 2, **said: Any) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="add", model_version="1", id=id, **said)
    made.inputs.add(name="a", datatype="FP32", shape=[1, size])
    made.raw_input_contents.append(np.full(size, value, "<f4").tobytes())
    return made


def two_inputs(id: str = "") -> pb.ModelInferRequest:
    made = message(id=id)
    made.inputs.add(name="b", datatype="INT64", shape=[1])
    made.raw_input_contents.append(bytes(8))
    return made


def text(*elements: bytes, id: str = "") -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="add", id=id)
    tensor = Tensor.from_numpy("t", np.array(elements, object))
    made.inputs.add(name="t", datatype="BYTES", shape=tensor.shape)
    made.raw_input_contents.append(bytes(tensor.data))
    return made


def read(forms: Forms, sent: pb.ModelInferRequest) -> InferRequest:
    return forms.decode(sent.SerializeToString(), on_settle=_ignore, received_ns=7)


def known(forms: Forms, sent: pb.ModelInferRequest) -> InferRequest:
    """The request at its second coming, which makes its form known."""
    read(forms, sent)
    return read(forms, sent)


ALIKE = {
    "other data": (message(1), message(2)),
    "other ids": (message(id="a"), message(id="another")),
    "an id, then none": (message(id="a"), message()),
    "no id, then a long one": (message(), message(id="i" * 300)),
    "several inputs": (two_inputs(), two_inputs("a")),
    "text of other length": (text(b"one"), text(b"three", id="a")),
    "large tensors": (message(1, size=5000), message(2, "a", size=5000)),
    "the same parameters": tuple(message(v, parameters={"p": pb.InferParameter(int64_param=1)}) for v in (1, 2)),
}


@pytest.mark.parametrize("alike", ALIKE.values(), ids=ALIKE)
def test_requests_that_are_alike_have_one_form(alike: tuple[pb.ModelInferRequest, ...]) -> None:
    """Data and id apart they say the same, so whoever checked the first need not check the next."""
    forms = Forms()
    read(forms, alike[0])
    first, *others = [read(forms, sent) for sent in [*alike, *alike]]
    assert first.form is not None
    assert all(other.form is first.form for other in others)


UNLIKE = {
    "another shape": message(size=3),
    "another version": pb.ModelInferRequest(model_version="2"),
    "a parameter": pb.ModelInferRequest(parameters={"p": pb.InferParameter(int64_param=1)}),
    "an output": pb.ModelInferRequest(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="o")]),
}


@pytest.mark.parametrize("unlike", UNLIKE.values(), ids=UNLIKE)
def test_requests_that_differ_in_anything_else_have_forms_of_their_own(unlike: pb.ModelInferRequest) -> None:
    """What was checked for one says nothing of the other."""
    forms = Forms()
    other = message() if not unlike.inputs else pb.ModelInferRequest()
    other.MergeFrom(unlike)
    if not other.model_name:
        other.model_name = "add"
    form = known(forms, message()).form
    assert form is not None
    assert known(forms, other).form not in (None, form)


def test_data_of_a_known_form_is_checked_each_time() -> None:
    """A BOOL that is neither 0 nor 1, text that is cut, and data of another length are refused by name."""
    forms = Forms()
    flags = pb.ModelInferRequest(model_name="add", raw_input_contents=[b"\1\0"])
    flags.inputs.add(name="b", datatype="BOOL", shape=[2])
    for good, bad in ((flags, b"\1\2"), (text(b"one"), b"\4\0\0\0one"), (message(id="i"), bytes(12))):
        known(forms, good)
        good.raw_input_contents[0] = bad
        with pytest.raises(InvalidRequest, match=r"raw_input_contents\[0\]"):
            read(forms, good)


def test_a_form_is_not_given_to_a_message_that_is_as_long() -> None:
    """The fields before an id are the same, and all lengths; those behind it are not."""
    forms = Forms()
    first = known(forms, message(id="i"))
    other = message(id="i")
    other.inputs[0].name = "z"
    second = known(forms, other)
    assert (second.inputs[0].name, second.form is first.form) == ("z", False)


def test_typed_contents_have_no_form() -> None:
    """Their data is not apart from what is kept, so nothing is."""
    forms = Forms()
    sent = message()
    del sent.raw_input_contents[:]
    sent.inputs[0].contents.fp32_contents.extend([1, 2])
    assert [read(forms, sent).form for _ in range(3)] == [None, None, None]


def test_a_request_made_fast_is_a_request() -> None:
    """Every attribute is what a call of the class would have made it, on each way to read it."""
    forms = Forms()
    for _ in range(4):
        fast = forms.decode(message(id="i").SerializeToString(), _ignore, 7, 9, "me")
        slow = InferRequest(
            "add",
            fast.inputs,
            on_settle=_ignore,
            received_ns=7,
            model_version="1",
            id="i",
            deadline_ns=9,
            form=fast.form,
            caller="me",
        )
        # What few requests have is set when they have it.
        assert [getattr(fast, name, None) for name in InferRequest.__slots__] == [
            getattr(slow, name, None) for name in InferRequest.__slots__
        ]
        assert fast.metadata == slow.metadata == ()


@pytest.mark.parametrize("sent", [message(), message(id="i"), two_inputs(), text(b"one")])
def test_what_is_not_one_plain_message_behind_its_prefix_is_not_read(sent: pb.ModelInferRequest) -> None:
    """It is compressed, longer or shorter than it says, or not all there; also where its like is known."""
    forms = Forms()
    data = known(forms, sent) and sent.SerializeToString()
    size = len(data).to_bytes(4)
    for framed in (b"\1" + size + data, b"\2" + size + data, b"\0" + size + data + b"\0", b"\0" + size + data[:-1]):
        assert forms.decode_framed(framed, _ignore, 7, 9, None) is None
    for cut in range(5):
        assert forms.decode_framed((b"\0" + size)[:cut], _ignore, 7, 9, None) is None
    with pytest.raises(InvalidRequest):
        forms.decode_framed(b"\0" + (len(data) - 1).to_bytes(4) + data[:-1], _ignore, 7, 9, None)
    request = forms.decode_framed(b"\0" + size + data, _ignore, 7, 9, "me")
    assert request is not None
    assert (request.id, request.received_ns, request.deadline_ns, request.caller) == (sent.id, 7, 9, "me")


def test_large_tensors_are_views_and_small_ones_are_not() -> None:
    """A large one is not copied; a small one does not hold the memory of its message."""
    forms = Forms()
    for _ in range(3):
        data = message(size=5000).SerializeToString()
        large = forms.decode(data, _ignore, 7)
    assert isinstance(large.inputs[0].data, memoryview)
    assert large.inputs[0].data.obj is data
    viewed = forms.decode(memoryview(bytearray(data)), _ignore, 7).inputs[0].data
    assert isinstance(viewed, memoryview)
    assert viewed.readonly
    known(forms, message())
    received = bytearray(message(3).SerializeToString())
    small = forms.decode(memoryview(received), _ignore, 7)
    received[:] = bytes(len(received))
    assert small.inputs[0].numpy().tolist() == [[3, 3]]


def test_bytes_that_are_no_message() -> None:
    """They are refused in the words of the other RPCs, also where their like was read before."""
    forms = Forms()
    good = message(id="i").SerializeToString()
    for _ in range(2):
        forms.decode(good, _ignore, 7)
    for data in (good[:-1], good + b"\x07", good.replace(b"\x1a\x01i", b"\x1a\x01\xff")):
        with pytest.raises(InvalidRequest) as refused:
            forms.decode(data, _ignore, 7)
        assert str(refused.value) == "message: is not a valid inference.ModelInferRequest"


@pytest.mark.parametrize("length", [1, 40, 2000])
def test_ever_new_requests_neither_grow_memory_nor_push_out_those_in_use(length: int) -> None:
    """Whoever asks now and then is still known after thousands of others who came twice."""
    forms = Forms()
    form = known(forms, message()).form
    tracemalloc.start()
    for index in range(2200):
        known(forms, message(parameters={str(index) * length: pb.InferParameter(bool_param=True)}))
        if index % 50 == 0:
            assert read(forms, message(id="i")).form is form
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 8 * 2**20


def test_messages_of_many_fields_are_left_to_protobuf() -> None:
    """A hop in Python over each of a million empty fields would hold everybody up; the answer is the same."""
    forms = Forms()
    sent = message()
    sent.raw_input_contents.extend([b""] * 1000)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="1001 entries for 1 inputs"):
            read(forms, sent)


def test_a_response_in_parts_does_not_copy_its_tensors() -> None:
    """The parts are the bytes of the message, the tensor among them as it is."""
    data = bytes(40_000)
    response = InferResponse("add", "1", [Tensor("c", "FP32", (10_000,), data)], "i")
    parts = v2_wire.encode_infer_parts(response)
    assert any(part is data for part in parts)
    assert b"".join(parts) == v2_wire.encode_infer(response)


def test_ever_new_shapes_of_answers_do_not_grow_memory() -> None:
    """Past the limit all templates are forgotten; the next answer makes its own again."""
    templates = Templates()
    tracemalloc.start()
    for rows in range(5000):
        answer = InferResponse("add", "1", [Tensor("c", "UINT8", (rows,), bytes(rows))])
        assert pb.ModelInferResponse.FromString(templates.encode(answer)).outputs[0].shape == [rows]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * 2**20


def test_recent_keeps_what_is_asked_for() -> None:
    """What is found in the old generation is young again; what nobody asked for is gone after two."""
    recent: Recent[str, int] = Recent(3)
    for index, name in enumerate("abcdefgh"):
        recent.put(name, index, 1)
        assert recent.get("a") == 0
    assert recent.get("b") is None
    assert recent.get("h") == 7
    assert len(recent) <= 2 * 3


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**31 - 1])
def test_a_length_is_read_as_it_was_written(value: int) -> None:
    """Its end is where it ends, whatever follows."""
    encoded = varint(value)
    assert read_length(b"\xff" + encoded + b"\xff", 1) == (value, 1 + len(encoded))


@pytest.mark.parametrize("data", [b"\x80\x00", b"\xff\x80\x00", b"\xff" * 6], ids=["zero", "longer", "endless"])
def test_a_long_winded_length_is_not_plain(data: bytes) -> None:
    """Protobuf reads it, or says what is wrong."""
    with pytest.raises(ValueError, match="plain"):
        read_length(data, 0)


# --- the short ways are taken -----------------------------------------------------------------------------------------


class Watched(Forms):
    """Counts the messages that no run told of."""

    def __init__(self) -> None:
        super().__init__()
        self.split = 0

    def _by_key(self, data: bytes | memoryview) -> Any:
        self.split += 1
        return super()._by_key(data)


def nameless(id: str = "") -> pb.ModelInferRequest:
    made = message(id=id)
    made.model_version = ""
    return made


RUNS = {
    "no id": (message(1), message(2)),
    "ids of other lengths": (message(id="a"), message(id="another")),
    "no id first": (message(), message(id="a" * 127)),
    "without a version": (nameless("a"), nameless("bcd")),
    "several inputs": (two_inputs(), two_inputs()),
    "several inputs and an id": (two_inputs("a"), two_inputs("bc")),
    "just below a view": (message(size=2047), message(2, size=2047)),
}


@pytest.mark.parametrize("alike", RUNS.values(), ids=RUNS)
def test_the_next_message_of_a_run_is_not_split_into_its_fields(alike: tuple[pb.ModelInferRequest, ...]) -> None:
    """Once its key is known; and it says what it says."""
    forms = Watched()
    known(forms, alike[0])
    known(forms, alike[0])
    split = forms.split
    for sent in (*alike, *alike):
        request = read(forms, sent)
        assert (request.model_name, request.model_version, request.id) == ("add", sent.model_version, sent.id)
        assert [bytes(tensor.data) for tensor in request.inputs] == list(sent.raw_input_contents)
    assert forms.split == split


@pytest.mark.parametrize(
    "sent", [message(id="i" * 128), message(size=2048), text(b"one")], ids=["a long id", "large", "text"]
)
def test_what_is_no_run_goes_by_its_key(sent: pb.ModelInferRequest) -> None:
    """A long id, data that is better a view, and data whose length its shape does not tell."""
    forms = Watched()
    for index in range(4):
        read(forms, sent)
        assert forms.split == index + 1
    assert read(forms, sent).form is not None


def test_a_run_whose_place_another_took_is_back_with_its_next_message() -> None:
    """Two of one length, in turns, are found by their keys; who comes twice in a row has the place again."""
    forms = Watched()
    first, second = message(), message()
    second.inputs[0].name = "z"
    for sent in (first, second):
        known(forms, sent)
    split = forms.split
    for _ in range(2):
        assert read(forms, first).inputs[0].name == "a"
    assert forms.split == split + 1
    assert read(forms, second).inputs[0].name == "z"
    assert forms.split == split + 2


def test_a_view_that_is_small_is_read_as_bytes() -> None:
    """By the run that its like made; a large one is a view to the end."""
    forms = Watched()
    known(forms, message())
    split = forms.split
    request = forms.decode(memoryview(message(5).SerializeToString()), _ignore, 7)
    assert type(request.inputs[0].data) is bytes
    assert forms.split == split


def test_what_is_known_of_messages_is_bounded() -> None:
    """Lengths, and messages that came once: past the limit all go, and who is in use comes back."""
    forms = Forms()
    for size in range(1, 600):
        known(forms, message(parameters={"p" * size: pb.InferParameter(bool_param=True)}))
        assert 0 < len(forms._runs) <= 512
    once = Forms()
    for index in range(5000):
        read(once, message(parameters={"p": pb.InferParameter(int64_param=index)}))
        assert 0 < len(once._seen) <= 4096
    assert not once._keys, "nobody came twice"


def test_a_key_that_is_too_long_is_not_kept() -> None:
    """Its message is protobuf's each time; one just as long as may be is known."""
    empty = len(message(parameters={"p": pb.InferParameter(string_param="")}).SerializeToString()) - 10
    lengths = []
    for more in range(-8, 9):
        sent = message(parameters={"p": pb.InferParameter(string_param="x" * (4096 - empty + more))})
        key_bytes = len(sent.SerializeToString()) - 10
        lengths.append(key_bytes)
        assert (known(Forms(), sent).form is not None) == (key_bytes <= 4096)
    assert 4096 in lengths
    assert 4097 in lengths


def test_messages_of_256_fields_are_split_and_no_more() -> None:
    """Each output asked for is a field."""
    for outputs, is_known in ((252, True), (253, False)):
        sent = message(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="o")] * outputs)
        assert len(sent.ListFields()) == 5
        assert (known(Forms(), sent).form is not None) == is_known


class InOnePiece(Templates):
    def encode_parts(self, response: InferResponse) -> Any:
        raise AssertionError("it is written in parts")


@pytest.mark.parametrize(
    ("id", "tensor"),
    [
        ("", Tensor("c", "FP32", (2, 3), bytes(24))),
        ("i", Tensor("c", "FP32", (2, 3), bytes(24))),
        ("i" * 127, Tensor("c", "INT64", (0,), b"")),
        ("é" * 63, Tensor("c", "BOOL", (300,), bytes(300))),
    ],
)
def test_an_answer_of_one_output_is_written_in_one_piece(id: str, tensor: Tensor) -> None:
    """Where its shape tells its length, and its id is short."""
    templates = InOnePiece()
    for _ in range(2):
        response = InferResponse("add", "1", [tensor], id)
        assert templates.encode(response) == v2_grpc.encode_infer(response).SerializeToString()
    assert len(templates._templates) == 1


@pytest.mark.parametrize(
    "response",
    [
        InferResponse("add", "1", [Tensor("c", "FP32", (1,), bytes(4))], "i" * 128),
        InferResponse("add", "1", [Tensor.from_numpy("c", np.array([b"x"], object))]),
        InferResponse("add", "1", [Tensor("c", "FP32", (1,), bytes(4))] * 2),
        InferResponse("add", "1", [Tensor("c", "FP32", (2,), bytes(4))]),
        InferResponse("add", "1", []),
    ],
    ids=["a long id", "text", "several outputs", "the wrong length", "no outputs"],
)
def test_every_other_answer_is_written_in_parts(response: InferResponse) -> None:
    """With the same bytes."""
    with pytest.raises(AssertionError, match="in parts"):
        InOnePiece().encode(response)
    assert Templates().encode(response) == v2_grpc.encode_infer(response).SerializeToString()


@pytest.mark.parametrize("other", range(5))
def test_an_answer_that_differs_in_one_object_is_another(other: int) -> None:
    """Names, datatype and shape of the one before are those of the next only if all five are."""
    templates = Templates()
    said: list[list[Any]] = [["add", "sub"], ["1", "2"], ["c", "d"], ["FP32", "INT32"], [(2,), (1, 2)]]
    chosen = [values[index == other] for index, values in enumerate(said)]
    for model, version, name, datatype, shape in ([values[0] for values in said], chosen) * 2:
        response = InferResponse(model, version, [Tensor(name, datatype, shape, bytes(8))])
        assert templates.encode(response) == v2_grpc.encode_infer(response).SerializeToString()


def test_an_answer_that_no_template_can_be_made_of_leaves_none() -> None:
    """The next one of its shape does not get that of the one before."""
    templates = Templates()
    good = InferResponse("add", "1", [Tensor("c", "FP32", (1,), bytes(4))])
    bad = InferResponse("add", "1", [Tensor("c", "FP99", (1,), bytes(4))])
    templates.encode(good)
    for _ in range(2):
        with pytest.raises(KeyError):
            templates.encode(bad)


def test_templates_are_bounded_and_made_once() -> None:
    """For one shape one, whatever the way it is written; past the limit all go."""
    templates = Templates()
    answer = InferResponse("add", "1", [Tensor("c", "FP32", (1,), bytes(4))], "i")
    templates.encode(answer)
    [template] = templates._templates.values()
    templates.encode(answer)
    templates.encode_parts(answer)
    assert list(templates._templates.values()) == [template]
    assert next(iter(templates._templates.values())) is template
    for rows in range(1100):
        templates.encode(InferResponse("add", "1", [Tensor("c", "UINT8", (rows,), bytes(rows))]))
        assert 0 < len(templates._templates) <= 1024


def test_recent_weighs_what_it_holds() -> None:
    """Just as much as it may stays young; one more ages the rest, which is found there once more."""
    recent: Recent[str, str] = Recent(10)
    recent.put("a", "A", 4)
    recent.put("b", "B", 6)
    assert (len(recent._young), len(recent._old)) == (2, 0)
    recent.put("c", "C", 1)
    assert (list(recent._young), list(recent._old)) == (["c"], ["a", "b"])
    assert recent.get("a") == "A"
    assert (list(recent._young), list(recent._old)) == (["c", "a"], ["b"])
    recent.put("d", "D", 5)
    assert list(recent._young) == ["c", "a", "d"], "five and five"
    recent.put("e", "E", 1)
    assert (list(recent._young), list(recent._old)) == (["e"], ["c", "a", "d"])
    assert (len(recent), recent.get("b")) == (4, None)
