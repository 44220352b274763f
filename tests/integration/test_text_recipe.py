"""The recipes for texts, from a file to a certified model: small transformers, pretrained encoders, copies."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer
from typer.testing import CliRunner

from exporter import run, variants
from exporter.cli import commands
from exporter.config import make_config
from exporter.data.support import support_messages
from exporter.data.texts import clean, read_file
from exporter.errors import DataError, UsageError
from exporter.measure import Speed
from exporter.recipes import find
from exporter.recipes.base import Hyperparameters, RunConfig, Split, TextOptions
from exporter.recipes.text import TextTask
from exporter.steps import Run
from exporter.text.hub import HubEncoder, HubFolder, freeze
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.errors import ModelLoadFailed
from server.pipeline.load import load_pipeline, read_spec
from server.pipeline.text_spec import TextClassificationSpec
from server.repository.certificate import hash_files, read_manifest, read_raw, write_manifest
from server.repository.model_config import read_model_config
from server.repository.repository import Repository
from server.types import Classification, Embedding, TextInput
from tests.support.text_models import WISHES, write_encoder, write_texts

pytestmark = [
    pytest.mark.training,
    # Lightning 2.6 trips over a deprecation in PyTorch 2.13; the exporter silences it for people, not for pytest.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, a repository and the data; and what the command said."""
    folder = tmp_path_factory.mktemp("texts")
    data = write_texts(folder / "wishes.csv")
    arguments = ["train", "text-classification", "--data", str(data), "--name", "wishes", "--epochs", "4"]
    arguments += ["--learning-rate", "0.01", "--max-length", "40", "--vocabulary", "400"]
    arguments += ["--run-dir", str(folder / "run"), "--repository", str(folder / "repository")]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    return folder, result.output


@pytest.fixture
def model(trained: tuple[Path, str]) -> Path:
    return trained[0] / "repository" / "wishes"


def test_a_model_of_texts_is_certified_again_by_its_run(trained: tuple[Path, str], model: Path) -> None:
    """By its data alone it would be prepared by the usual length and vocabulary, which it has not."""
    before = read_manifest(model)
    data = str(trained[0] / "wishes.csv")
    for told, code, words in (
        (["--from-run", str(trained[0] / "run")], 0, "held-out rows: logits off by"),
        (["--from-run", str(trained[0] / "run"), "--data", data], 2, "--data: not beside --from-run"),
        ([], 2, "--data: missing"),
        (["--data", data], 6, "it does not hold the weights"),
    ):
        result = CliRunner().invoke(commands, ["certify", str(model), *told])
        assert (result.exit_code, words in result.output) == (code, True), result.output
    after = read_manifest(model)
    assert before is not None
    assert after is not None
    assert [check.metrics for check in after.versions["1"].checks] == [
        check.metrics for check in before.versions["1"].checks
    ]


def test_a_file_of_texts_becomes_a_model_beside_its_baseline(trained: tuple[Path, str], model: Path) -> None:
    """Each step is told; what was dropped, what is cut, and what a bag of words reaches stand beside."""
    _, output = trained
    told = " ".join(output.split())
    assert "2 broken rows dropped line 155: has no text line 156: has no label" in told
    assert "3 duplicate rows dropped" in told
    assert "texts are cut at 40 tokens: 0 of" in told
    assert "tf-idf and logistic regression: " in told
    manifest = read_manifest(model)
    assert manifest is not None
    record = manifest.versions["1"]
    assert manifest.task == "text-classification"
    assert record.metrics["accuracy"] > 0.9
    assert {"tokenizer.json", "labels.txt", "processing.yaml", "1/model.onnx"} <= set(manifest.files)
    assert set(record.answers) <= set(WISHES)


def test_the_certificate_has_each_provider_on_golden_and_on_held_out_rows(model: Path) -> None:
    """Errors with their limits, best labels that changed, and the metric of the file beside the network's."""
    manifest = read_manifest(model)
    assert manifest is not None
    record = manifest.versions["1"]
    assert [(check.provider, check.precision, check.data) for check in record.checks] == [
        ("CPU", "fp32", "golden"),
        ("CPU", "fp32", "held-out"),
    ]
    golden, held_out = record.checks
    assert (golden.rows, held_out.rows) == (12, record.data.rows.test)
    for check in record.checks:
        assert 0 < check.errors["logits"].mean_abs <= check.errors["logits"].max_abs < 1e-4
        assert check.limits["logits"].atol == 1e-4
        assert check.changed_top1 == 0
    assert held_out.metrics == record.metrics


def test_requests_of_like_length_share_batches(model: Path) -> None:
    """config.pbtxt has the buckets up to the length that the model sees, and dims of any length."""
    config = read_model_config(model)
    assert config.buckets is not None
    assert config.buckets.lengths == (16, 32, 40)
    assert [(spec.name, spec.datatype, spec.dims) for spec in config.inputs] == [
        ("input_ids", "INT64", (-1,)),
        ("attention_mask", "INT64", (-1,)),
    ]


def test_serving_makes_the_tensors_that_training_learnt_from(trained: tuple[Path, str], model: Path) -> None:
    """Every test text through the served pipeline is what the network was evaluated on, bit for bit."""
    task = Run.open(trained[0] / "run", lambda *_: None).task
    assert isinstance(task, TextTask)
    texts, _ = task.rows.of(Split.TEST)
    served = load_pipeline(model).preprocess([TextInput(text) for text in texts])
    learnt, _ = task.batch(Split.TEST, np.arange(len(texts)), 0)
    assert {name: array.tobytes() for name, array in served.items()} == {n: a.tobytes() for n, a in learnt.items()}
    spec = read_spec(model)
    assert isinstance(spec, TextClassificationSpec)
    assert (model / spec.tokens.tokenizer).read_bytes() == task.tokenizer_json


@pytest.fixture(scope="module")
def repository(trained: tuple[Path, str]) -> Repository:
    return served(trained[0] / "repository")


def served(root: Path) -> Repository:
    return Repository(root, OnnxRuntimeEngine(1), load_pipeline=load_pipeline, warmup_s=0.2)


def test_the_server_loads_it_padded_rows_and_all(trained: tuple[Path, str], repository: Repository) -> None:
    """Golden rows hold alone, together and padded to the next bucket; tokens that do not exist fail nobody."""
    [loaded] = repository.load("wishes")
    assert loaded.certified
    feeds = {"input_ids": np.array([[5, 10**6, -3]]), "attention_mask": np.ones((1, 3), np.int64)}
    session = ort.InferenceSession(trained[0] / "repository" / "wishes" / "1" / "model.onnx")
    assert np.isfinite(session.run(None, feeds)[0]).all()
    long = {name: np.ones((1, 90), np.int64) for name in feeds}
    assert np.isfinite(session.run(None, long)[0]).all()
    loaded.engine_model.close()


# --- copies -------------------------------------------------------------------------------------------


def test_copies_are_measured_and_one_within_the_loss_is_published(
    trained: tuple[Path, str], repository: Repository
) -> None:
    """A table and a plot of all; those of INT8 are smaller, load with their own golden answers, and say it."""
    folder, _ = trained
    arguments = ["quantize", str(folder / "run"), "--publish", "int8-static", "--max-metric-drop", "0.2"]
    result = CliRunner().invoke(commands, [*arguments, "--repository", str(folder / "repository")])
    assert result.exit_code == 0, result.output
    report = json.loads((folder / "run" / variants.FOLDER / variants.REPORT_FILE).read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["fp32", "optimized", "int8-dynamic", "int8-static", "fp16"]
    assert (report["metric"], report["failed"]) == ("accuracy", {})
    assert rows["int8-static"]["bytes"] < 0.5 * rows["fp32"]["bytes"]
    assert rows["fp16"]["bytes"] < 0.7 * rows["fp32"]["bytes"]
    assert all(row["within"] and min(row["speed"]["rows_per_s"].values()) > 0 for row in report["rows"])
    assert (folder / "run" / variants.FOLDER / variants.PLOT_FILE).read_bytes().startswith(b"\x89PNG")
    manifest = read_manifest(folder / "repository" / "wishes-int8-static")
    assert manifest is not None
    assert manifest.versions["1"].precision == "int8-static"
    assert [check.precision for check in manifest.versions["1"].checks] == ["int8-static"] * 2
    [loaded] = repository.load("wishes-int8-static")
    loaded.engine_model.close()


def test_a_copy_that_loses_too_much_or_is_not_there_is_not_published(trained: tuple[Path, str]) -> None:
    """The message has the loss, or the names there are; the repository stays as it was."""
    opened = Run.open(trained[0] / "run", lambda *_: None)
    first = variants.Row("fp32", 2, 0.9, 0.0, True, Speed({1: 1.0}, {1: 1.0}))
    lost = variants.Comparison(
        "accuracy",
        (first, variants.Row("int8-dynamic", 1, 0.5, 0.4, False, first.speed)),
        {"fp16": "can't be made"},
    )
    root = trained[0] / "repository"
    before = sorted(path.name for path in root.iterdir())
    for wanted, words in (
        ("int8-dynamic", "it loses 0.4000 of accuracy, more than --max-metric-drop"),
        ("best", "none is within --max-metric-drop 0.01; of accuracy is lost: int8-dynamic 0.4000"),
        ("fp16", "can't be made"),
        ("optimized", "there is no such one"),
    ):
        with pytest.raises(UsageError, match=words):
            variants.publish(opened, lost, wanted, root, name="", replace=False)
    slow = variants.Row("optimized", 2, 0.9, 0.0, True, Speed({1: 0.5, 8: 9.0}, {1: 2000.0, 8: 800.0}))
    same = dataclasses.replace(first, speed=Speed({1: 1.0, 8: 8.0}, {1: 1000.0, 8: 800.0}))
    told = "none is quicker than fp32, so nothing was published; rows/s in batches of 8: fp32 800, optimized 800"
    with pytest.raises(UsageError, match=told):
        variants.publish(
            opened, variants.Comparison("accuracy", (same, slow), {}), "best", root, name="", replace=False
        )
    quick = dataclasses.replace(slow, speed=Speed({8: 7.9}, {8: 801.0}))
    assert variants.Comparison("accuracy", (same, slow, quick), {}).best() is quick
    assert sorted(path.name for path in root.iterdir()) == before
    with pytest.raises(UsageError, match="--variant int4: known are optimized"):
        variants.compare(opened, ["int4"], 0.1)


# --- mutations ----------------------------------------------------------------------------------------


def swap_tokens(folder: Path) -> None:
    """Two tokens of the first golden text change places in the vocabulary."""
    path = folder / "tokenizer.json"
    [first, *_] = read_raw(folder)
    assert isinstance(first, TextInput)
    one, other = Tokenizer.from_file(str(path)).encode(first.text).tokens[1:3]
    found = json.loads(path.read_text())
    vocabulary = found["model"]["vocab"]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(found, ensure_ascii=False))


def permute_labels(folder: Path) -> None:
    lines = (folder / "labels.txt").read_text().splitlines()
    (folder / "labels.txt").write_text("".join(f"{line}\n" for line in (*lines[1:], lines[0])))


def cut_sooner(folder: Path) -> None:
    text = (folder / "processing.yaml").read_text()
    (folder / "processing.yaml").write_text(text.replace("max_length: 40", "max_length: 6"))


def flip_weight(folder: Path) -> None:
    """The sign of the largest weight of the head."""
    path = folder / "1" / "model.onnx"
    data = path.read_bytes()
    session = ort.InferenceSession(data)
    assert session.get_outputs()[0].name == "logits"
    model = onnx.load_from_string(data)
    head = next(
        each for each in model.graph.initializer if each.name.endswith("head.weight") or "head.weight" in each.name
    )
    weights = numpy_helper.to_array(head).copy()
    place = np.unravel_index(np.abs(weights).argmax(), weights.shape)
    weights[place] *= -1
    head.CopyFrom(numpy_helper.from_array(weights, head.name))
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("mutate", "file", "by_itself"),
    [
        (
            swap_tokens,
            "tokenizer.json",
            "processing.yaml: preprocessing of golden input 0 differs in tensor 'input_ids'",
        ),
        (cut_sooner, "processing.yaml", "processing.yaml: preprocessing of golden input 0 differs in tensor"),
        (permute_labels, "labels.txt", "labels.txt: golden input 0 is answered with the label"),
        (flip_weight, "1/model.onnx", "golden/1.npz: output 'logits' is off by"),
    ],
)
def test_a_change_is_refused_by_its_file_and_by_what_it_does(
    model: Path, tmp_path: Path, mutate: Any, file: str, by_itself: str
) -> None:
    """The hash names the file; and whoever writes the hashes anew is found out by the golden answers."""
    folder = tmp_path / "wishes"
    shutil.copytree(model, folder)
    mutate(folder)
    with pytest.raises(ModelLoadFailed) as caught:
        served(tmp_path).load("wishes")
    assert caught.value.where == file
    assert "differs from manifest.json" in caught.value.problem
    manifest = read_manifest(folder)
    assert manifest is not None
    write_manifest(folder, manifest.model_copy(update={"files": hash_files(folder)}))
    with pytest.raises(ModelLoadFailed) as caught:
        served(tmp_path).load("wishes")
    assert f"{caught.value.where}: {caught.value.problem}".startswith(by_itself)


# --- data and options ---------------------------------------------------------------------------------


def test_jsonl_and_csv_are_read_and_what_is_wrong_is_named(tmp_path: Path) -> None:
    """By its row, with the reason; a file without a single text is refused."""
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "label": 1}\n\n{"text": 5, "label": "x"}\nnonsense\n[]\n'
        '{"text": "b", "label": "x"}\n{"text": "b"}\n'
    )
    found = read_file(tmp_path / "a.jsonl")
    assert [(item.where, item.text, item.label) for item in found.labelled] == [
        ("line 1", "a", "1"),
        ("line 6", "b", "x"),
    ]
    assert [item.where for item in found.broken] == ["line 3", "line 4", "line 5", "line 7"]
    assert "no JSON" in found.broken[1].reason
    (tmp_path / "b.csv").write_text('label,text\nx,"two\nlines"\ny,b,more\n')
    rows = read_file(tmp_path / "b.csv")
    assert [(item.where, item.text) for item in rows.labelled] == [("line 2", "two\nlines")]
    assert rows.broken[0].reason == "3 cells, the first line has 2"
    for name, text, words in (
        ("c.csv", "text\na\n", "has no column label"),
        ("d.jsonl", "", "no row has a text"),
        ("e.xlsx", "", "ends with none of .csv, .jsonl"),
        ("f.csv", b"text,label\n\xff\xfe,a\n", "line 2: byte 0xff is not UTF-8"),
    ):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(DataError, match=words):
            read_file(tmp_path / name)


def test_the_synthetic_messages_are_the_same_each_time_and_named_so() -> None:
    """A seeded generator; words alone do not tell, for most messages name two wishes."""
    found, again = support_messages(), support_messages()
    assert found == again
    assert found.synthetic
    assert "synthetic" in found.source
    kept, dropped = clean(found.labelled)
    assert len(kept) + len(dropped) == 3_000
    assert len(kept) > 2_900


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("hub") / "tiny")


def text_config(trained: tuple[Path, str], recipe: str, **options: Any) -> RunConfig:
    return make_config(
        {
            "recipe": recipe,
            "data": str(trained[0] / "wishes.csv"),
            "name": "m",
            "text": TextOptions(**options).model_dump(),
        },
        {"epochs": 1},
    )


def prepared(config: RunConfig) -> TextTask:
    task = find(config.recipe).collect(config).prepare(config)
    assert isinstance(task, TextTask)
    return task


@pytest.mark.parametrize(("tuning", "blocks"), [("frozen", 0), ("partial", 2), ("full", 3)])
def test_of_an_encoder_that_part_is_trained_which_was_asked_for(
    trained: tuple[Path, str], encoder: Path, tmp_path: Path, tuning: str, blocks: int
) -> None:
    """After an epoch the head has changed, and of the encoder the last blocks, all of it, or nothing."""
    config = text_config(trained, "text-classification", encoder=str(encoder), tuning=tuning, max_length=16)
    task = prepared(config)
    torch.manual_seed(config.seed)
    before = {name: value.clone() for name, value in task.network().state_dict().items()}
    network = run.train(task, Hyperparameters(epochs=1, batch_size=32), config.seed, tmp_path)
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "head.weight" in changed
    assert {name.split("layer.")[1][0] for name in changed if "layer." in name} == set("012"[3 - blocks :])
    assert any("embeddings" in name for name in changed) == (tuning == "full")
    assert f"encoder tiny, sha256 {HubFolder(encoder).sha256[:12]}" in task.report.notes


def test_options_that_make_no_sense_are_refused_by_name(trained: tuple[Path, str], encoder: Path) -> None:
    """Each with what would do."""
    with pytest.raises(UsageError, match=r"--encoder nowhere: no such folder .* nor one of: minilm"):
        prepared(text_config(trained, "text-classification", encoder="nowhere"))
    with pytest.raises(UsageError, match="--max-length 99: tiny takes 24 tokens"):
        prepared(text_config(trained, "text-classification", encoder=str(encoder), max_length=99))
    with pytest.raises(UsageError, match="--tuning: goes with --encoder"):
        prepared(text_config(trained, "text-classification", tuning="frozen"))
    with pytest.raises(UsageError, match="--vocabulary: the encoder has a tokenizer of its own"):
        prepared(text_config(trained, "text-classification", encoder=str(encoder), vocabulary=400))
    with pytest.raises(UsageError, match="--encoder is missing"):
        prepared(text_config(trained, "text-embedding"))
    with pytest.raises(UsageError, match="--max-length: for recipes that read texts"):
        make_config({"recipe": "image-classification", "data": "digits", "name": "m", "text": {"max_length": 5}}, {})
    small = HubEncoder(HubFolder(encoder).encoder().model)
    small.model.encoder.layer = small.model.encoder.layer[:2]  # type: ignore[union-attr, index, operator]
    with pytest.raises(UsageError, match="no more than 2 blocks"):
        freeze(small, "partial")


def test_an_encoder_of_sentences_becomes_a_model_of_vectors(
    trained: tuple[Path, str], encoder: Path, tmp_path: Path
) -> None:
    """Its own length, types, pooling and normalisation; the vectors are those of sentence-transformers."""
    arguments = ["train", "text-embedding", "--data", str(trained[0] / "wishes.csv"), "--encoder", str(encoder)]
    arguments += ["--name", "tiny", "--run-dir", str(tmp_path / "run"), "--repository", str(tmp_path / "repository")]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    [loaded] = served(tmp_path / "repository").load("tiny")
    loaded.engine_model.close()
    folder = tmp_path / "repository" / "tiny"
    pipeline = load_pipeline(folder)
    texts = ["the film was good", "anna lives in oslo and was very very long in the film " * 3, "bad"]
    session = ort.InferenceSession(folder / "1" / "model.onnx")
    outputs = session.run(None, dict(pipeline.preprocess([TextInput(text) for text in texts])))
    vectors = [
        answer.vector
        for answer in pipeline.postprocess({"sentence_embedding": outputs[0]})
        if isinstance(answer, Embedding)
    ]
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(encoder), device="cpu").encode(texts)
    np.testing.assert_allclose(vectors, reference, atol=1e-4)
    assert (pipeline.describe()["dimensions"], pipeline.describe()["normalized"]) == (32, True)
    assert len(read_raw(folder)) == 12
    assert not isinstance(pipeline.postprocess({"sentence_embedding": outputs[0]})[0], Classification)
