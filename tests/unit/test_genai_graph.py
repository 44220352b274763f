"""The head of a decoder gives logits for the tokens that are wanted, the same numbers as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from server.engine.genai.graph import LOGITS_AT, with_chosen_logits

VOCABULARY, WIDTH = 7, 4
CHANCE = np.random.default_rng(5)


def decoder(*behind: str, head: str = "MatMul", before: str = "Identity") -> bytes:
    """A layer that looks tokens up, a head, and what stands behind it."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["layer"]),
        helper.make_node(before, ["layer", *(["one"] if before == "Unsqueeze" else [])], ["hidden"]),
        helper.make_node(head, ["hidden", "weights"], ["head"]),
    ]
    last = "head"
    for index, kind in enumerate(behind):
        inputs = {"Add": ["weights_bias", last], "Mul": [last, "scale"]}.get(kind, [last])
        nodes.append(helper.make_node(kind, inputs, [f"behind{index}"], name=f"{kind}{index}"))
        last = f"behind{index}"
    nodes[-1].output[0] = "logits"
    weights = {
        "table": CHANCE.standard_normal((VOCABULARY, WIDTH)),
        "weights": CHANCE.standard_normal((WIDTH, VOCABULARY)),
        "weights_bias": CHANCE.standard_normal(VOCABULARY),
        "scale": np.array(0.5),
    }
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", VOCABULARY])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
        + [numpy_helper.from_array(np.array([1]), "one")],
        doc_string="kept",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def session(model: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("behind", [(), ("Add", "Mul"), ("Mul", "Tanh", "Mul")])
def test_the_logits_of_the_wanted_tokens_are_those_of_before(behind: tuple[str, ...]) -> None:
    """Whatever stands between the head and them, and whatever else the file says is kept."""
    ids = CHANCE.integers(0, VOCABULARY, (3, 5))
    before = decoder(*behind)
    after = with_chosen_logits(before, "logits")
    assert b"kept" in after
    [whole] = session(before).run(None, {"input_ids": ids})
    at = np.array([[1], [5 + 4], [2 * 5]])
    [chosen] = session(after).run(None, {"input_ids": ids, LOGITS_AT: at})
    assert chosen.shape == (3, 1, VOCABULARY)
    assert np.array_equal(chosen[:, 0], whole.reshape(15, VOCABULARY)[at[:, 0]])


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (b"\xff\xff", "no ONNX"),
        (b"", "does not come from a head"),
        (decoder("Softmax"), "does not come from a head"),
        (decoder(before="Unsqueeze"), "prune_lm_head"),
    ],
    ids=["garbage", "empty", "another head", "a head of the last token alone"],
)
def test_a_model_whose_head_is_not_known_is_refused(model: bytes, problem: str) -> None:
    """With what is the matter."""
    with pytest.raises(ValueError, match=problem):
        with_chosen_logits(model, "logits")


def test_a_shipped_decoder_has_its_cache_as_before() -> None:
    """Beside the tokens to be told of, nothing of what it takes and gives has changed."""
    file = Path(__file__).parents[1] / "golden" / "writer" / "1" / "model.onnx"
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    before = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    after = onnxruntime.InferenceSession(
        with_chosen_logits(file.read_bytes(), "logits"), options, providers=["CPUExecutionProvider"]
    )
    told = [[(node.name, node.type) for node in one.get_inputs()] for one in (before, after)]
    assert told[1] == [*told[0], (LOGITS_AT, "tensor(int64)")]
    assert [node.name for node in before.get_outputs()] == [node.name for node in after.get_outputs()]
