"""A request is held against the model's config before it may join a batch."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from server.errors import InvalidRequest, Unsupported
from server.repository.model_config import from_message
from server.request_check import LONGEST_TENANT, RequestCheck
from server.tensor import Tensor, pack_bytes
from server.types import Form, InferRequest, Parameter, Special

CONFIG = """
name: "m" platform: "onnxruntime_onnx" max_batch_size: 4
input { name: "a" data_type: TYPE_FP32 dims: [ 3 ] }
input { name: "b" data_type: TYPE_INT64 dims: [ -1, 2 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "z" data_type: TYPE_FP32 dims: [ 1 ] }
"""


def check(text: str = CONFIG) -> RequestCheck:
    return RequestCheck(from_message(text_format.Parse(text, model_config_pb2.ModelConfig()), "m"))


def a(*shape: int, datatype: str = "FP32", name: str = "a") -> Tensor:
    return Tensor(name, datatype, shape, b"")


def b(*shape: int) -> Tensor:
    return Tensor("b", "INT64", shape, b"")


def request(*inputs: Tensor, outputs: tuple[str, ...] = (), **parameters: Parameter) -> InferRequest:
    return InferRequest("m", inputs, on_settle=lambda *_: None, received_ns=0, outputs=outputs, parameters=parameters)


def test_a_good_request_gets_its_rows_and_its_inputs_in_the_configs_order() -> None:
    """Whatever the order of the caller, a batch is merged in the order of the config."""
    good = request(
        b(2, 7, 2), a(2, 3), outputs=("z", "y"), timeout=5, mine="passes", triton_enable_empty_final_response=True
    )

    check()(good)

    assert good.rows == 2
    assert [tensor.name for tensor in good.inputs] == ["a", "b"]


def test_only_equal_shapes_share_a_signature() -> None:
    """Rows differ and may be stacked; a variable dimension that differs keeps requests apart."""
    first, other_rows, other_length = (
        request(a(1, 3), b(1, 7, 2)),
        request(a(2, 3), b(2, 7, 2)),
        request(a(1, 3), b(1, 8, 2)),
    )
    for each in (first, other_rows, other_length):
        check()(each)

    assert first.signature == other_rows.signature
    assert first.signature != other_length.signature


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (request(a(1, 3)), "inputs"),
        (request(), "inputs"),
        (request(a(1, 3), b(1, 1, 2), a(1, 3, name="c")), "inputs[2].name"),
        (request(a(1, 3), b(1, 1, 2), a(1, 3)), "inputs[2].name"),
        (request(a(1, 3, datatype="FP64"), b(1, 1, 2)), "inputs[0].datatype"),
        (request(a(1, 4), b(1, 1, 2)), "inputs[0].shape"),
        (request(a(3), b(1, 1, 2)), "inputs[0].shape"),
        (request(a(), b(1, 1, 2)), "inputs[0].shape"),
        (request(b(1, 1, 2), a(1, 3, 1)), "inputs[1].shape"),
        (request(a(0, 3), b(0, 1, 2)), "inputs[0].shape"),
        (request(a(5, 3), b(5, 1, 2)), "inputs[0].shape"),
        (request(a(2, 3), b(3, 1, 2)), "inputs[1].shape"),
        (request(a(1, 3), b(1, 1, 2), outputs=("x",)), "outputs[0].name"),
        (request(a(1, 3), b(1, 1, 2), outputs=("y", "y")), "outputs[1].name"),
        (request(a(1, 3), b(1, 1, 2), timeout=-1), "parameters.timeout"),
        (request(a(1, 3), b(1, 1, 2), timeout=True), "parameters.timeout"),
        (request(a(1, 3), b(1, 1, 2), triton_final_response=True), "parameters.triton_final_response"),
        (
            request(a(1, 3), b(1, 1, 2), triton_enable_empty_final_response=1),
            "parameters.triton_enable_empty_final_response",
        ),
        (request(a(1, 3), b(1, 1, 2), timeout="5"), "parameters.timeout"),
        (request(a(1, 3), b(1, 1, 2), priority=-1), "parameters.priority"),
        (request(a(1, 3), b(1, 1, 2), priority=True), "parameters.priority"),
    ],
)
def test_a_bad_request_is_refused_with_the_field_at_fault(bad: InferRequest, field: str) -> None:
    """The field is spelled by the caller's own positions."""
    with pytest.raises(InvalidRequest) as caught:
        check()(bad)

    assert caught.value.field == field


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "BOOL", "STRING"])
def test_classes_of_a_datatype_that_has_none_are_refused(datatype: str) -> None:
    """Before the pass, in Triton's words; other outputs of the model may have classes."""
    text = CONFIG.replace('"z" data_type: TYPE_FP32', f'"z" data_type: TYPE_{datatype}')
    bad = request(a(1, 3), b(1, 1, 2), outputs=("y", "z"))
    bad.special = Special(None, {"y": 2})
    check(text)(bad)
    bad.special = Special(None, {"y": 2, "z": 1})

    with pytest.raises(InvalidRequest, match=r"outputs\[1\]\.parameters\.classification: class result not available"):
        check(text)(bad)


def test_the_limit_is_named() -> None:
    """More rows than max_batch_size: the message has the limit and the number that came."""
    with pytest.raises(
        InvalidRequest, match=r"batch-size must be <= 4 for 'm' \(its max_batch_size\), and at least 1, got 9"
    ):
        check()(request(a(9, 3), b(9, 1, 2)))


def test_a_sequence_is_refused_by_name() -> None:
    """A model that keeps no sequences must not pretend to."""
    with pytest.raises(Unsupported, match="sequence_id"):
        check()(request(a(1, 3), b(1, 1, 2), sequence_id=3))


def test_without_a_batch_dimension_dims_are_the_whole_shape() -> None:
    """max_batch_size 0: the first dimension is the model's own, and the request counts as one row."""
    unbatched = check(
        'name: "m" platform: "onnxruntime_onnx" input { name: "a" data_type: TYPE_FP32 dims: [ 3 ] } '
        'output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }'
    )
    good = request(a(3))
    unbatched(good)

    assert good.rows == 1
    with pytest.raises(InvalidRequest):
        unbatched(request(a(1, 3)))


def test_text_must_be_utf8() -> None:
    """One bad element would fail the batch of everybody in the engine, so it is named at the door."""
    texts = check(CONFIG.replace("TYPE_FP32 dims: [ 3 ]", "TYPE_STRING dims: [ 3 ]"))
    good = Tensor("a", "BYTES", (1, 3), pack_bytes(["é", b"", "c"]))
    bad = Tensor("a", "BYTES", (1, 3), pack_bytes(["a", b"\xff", "c"]))
    texts(request(good, b(1, 1, 2)))

    with pytest.raises(InvalidRequest, match=r"inputs\[0\].data: element 1 of input 'a' is not UTF-8"):
        texts(request(bad, b(1, 1, 2)))


def test_a_form_that_was_checked_is_not_checked_again() -> None:
    """Requests of one form are equal in all that the check looks at, so the first one's result stands for all."""
    form, checks = Form(), check()
    first, next_one = request(a(2, 3), b(2, 7, 2)), request(a(2, 3), b(2, 7, 2))
    first.form = next_one.form = form
    checks(first)
    next_one.inputs = ()
    checks(next_one)

    assert (next_one.rows, next_one.signature) == (2, first.signature)


def test_a_form_counts_for_the_check_that_saw_it_alone() -> None:
    """Another version, or the same one loaded anew with another config, looks for itself."""
    form, before, after = Form(), check(), check(CONFIG.replace("dims: [ 3 ]", "dims: [ 4 ]"))
    first, next_one = request(a(2, 3), b(2, 7, 2)), request(a(2, 3), b(2, 7, 2))
    first.form = next_one.form = form
    before(first)

    with pytest.raises(InvalidRequest):
        after(next_one)


@pytest.mark.parametrize("text", [CONFIG, CONFIG.replace("TYPE_FP32 dims: [ 3 ]", "TYPE_STRING dims: [ 3 ]")])
def test_what_a_form_does_not_hold_is_checked_each_time(text: str) -> None:
    """Inputs that have to be put in order, and text, which is in the data: such a form is never taken as checked."""
    form, checks = Form(), check(text)
    datatype = "BYTES" if "TYPE_STRING" in text else "FP32"
    text_or_not = Tensor("a", datatype, (1, 3), pack_bytes(["x", "y", "z"]))
    inputs = (text_or_not, b(1, 7, 2)) if datatype == "BYTES" else (b(1, 7, 2), text_or_not)
    first = request(*inputs)
    first.form = form
    checks(first)

    assert form.checked_by is None


def test_a_tenants_name_has_a_limit_where_tenants_matter() -> None:
    """Also of a request whose form was checked before; where they share nothing a name is nobody's business."""
    fair = check(CONFIG + 'parameters { key: "fair_by" value { string_value: "tenant" } }')
    form = Form()
    for name in ("", "t" * LONGEST_TENANT):
        good = request(a(1, 3), b(1, 7, 2))
        good.tenant, good.form = name, form
        fair(good)
    bad = request(a(1, 3), b(1, 7, 2))
    bad.tenant, bad.form = "t" * (LONGEST_TENANT + 1), form
    with pytest.raises(InvalidRequest, match="X-Tenant: 129 characters, at most 128"):
        fair(bad)
    bad.form = None
    check()(bad)
