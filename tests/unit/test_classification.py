"""From logits to answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from server.errors import EngineFailure, InvalidRequest, ModelLoadFailed
from server.pipeline.classification import (
    LABELS,
    ClassificationSpec,
    Classifier,
    DecisionThreshold,
)

ABC = ("a", "b", "c")


def classifier(labels: tuple[str, ...] = ABC, **spec: object) -> Classifier:
    return Classifier(ClassificationSpec.model_validate(spec), labels, "m")


def test_softmax_gives_the_probabilities_of_the_logits_best_first() -> None:
    """Scores are exp(x) / sum(exp(x)), and top_k is sorted by them."""
    logits = np.log(np.array([[0.2, 0.5, 0.3]], dtype=np.float32))
    (answer,) = classifier().postprocess({"logits": logits})
    assert answer.label == "b"
    assert answer.score == pytest.approx(0.5)
    assert [score.label for score in answer.top_k] == ["b", "c", "a"]
    assert [score.score for score in answer.top_k] == pytest.approx([0.5, 0.3, 0.2])


def test_huge_logits_do_not_overflow() -> None:
    """Softmax and sigmoid are finite for any finite logit."""
    rows = classifier().probabilities({"logits": np.array([[1e30, -1e30, 0]])})
    np.testing.assert_allclose(rows, [[1, 0, 0]])
    binary = classifier(("n", "y"), activation="sigmoid")
    np.testing.assert_allclose(binary.probabilities({"logits": np.array([[1e4], [-1e4]])}), [[0, 1], [1, 0]])


def test_sigmoid_is_the_probability_of_the_second_label() -> None:
    """One logit decides between two labels."""
    logits = np.array([[np.log(0.8 / 0.2)]])
    (answer,) = classifier(("no", "yes"), activation="sigmoid").postprocess({"logits": logits})
    assert (answer.label, answer.score) == ("yes", pytest.approx(0.8))


def test_without_activation_outputs_are_the_probabilities() -> None:
    """activation none changes nothing."""
    (answer,) = classifier(activation="none", output="p").postprocess({"p": np.array([[0.1, 0.2, 0.7]])})
    assert (answer.label, answer.score) == ("c", pytest.approx(0.7))


@pytest.mark.parametrize(("p", "expected"), [(0.30, "fraud"), (0.31, "fraud"), (0.29, "fine")])
def test_a_decision_threshold_overrides_the_most_probable_label(p: float, expected: str) -> None:
    """The positive label is chosen from its threshold up, and the score is that of the chosen label."""
    head = classifier(
        ("fine", "fraud"), activation="none", decision=DecisionThreshold(positive_label="fraud", threshold=0.3)
    )
    (answer,) = head.postprocess({"logits": np.array([[1 - p, p]])})
    assert answer.label == expected
    assert answer.score == pytest.approx(p if expected == "fraud" else 1 - p)
    assert answer.top_k[0].label == "fine"


def test_below_a_high_threshold_the_best_of_the_others_is_chosen() -> None:
    """The positive label is not chosen below its threshold though it is the most probable one."""
    head = classifier(activation="none", decision=DecisionThreshold(positive_label="a", threshold=0.9))
    (answer,) = head.postprocess({"logits": np.array([[0.6, 0.1, 0.3]])})
    assert (answer.label, answer.score) == ("c", pytest.approx(0.3))


def test_ties_go_to_the_earlier_label() -> None:
    """Equal scores keep the order of labels.txt: answers do not depend on a sort's whims."""
    (answer,) = classifier(activation="none").postprocess({"logits": np.array([[0.4, 0.2, 0.4]])})
    assert [score.label for score in answer.top_k] == ["a", "c", "b"]


@pytest.mark.parametrize(("asked", "given"), [(0, 2), (1, 1), (3, 3)])
def test_top_k_of_zero_is_the_specs_default(asked: int, given: int) -> None:
    """top_k counts the labels of an answer."""
    (answer,) = classifier(top_k=2).postprocess({"logits": np.zeros((1, 3))}, asked)
    assert len(answer.top_k) == given


@pytest.mark.parametrize("asked", [-1, 4])
def test_more_labels_than_there_are_is_the_callers_mistake(asked: int) -> None:
    """top_k must be 0 to the number of labels."""
    with pytest.raises(InvalidRequest, match="top_k"):
        classifier().postprocess({"logits": np.zeros((1, 3))}, asked)


@pytest.mark.parametrize(
    "outputs",
    [{}, {"logits": np.zeros((1, 2))}, {"logits": np.zeros(3)}, {"logits": np.array([[0, np.nan, 0]])}],
    ids=["missing", "too narrow", "no rows", "not a number"],
)
def test_outputs_that_no_answer_can_be_made_of_are_our_failure(outputs: dict[str, np.ndarray]) -> None:
    """A broken output is never turned into a label."""
    with pytest.raises(EngineFailure):
        classifier().postprocess(outputs)


def test_labels_survive_being_written_and_read(tmp_path: Path) -> None:
    """labels.txt gives back the labels, spaces inside and other scripts included."""
    labels = ("New York", "größer", "十", "0")
    LABELS.write(tmp_path, labels)
    assert LABELS.read(tmp_path) == labels


@pytest.mark.parametrize("content", [b"a\n", b"a\n\nb\n", b"a\nb\na\n", b"\xff\xfe\n", b" a\nb\n", b""], ids=repr)
def test_a_bad_labels_file_keeps_the_model_out(tmp_path: Path, content: bytes) -> None:
    """Labels are at least two, different, and not blank; the error names the file."""
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ModelLoadFailed, match=r"labels\.txt"):
        LABELS.read(tmp_path)


def test_labels_that_could_not_be_read_back_are_not_written(tmp_path: Path) -> None:
    """A label with a line break would be two."""
    with pytest.raises(ValueError, match="line 1"):
        LABELS.write(tmp_path, ("a\nb", "c"))
    assert list(tmp_path.iterdir()) == []


def test_a_spec_that_contradicts_its_labels_keeps_the_model_out() -> None:
    """An unknown positive label, or a sigmoid over three labels."""
    with pytest.raises(ModelLoadFailed, match="positive_label"):
        classifier(decision=DecisionThreshold(positive_label="x", threshold=0.5))
    with pytest.raises(ModelLoadFailed, match="sigmoid"):
        classifier(activation="sigmoid")
