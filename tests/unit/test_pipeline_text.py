"""Texts to tensors and outputs to answers: the pipelines of the three tasks that read text."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import EngineFailure, InvalidRequest, ModelLoadFailed, PayloadTooLarge
from server.pipeline import tokens
from server.pipeline.base import Pipeline, answers, needs_inputs
from server.pipeline.classification import LABELS
from server.pipeline.load import load_pipeline, read_spec, write_spec
from server.pipeline.text_spec import TextClassificationSpec, TextEmbeddingSpec, TokenClassificationSpec, TokensSpec
from server.pipeline.tokens import TextEncoder
from server.types import Classification, Embedding, Entities, ImageInput, RawInput, RowInput, Score, TextInput
from tests.support.text_models import IDS, tokenizer, write_tokenizer

ENTITIES = ("O", "B-PER", "I-PER", "B-LOC")


def encoder(**changed: Any) -> TextEncoder:
    return TextEncoder(TokensSpec.model_validate({"max_length": 8} | changed), tokenizer())


def ids(*words: str) -> list[int]:
    return [IDS[word] for word in words]


def made(folder: Path, spec: Any, labels: tuple[str, ...] = ("bad", "good")) -> Pipeline:
    write_tokenizer(folder)
    LABELS.write(folder, labels)
    write_spec(spec, folder)
    assert read_spec(folder) == spec
    return load_pipeline(folder)


# --- tokens -------------------------------------------------------------------------------------------


def test_texts_become_ids_with_a_mask_padded_to_the_longest() -> None:
    """The tokenizer's own padding and truncation do not count, the spec's do."""
    tensors = encoder(token_type_ids="types").preprocess([TextInput("The film was good"), TextInput("Good")])

    np.testing.assert_array_equal(
        tensors["input_ids"],
        [ids("[CLS]", "the", "film", "was", "good", "[SEP]"), ids("[CLS]", "good", "[SEP]", "[PAD]", "[PAD]", "[PAD]")],
    )
    np.testing.assert_array_equal(tensors["attention_mask"], [[1] * 6, [1, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(tensors["types"], np.zeros((2, 6)))
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.int64)}


def test_tensors_and_tokens_that_the_spec_does_not_want_are_not_there() -> None:
    """Without mask, special tokens, or with a prefix: as the spec says."""
    tensors = encoder(attention_mask=None, special_tokens=False, prefix="very ").preprocess([TextInput("good")])
    assert {name: array.tolist() for name, array in tensors.items()} == {"input_ids": [ids("very", "good")]}


def test_a_long_text_is_cut_at_its_end_or_refused() -> None:
    """cut keeps the special tokens; refuse says how many tokens there are."""
    long = TextInput("the film was good and very very long")
    cut = encoder(max_length=5).preprocess([long])
    assert cut["input_ids"].tolist() == [ids("[CLS]", "the", "film", "was", "[SEP]")]
    with pytest.raises(InvalidRequest, match=r"inputs\[1\]: has 10 tokens, the model takes 5"):
        encoder(max_length=5, truncation="refuse").preprocess([TextInput("good"), long])


@pytest.mark.parametrize(
    ("raw", "changed", "error", "problem"),
    [
        (TextInput(""), {}, InvalidRequest, r"inputs\[0\]: is empty, the model takes texts of 1 or more"),
        (TextInput(" \n"), {}, InvalidRequest, "is empty"),
        (TextInput("bad"), {"min_characters": 4}, InvalidRequest, "has 3 characters, the model takes texts of 4 or"),
        (TextInput("good"), {"max_characters": 3}, PayloadTooLarge, "4 characters, over the limit of 3 characters"),
        (TextInput("\x00"), {"special_tokens": False}, InvalidRequest, "has no token"),
        (TextInput("a\ud800"), {}, InvalidRequest, "half of a surrogate pair"),
        (RowInput([1]), {}, InvalidRequest, "takes texts, not an input of kind row"),
        (ImageInput(b"x"), {}, InvalidRequest, "not an input of kind image"),
    ],
)
def test_what_is_no_text_for_the_model_is_refused_by_its_place(
    raw: RawInput, changed: Mapping[str, Any], error: type[Exception], problem: str
) -> None:
    """The field is the input, the problem says the limit."""
    with pytest.raises(error, match=problem):
        encoder(**changed).preprocess([raw])


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=6)
)
def test_a_text_has_the_same_tokens_alone_as_among_others(texts: list[str]) -> None:
    """A row differs by its padding alone, whatever its neighbours are."""
    made_by = ENCODER
    together = made_by.preprocess([TextInput(text) for text in texts])
    for index, text in enumerate(texts):
        alone = made_by.preprocess([TextInput(text)])
        length = alone["input_ids"].shape[1]
        assert together["input_ids"][index, :length].tolist() == alone["input_ids"][0].tolist()
        assert together["attention_mask"][index].sum() == length


ENCODER = encoder()


def test_threads_do_not_disturb_each_other() -> None:
    """One encoder is called from several threads at once."""
    texts = [TextInput("the film was good"), TextInput("bad")]
    expected, found = ENCODER.preprocess(texts)["input_ids"], []
    threads = [threading.Thread(target=lambda: found.append(ENCODER.preprocess(texts)["input_ids"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(np.array_equal(each, expected) for each in found)


# --- folders ------------------------------------------------------------------------------------------


def classification(**changed: Any) -> TextClassificationSpec:
    return TextClassificationSpec.model_validate({"tokens": {"max_length": 8}, "example": "good film"} | changed)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (classification(example=" "), "processing.yaml: example: is empty"),
        (classification(tokens={"max_length": 2}), "tokens.max_length: 2 leaves no token for the text beside 2"),
        (classification(tokens={"max_length": 9, "pad_id": 99}), "tokens.pad_id: 99 is no token: .* has 19"),
        (
            classification(tokens={"max_length": 9, "tokenizer": "other.json"}),
            "other.json: can't be read: No such",
        ),
    ],
)
def test_a_spec_that_does_not_fit_its_files_keeps_the_model_out(
    tmp_path: Path, spec: TextClassificationSpec, problem: str
) -> None:
    """The error names the field and what is wrong with it."""
    with pytest.raises(ModelLoadFailed, match=problem):
        made(tmp_path / "m", spec)


def test_a_damaged_tokenizer_keeps_the_model_out(tmp_path: Path) -> None:
    """By the file's name, with the reason of the reader."""
    made(tmp_path / "m", classification())
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadFailed, match=r"tokenizer.json: is no tokenizer: "):
        load_pipeline(tmp_path / "m")


def test_a_tokenizer_that_fails_on_what_it_does_not_know(tmp_path: Path) -> None:
    """It names a token for the unknown that it has not: the model is kept out. Where a text gets that far all the same,
    it is refused by its place, and does not pass for a failure of the server."""
    made(tmp_path / "m", classification())
    path = tmp_path / "m" / "tokenizer.json"
    described = json.loads(path.read_text())
    described["model"]["unk_token"] = "[NONE]"
    path.write_text(json.dumps(described))
    with pytest.raises(ModelLoadFailed, match=r"tokenizer.json: can't read every text: .*Missing"):
        load_pipeline(tmp_path / "m")

    encoder = TextEncoder(TokensSpec(max_length=8), tokens.read_tokenizer(path))
    with pytest.raises(InvalidRequest, match=r"inputs\[1\]: the model's tokenizer can't read it"):
        encoder.preprocess([TextInput("good"), TextInput("ungood"), TextInput("good")])


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without tokenizers says what to install; it starts without text models."""
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ModelLoadFailed, match=r"pip install 'forwardpass\[text\]'"):
        tokens.read_tokenizer(write_nothing(tmp_path))


def write_nothing(folder: Path) -> Path:
    (folder / "tokenizer.json").write_text("{}")
    return folder / "tokenizer.json"


# --- answers ------------------------------------------------------------------------------------------


def test_a_class_of_a_text(tmp_path: Path) -> None:
    """Logits become labels as for every classifier; what the model takes is told with its limits."""
    pipeline = made(tmp_path / "m", classification())
    [answer] = answers(pipeline, [TextInput("good")], {"logits": np.array([[0.0, 1.0]], np.float32)}, 1)
    assert isinstance(answer, Classification)
    assert answer.label == "good"
    assert answer.top_k == (Score("good", pytest.approx(1 / (1 + np.exp(-1)))),)
    told = pipeline.describe()
    assert told["input"] == {
        "kind": "text",
        "min_characters": 1,
        "max_characters": 20_000,
        "max_tokens": 8,
        "truncation": "cut",
    }
    assert told["labels"] == ["bad", "good"]
    assert pipeline.example() == TextInput("good film")
    assert not needs_inputs(pipeline)


def test_a_vector_of_a_text(tmp_path: Path) -> None:
    """The output as it is; another width, a number that is none, or a wish for labels is refused."""
    spec = TextEmbeddingSpec(tokens=TokensSpec(max_length=8), dimensions=2, normalized=False, example="good")
    pipeline = made(tmp_path / "m", spec)
    assert pipeline.postprocess({"sentence_embedding": np.array([[0.5, -2.0]], np.float32)}) == [Embedding((0.5, -2.0))]
    assert (pipeline.describe()["dimensions"], pipeline.describe()["labels"]) == (2, [])
    with pytest.raises(InvalidRequest, match="top_k: the model's answers are no labels"):
        pipeline.postprocess({"sentence_embedding": np.zeros((1, 2), np.float32)}, 3)
    for wrong in ({}, {"sentence_embedding": np.zeros((1, 3))}, {"sentence_embedding": np.array([[np.nan, 0.0]])}):
        with pytest.raises(EngineFailure) as failed:
            pipeline.postprocess(wrong)
        assert "'sentence_embedding'" in failed.value.detail


def tagged(*labels: str) -> np.ndarray[Any, Any]:
    """Logits of one text whose tokens have these labels."""
    return np.eye(len(ENTITIES), dtype=np.float32)[[ENTITIES.index(label) for label in labels]] * 10


@pytest.fixture
def tagger(tmp_path: Path) -> Pipeline:
    spec = TokenClassificationSpec(tokens=TokensSpec(max_length=12), example="Anna lives in Oslo")
    return made(tmp_path / "m", spec, ENTITIES)


def test_entities_of_texts(tagger: Pipeline) -> None:
    """Neighbours of one label are one, a B- begins another, pieces of a word stay together; special tokens are none."""
    first = tagged("B-LOC", "B-PER", "I-PER", "O", "O", "B-LOC", "B-LOC")  # [CLS] anna anna lives in oslo [SEP]
    second = tagged("O", "B-PER", "B-PER", "B-PER", "O", "O", "O")  # [CLS] long ##er anna [SEP] and two of padding
    texts = [TextInput("Anna Anna lives in OSLO"), TextInput("longer anna")]

    found = answers(tagger, texts, {"logits": np.stack([first, second])})

    told = [[(e.label, e.start, e.end, e.text) for e in each.entities] for each in found if isinstance(each, Entities)]
    assert told == [
        [("PER", 0, 9, "Anna Anna"), ("LOC", 19, 23, "OSLO")],
        [("PER", 0, 6, "longer"), ("PER", 7, 11, "anna")],
    ]
    assert found[0].entities[0].score == pytest.approx(np.exp(10) / (np.exp(10) + 3))  # type: ignore[union-attr]
    assert tagger.describe()["entities"] == ["PER", "LOC"]
    assert needs_inputs(tagger)


def test_entities_need_an_output_that_fits_the_text(tagger: Pipeline) -> None:
    """Fewer tokens than the text has, or no text at all, is our own failure."""
    with pytest.raises(EngineFailure) as failed:
        answers(tagger, [TextInput("Anna lives")], {"logits": np.zeros((1, 2, 4), np.float32)})
    assert "has shape (1, 2, 4)" in failed.value.detail
    with pytest.raises(EngineFailure) as failed:
        tagger.postprocess({"logits": np.zeros((1, 9, 4), np.float32)})
    assert "without the text" in failed.value.detail
