"""Folders of Hugging Face's form, by their task, into a repository that the server loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from exporter import hub_import
from exporter.cli import commands
from exporter.errors import DataError
from exporter.text.hub import HubFolder, folder_of
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.pipeline.base import answers
from server.pipeline.image import ImageSteps
from server.pipeline.load import load_pipeline
from server.repository.certificate import read_manifest
from server.repository.repository import Repository
from server.types import Entities, TextInput
from tests.support.text_models import IDS, write_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ENTITIES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC"}
PROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 40},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def tagger(folder: Path) -> Path:
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(IDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        id2label=ENTITIES,
        label2id={name: number for number, name in ENTITIES.items()},
    )
    BertForTokenClassification(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 32}')
    return write_tokenizer(folder)


def vision(folder: Path) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(2)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        id2label={0: "cat", 1: "dog", 2: "fox"},
        label2id={"cat": 0, "dog": 1, "fox": 2},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def imported(folder: Path, root: Path) -> Path:
    result = CliRunner().invoke(commands, ["import", str(folder), "--name", folder.name, "--repository", str(root)])
    assert result.exit_code == 0, result.output
    [loaded] = Repository(root, OnnxRuntimeEngine(1), load_pipeline=load_pipeline, warmup_s=0.2).load(folder.name)
    loaded.engine_model.close()
    assert loaded.certified
    return root / folder.name


def test_a_tagger_finds_entities(tmp_path: Path) -> None:
    """Token classification: the labels, tokenizer and length are the folder's; golden rows alone are checked."""
    folder = imported(tagger(tmp_path / "tagger"), tmp_path / "repository")
    pipeline = load_pipeline(folder)
    assert pipeline.describe()["entities"] == ["PER", "LOC"]
    inputs = [TextInput("Anna lives in Oslo"), TextInput("good")]
    session = ort.InferenceSession(folder / "1" / "model.onnx")
    outputs = session.run(None, dict(pipeline.preprocess(inputs)))
    found = answers(pipeline, inputs, {"logits": outputs[0]})
    assert all(isinstance(answer, Entities) for answer in found)
    manifest = read_manifest(folder)
    assert manifest is not None
    record = manifest.versions["1"]
    assert (manifest.recipe, manifest.task) == ("import", "token-classification")
    assert [(check.provider, check.data) for check in record.checks] == [("CPU", "golden")]
    assert record.data.sha256 == HubFolder(tmp_path / "tagger").sha256


def test_pictures_are_processed_as_the_folders_own_processor_does(tmp_path: Path) -> None:
    """Resize by the shorter side, crop, scale, mean and deviation: the same tensors as transformers', for any shape."""
    folder = imported(vision(tmp_path / "vision"), tmp_path / "repository")
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil(**PROCESSOR)
    spec = hub_import.picture_spec(HubFolder(tmp_path / "vision"), 3)
    steps = ImageSteps(spec)
    generator = np.random.default_rng(3)
    for height, width in ((50, 70), (200, 41), (32, 32), (33, 300)):
        picture = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        theirs = processor(picture, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(steps.tensor(picture), theirs, atol=1e-5)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.task == "image-classification"
    assert set(manifest.versions["1"].answers) <= {"cat", "dog", "fox"}


@pytest.mark.parametrize("size", [40, {"shortest_edge": 40}, {"shortest_edge": 384}])
def test_pictures_of_convnexts_kind_are_cropped_by_a_share(tmp_path: Path, size: Any) -> None:
    """ResNet's too: resized by the shorter side and cropped, or stretched where they are large."""
    from transformers import ConvNextImageProcessorPil

    told = {key: PROCESSOR[key] for key in ("resample", "image_mean", "image_std")} | {"size": size, "crop_pct": 0.875}
    spec = hub_import.picture_spec(written(tmp_path / "m", preprocessor_config=told), 3)
    processor = ConvNextImageProcessorPil(**told | {"size": {"shortest_edge": 40} if size == 40 else size})
    generator = np.random.default_rng(3)
    for height, width in ((50, 70), (200, 41), (33, 300)):
        picture = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        theirs = processor(picture, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(ImageSteps(spec).tensor(picture), theirs, atol=1e-5)


def written(folder: Path, **files: Any) -> HubFolder:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return HubFolder(folder)


CLASSES = {"architectures": ["ViTForImageClassification"], "id2label": {"0": "a", "1": "b"}}


@pytest.mark.parametrize(
    ("config", "processor", "problem"),
    [
        (
            {"architectures": ["T5ForConditionalGeneration"]},
            {},
            "no task for the architecture T5For",
        ),
        (CLASSES | {"id2label": {"0": "a"}}, PROCESSOR, "no id2label with two or more different labels"),
        (CLASSES | {"problem_type": "multi_label_classification"}, PROCESSOR, "here an answer is one label"),
        (CLASSES, PROCESSOR | {"size": {"longest_edge": 9}}, "resizes to {'longest_edge': 9} and crops to"),
        (CLASSES, PROCESSOR | {"do_resize": False}, "do_resize false"),
        (CLASSES, PROCESSOR | {"resample": 0}, "unknown resample 0"),
        (CLASSES, PROCESSOR | {"image_mean": None}, "preprocessor_config.json can't be used: 'NoneType'"),
        (CLASSES, PROCESSOR | {"crop_size": {}}, "crops to {}: not known here"),
        (CLASSES, PROCESSOR | {"image_std": [0, 1, 1]}, "preprocessor_config.json can't be used: "),
        (CLASSES, {"size": 32}, "preprocessor_config.json can't be used: 'image_mean' is not there"),
    ],
)
def test_what_a_spec_can_not_say_is_refused_by_name(tmp_path: Path, config: Any, processor: Any, problem: str) -> None:
    """Nothing is guessed: the message has the setting."""
    with pytest.raises(DataError) as caught:
        hub_import.read(written(tmp_path / "m", config=config, preprocessor_config=processor))
    assert problem in str(caught.value)


def test_another_path_is_no_model(tmp_path: Path) -> None:
    """The command says what it looks for."""
    result = CliRunner().invoke(commands, ["import", str(tmp_path), "--name", "m", "--repository", str(tmp_path / "r")])
    assert (result.exit_code, (tmp_path / "r").exists()) == (2, False)


# --- the real one: alone in using MiniLM ----------------------------------------------------------------


def test_minilm_gives_the_vectors_of_sentence_transformers() -> None:
    """The network that is exported, on what the pipeline's tokens are, within 1e-4; the settings are the folder's."""
    from sentence_transformers import SentenceTransformer

    folder = HubFolder(folder_of("minilm"))
    found = hub_import.read(folder)
    assert found.spec.model_dump(mode="json")["tokens"]["max_length"] == 256
    assert [spec.name for spec in found.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    from tokenizers import Tokenizer

    from server.pipeline.tokens import TextEncoder

    encoder = TextEncoder(folder.tokens(), Tokenizer.from_buffer(folder.tokenizer_json))
    inputs = encoder.preprocess(list(found.golden))
    network = found.network_of().eval()
    with torch.inference_mode():
        ours = network(*(torch.from_numpy(array) for array in inputs.values())).numpy()
    reference = SentenceTransformer(str(folder.path), device="cpu").encode(list(hub_import.TEXTS))
    np.testing.assert_allclose(ours, reference, atol=1e-4)
