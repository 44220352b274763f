"""The image recipe: folders of pictures end to end, and what the published digits model reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from typer.testing import CliRunner

from exporter.cli import commands
from exporter.config import difference
from exporter.data import drawing
from exporter.data.split import stratified
from exporter.errors import DataError
from exporter.recipes import find
from exporter.recipes.base import RunConfig, Split
from server.pipeline.load import load_pipeline
from server.repository import certificate
from server.types import ImageInput
from tests.support.drawn_digits import DRAWINGS, all_drawings, encode, transparent, typed

DIGITS = Path(__file__).parents[2] / "model_repository" / "digits"
COLOURS = {"blue": (20, 30, 200), "green": (30, 180, 40), "red": (210, 30, 20)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of each of three colours; a copy, a contradiction, and four files that are no pictures."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(24):
            noise = generator.normal(colour, 25, (40, 52, 3)).clip(0, 255).astype(np.uint8)
            kind = ("png", "jpg")[number % 2]
            Image.fromarray(noise).save(folder / name / f"{number:02}.{kind}")
    whole = (folder / "red" / "01.jpg").read_bytes()
    (folder / "red" / "copy.jpg").write_bytes(whole)
    (folder / "blue" / "99.png").write_bytes(encode(Image.new("RGB", (9, 9)), "PNG"))
    (folder / "red" / "99.png").write_bytes(encode(Image.new("RGB", (9, 9)), "PNG"))
    (folder / "red" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "red" / "notes.txt").write_text("no picture")
    (folder / "red" / "empty.png").write_bytes(b"")
    (folder / "nobody").mkdir()
    (folder / "stray.png").write_bytes((folder / "red" / "00.png").read_bytes())
    (folder / "red" / ".hidden").write_text("passed over")
    return folder


@pytest.mark.training
def test_a_folder_of_pictures_becomes_a_model_that_answers(folder: Path, tmp_path: Path) -> None:
    """train reports each step, counts and names what it drops, and publishes what the pipeline and ORT agree on."""
    arguments = ["train", "image-classification", "--data", str(folder), "--name", "colours", "--epochs", "3"]
    arguments += ["--run-dir", str(tmp_path / "run"), "--repository", str(tmp_path / "repository")]
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    for step in ("collect", "prepare", "train", "evaluate", "export", "verify", "publish"):
        assert f"\n{step}" in "\n" + result.output
    report = json.loads((tmp_path / "run" / "data.json").read_text())
    broken = [dropped["where"] for dropped in report["broken"]]
    assert broken == ["nobody/", "red/cut.jpg", "red/empty.png", "red/notes.txt", "stray.png"]
    assert sorted(dropped["where"] for dropped in report["duplicates"]) == ["blue/99.png", "red/99.png", "red/copy.jpg"]
    assert report["collected"] == 24 * 3 + 3 + 5
    assert sum(sum(counts.values()) for counts in report["rows"].values()) == 24 * 3

    model = tmp_path / "repository" / "colours"
    manifest = certificate.read_manifest(model)
    assert manifest is not None
    certificate.verify_files(model, manifest, "1")
    assert manifest.versions["1"].metrics["accuracy"] == 1.0
    answers = _answer(model, [encode(Image.new("RGB", (300, 200), colour), "PNG") for colour in COLOURS.values()])
    assert answers == list(COLOURS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "astrology", "--data", "digits", "--name", "m"], 2, "astrology"),
        (["train", "image-classification", "--data", "/nowhere", "--name", "m"], 3, "/nowhere"),
        (["train", "image-classification", "--data", "digits", "--name", "m", "--target", "x"], 2, "--target"),
        (["train", "image-classification", "--data", "digits", "--name", "../m"], 2, "name"),
        (["train", "image-classification", "--data", "digits", "--name", "m", "--epochs", "0"], 2, "epochs"),
        (["train", "image-classification", "--data", "digits", "--name", "m", "--resume"], 4, "no run folder"),
        (["verify", "nothing"], 4, "no run folder"),
    ],
)
def test_each_kind_of_mistake_has_its_exit_code(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the thing, no traceback, and nothing published."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "model_repository").exists()


def test_a_folder_that_is_no_run_is_not_emptied(tmp_path: Path) -> None:
    """A new run removes what an earlier run left, and nothing else."""
    (tmp_path / "thesis.txt").write_text("years of work")
    arguments = ["train", "image-classification", "--data", "digits", "--name", "m", "--run-dir", str(tmp_path)]
    assert CliRunner().invoke(commands, arguments).exit_code == 4
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_earlier_run_stays_where_the_new_one_has_no_data(tmp_path: Path) -> None:
    """A slip in a path must not cost a trained model."""
    (tmp_path / "config.yaml").write_text("recipe: image-classification\n")
    (tmp_path / "checkpoint.pt").write_bytes(b"hours of training")
    arguments = ["train", "image-classification", "--data", "digitss", "--name", "m", "--run-dir", str(tmp_path)]
    assert CliRunner().invoke(commands, arguments).exit_code == 3
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "config.yaml": b"recipe: image-classification\n",
        "checkpoint.pt": b"hours of training",
    }


def test_what_differs_in_a_configuration_is_named_alone() -> None:
    """Not all of what the group has that it belongs to."""
    before = RunConfig(recipe="image-classification", data="digits", name="m")
    training = before.training.model_copy(update={"epochs": before.training.epochs + 1})
    told = difference(before, before.model_copy(update={"training": training, "seed": 5}))
    assert told == f"seed was 0, now 5, training.epochs was {before.training.epochs}, now {training.epochs}"


def test_preparing_twice_gives_the_same_rows(folder: Path) -> None:
    """Same seed and data: the same split and the same varied pictures, to the bit; another seed, another split."""
    recipe = find("image-classification")
    config = RunConfig(recipe=recipe.name, data=str(folder), name="m")
    tasks = [recipe.collect(config).prepare(config) for _ in range(2)]
    rows = np.arange(5)
    (a, targets_a), (b, targets_b) = (task.batch(Split.TRAIN, rows, 7) for task in tasks)
    np.testing.assert_array_equal(a["image"], b["image"])
    np.testing.assert_array_equal(targets_a, targets_b)
    assert not np.array_equal(a["image"], tasks[0].batch(Split.TRAIN, rows, 8)[0]["image"])
    plain = [tasks[0].batch(Split.TEST, rows, epoch)[0]["image"] for epoch in (0, 1)]
    np.testing.assert_array_equal(*plain)
    other = config.model_copy(update={"seed": 1})
    changed = recipe.collect(other).prepare(other).batch(Split.TEST, rows, 0)[0]["image"]
    assert not np.array_equal(plain[0], changed)


def test_a_class_of_two_pictures_can_not_be_split(tmp_path: Path) -> None:
    """Ten are the least, for three splits; the error says which label and how many."""
    for name, count in (("many", 5), ("few", 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.effect_noise((16, 16), 50 + number).save(tmp_path / name / f"{number}.png")
    recipe = find("image-classification")
    config = RunConfig(recipe=recipe.name, data=str(tmp_path), name="m")
    with pytest.raises(DataError, match="'few' has 2, 'many' has 5"):
        recipe.collect(config).prepare(config)


def test_splits_share_no_row_and_keep_the_proportions() -> None:
    """Every row is in one split, and every label in all three, in proportion."""
    targets = np.array([0] * 100 + [1] * 20 + [2] * 3)
    splits = stratified(targets, seed=1)
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(123))
    assert np.bincount(targets[splits[Split.TEST]]).tolist() == [15, 3, 1]
    assert np.bincount(targets[splits[Split.TRAIN]]).tolist() == [70, 14, 1]


def test_thinning_keeps_a_ring_a_ring() -> None:
    """A skeleton is one pixel wide and has the holes of what it was made from."""
    y, x = np.mgrid[:60, :60]
    distance = np.hypot(y - 30, x - 30)
    skeleton = drawing.thin((distance > 10) & (distance < 20))
    radii = distance[skeleton]
    assert 60 < skeleton.sum() < 110
    assert 11 < radii.min() <= radii.max() < 19
    sectors = np.unique(np.floor(np.arctan2(y - 30, x - 30)[skeleton] * 8 / np.pi))
    assert len(sectors) >= 16, "the ring is closed"


# --- the committed model ---------------------------------------------------------------------------


def _answer(model: Path, pictures: list[bytes]) -> list[str]:
    pipeline = load_pipeline(model)
    session = ort.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    arrays = pipeline.preprocess([ImageInput(picture) for picture in pictures])
    outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(arrays)), strict=True))
    return [answer.label for answer in pipeline.postprocess(outputs)]


def test_the_committed_digits_model_keeps_its_promise() -> None:
    """At least 98 % on held-out digits, better than its baseline, under 600 KB."""
    manifest = certificate.read_manifest(DIGITS)
    assert manifest is not None
    (record,) = manifest.versions.values()
    assert record.metrics["accuracy"] >= 0.98
    assert record.metrics["accuracy"] > float(record.baseline["accuracy"])
    assert (DIGITS / "1" / "model.onnx").stat().st_size < 600_000


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_hand_drawn_digits_are_read(kind: str) -> None:
    """In twelve styles of pen, paper, size, place and light: nearly all, and every one in the two plain styles."""
    drawings = list(all_drawings())
    answers = _answer(DIGITS, [encode(picture, kind) for _, _, picture in drawings])
    wrong = [
        (digit, style.name, answer)
        for (digit, style, _), answer in zip(drawings, answers, strict=True)
        if digit != answer
    ]
    assert len(wrong) <= 0.05 * len(drawings), wrong
    assert [item for item in wrong if item[1] in ("a felt pen on white paper", "chalk on a black board")] == []


def test_typed_and_transparent_digits_are_read() -> None:
    """A font's digits in both polarities, and what a browser's canvas gives: nearly all."""
    cases = [(digit, typed(digit, dark)) for digit in DRAWINGS for dark in (True, False)]
    cases += [(digit, transparent(digit, ink)) for digit in DRAWINGS for ink in (0, 90, 255)]
    answers = _answer(DIGITS, [encode(picture, "PNG") for _, picture in cases])
    wrong = [(digit, answer) for (digit, _), answer in zip(cases, answers, strict=True) if digit != answer]
    assert len(wrong) <= 0.1 * len(cases), wrong


def test_the_example_pictures_are_a_seven() -> None:
    """The README's command gives the answer that it shows, for the PNG and for its JPEG twin."""
    pictures = [(DIGITS / name).read_bytes() for name in ("example.png", "example.jpg")]
    assert _answer(DIGITS, pictures) == ["7", "7"]
