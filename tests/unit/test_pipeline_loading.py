"""processing.yaml: written by training, read by serving."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from server.errors import ModelLoadFailed
from server.pipeline.image import ImagePipeline
from server.pipeline.image_spec import ImageSpec
from server.pipeline.load import _SPECS, _class, load_pipeline, read_spec, write_spec
from tests.support.models import SMALL_SPEC, write_image_model

REPOSITORY = Path(__file__).parents[2] / "model_repository"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_model(tmp_path / "pets")


def replace(folder: Path, old: str, new: str) -> None:
    path = folder / "processing.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_spec_survives_being_written_and_read(folder: Path) -> None:
    """An equal spec comes back, and is written as the same bytes."""
    before = (folder / "processing.yaml").read_bytes()
    spec = read_spec(folder)
    assert spec == SMALL_SPEC
    write_spec(spec, folder)
    assert (folder / "processing.yaml").read_bytes() == before


def test_the_task_chooses_the_pipeline(folder: Path) -> None:
    """load_pipeline gives the pipeline of the spec's task, ready to be used."""
    pipeline = load_pipeline(folder, max_pixels=77)
    assert isinstance(pipeline, ImagePipeline)
    assert pipeline.describe()["input"]["max_pixels"] == 77  # type: ignore[index]


@pytest.mark.parametrize("model", [path.parent.name for path in REPOSITORY.glob("*/processing.yaml")])
def test_a_pipeline_crosses_to_another_process(model: str) -> None:
    """With --workers the fronts get the pipeline that the engine process has verified (pickled), and it works there."""
    own = load_pipeline(REPOSITORY / model)
    theirs = pickle.loads(pickle.dumps(own))  # noqa: S301 - our own
    example = own.example()
    for name, array in own.preprocess([example]).items():
        np.testing.assert_array_equal(theirs.preprocess([example])[name], array)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("task: image-classification", "task: astrology", "processing.yaml"),
        ("mode: L", "mode: CMYK", "mode"),
        ("height: 4", "height: 0", "resize.height"),
        ("height: 4", "hight: 4", "resize.h"),
        ("filter: bilinear", "filter: magic", "resize.filter"),
        ("decoder: pillow", "decoder: opencv", "decode.decoder: 'opencv' is not known"),
        ("oversample: 1.0", "oversample: 0.5", "decode.oversample"),
        ("layout: NCHW", "layout: NCHW\nsurprise: 1", "surprise"),
        ("layout: NCHW", "layout: NCHW\nlayout: NHWC", "layout"),
        ("mode: L", "mode: RGB", "normalize"),
        ("max_pixels: 25000000", "max_pixels: 900000000", "max_pixels"),
        ("example: example.png", "example: ../secret.png", "example"),
        ("task: image-classification", "task: [", "processing.yaml"),
    ],
)
def test_what_a_spec_gets_wrong_is_named(folder: Path, old: str, new: str, where: str) -> None:
    """A wrong, unknown or repeated field keeps the model out and is named in the reason."""
    replace(folder, old, new)
    with pytest.raises(ModelLoadFailed) as raised:
        load_pipeline(folder)
    assert raised.value.model_name == "pets"
    assert where in raised.value.public_message
    assert str(folder) not in raised.value.public_message


@pytest.mark.parametrize("task", _SPECS)
def test_each_task_has_the_spec_that_says_so(task: str) -> None:
    """The table, by which only the spec of a model's task is imported, and the specs say the same."""
    assert _class(task).model_fields["task"].default == task


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("task: astrology", "'astrology' found using 'task' does not match any of the expected tags: 'image-class"),
        ("task: [tabular-classification]", "does not match any of the expected tags"),
        ("mode: L", "Unable to extract tag using discriminator 'task'"),
        ("- 1", "should be a valid dictionary"),
        ("task: custom", "processing.yaml: file: Field required"),
    ],
)
def test_a_spec_of_no_task_is_told_the_tasks(folder: Path, content: str, reason: str) -> None:
    """What is known is named; a spec whose task is known is told of its fields alone."""
    (folder / "processing.yaml").write_text(content)
    with pytest.raises(ModelLoadFailed) as raised:
        read_spec(folder)
    assert reason in raised.value.public_message


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"\xff\xff", b"!!python/object/apply:os.getcwd []"], ids=repr)
def test_a_file_that_is_no_spec_keeps_the_model_out(folder: Path, content: bytes) -> None:
    """No YAML, no mapping, or YAML that would run code."""
    (folder / "processing.yaml").write_bytes(content)
    with pytest.raises(ModelLoadFailed, match=r"processing\.yaml"):
        read_spec(folder)


@pytest.mark.parametrize("name", ["processing.yaml", "labels.txt", "example.png"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    """Every file that the spec needs has to be there when the model is loaded."""
    (folder / name).unlink()
    with pytest.raises(ModelLoadFailed, match=name):
        load_pipeline(folder)


def test_a_foreground_needs_a_grey_picture() -> None:
    """Ink is told from paper by luminance alone."""
    changed = SMALL_SPEC.model_dump() | {"mode": "RGB", "foreground": {}}
    changed["normalize"] = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    with pytest.raises(ValueError, match="needs mode L"):
        ImageSpec.model_validate(changed)


def test_a_reduced_foreground_needs_the_size_it_is_looked_for_at() -> None:
    """pillow-draft reduces to max_side where the model's own size says nothing of how large the ink is."""
    changed = SMALL_SPEC.model_dump() | {"foreground": {}, "decode": {"decoder": "pillow-draft"}}
    with pytest.raises(ValueError, match="needs max_side"):
        ImageSpec.model_validate(changed)


def test_a_spec_that_names_no_decoder_has_todays_default(folder: Path) -> None:
    """Models that were published before the choice existed mean what they meant: the whole picture, by Pillow."""
    replace(folder, "  decoder: pillow\n", "")
    replace(folder, "  oversample: 1.0\n", "")
    assert read_spec(folder) == SMALL_SPEC
