"""The recipe of models that write text, from texts to a server's answer: one run for all, as small as can be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from exporter.cli import commands
from exporter.errors import DataError, UsageError, VerifyError
from exporter.generation.build import build
from exporter.generation.certify import certify, of_trained
from exporter.generation.config import GenerationConfig
from exporter.generation.corpus import read_corpus
from exporter.generation.measure import bigram_perplexity, perplexity
from exporter.generation.publish import stage
from exporter.generation.run import make_config
from exporter.recipes.base import Split
from server.engine.genai.engine import GenaiEngine
from server.errors import ModelLoadFailed
from server.repository.loading import Loader

FLAGS = ["--vocabulary", "300", "--layers", "1", "--width", "32", "--heads", "2", "--kv-heads", "1", "--context", "96"]
FLAGS += ["--window", "32", "--epochs", "2", "--batch-size", "16"]


def run(*flags: str) -> str:
    result = CliRunner().invoke(commands, ["text-generation", *flags], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    lines = [f"{who} asks {what} and waits for {why}." for who in NAMES for what in THINGS for why in REASONS]
    (folder / "asks.txt").write_text("\n\n".join(lines))
    (folder / "broken.txt").write_bytes(b"\xff\xfe\xff")
    return folder


NAMES = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald")
THINGS = ("the server", "a queue", "every model", "the cache", "an engine")
REASONS = ("an answer", "its turn", "the next token", "a free row", "the end of a text", "nothing at all")


@pytest.fixture(scope="module")
def made(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A repository with the model `asks`, its run folder beside it, and what the command said."""
    place = tmp_path_factory.mktemp("made")
    flags = ["--data", str(texts), "--name", "asks", "--repository", str(place / "models")]
    return place, run(*flags, "--run-dir", str(place / "run"), *FLAGS)


def test_a_model_is_made_from_texts_and_certified(made: tuple[Path, str]) -> None:
    """Better than pairs of tokens; every golden prompt gets transformers' tokens; the manifest says so."""
    place, said = made
    manifest = json.loads((place / "models" / "asks" / "manifest.json").read_text())
    version = manifest["versions"]["1"]
    assert version["metrics"]["same_tokens_as_transformers"] == 1
    assert version["metrics"]["perplexity"] == pytest.approx(version["metrics"]["perplexity_trained"], rel=1e-3)
    assert 1 < version["metrics"]["perplexity"] < 300
    assert version["baseline"]["name"] == "bigram table"
    assert "100% of" in said


def test_the_server_loads_it_with_its_golden_prompts(made: tuple[Path, str], tmp_path: Path) -> None:
    """And refuses it where it does not write what it was certified to write."""
    place, _ = made
    loader = Loader(GenaiEngine(1), lambda _: None, 1.0)  # type: ignore[arg-type,return-value]
    [model] = loader.load(place / "models" / "asks").values()
    assert not isinstance(model, ModelLoadFailed), model
    assert model.certified
    assert model.chat is not None
    model.engine_model.close()
    folder = tmp_path / "asks"
    shutil.copytree(place / "models" / "asks", folder)
    (folder / "manifest.json").unlink()
    weights = folder / "1" / "model.onnx.data"
    weights.write_bytes(np.frombuffer(weights.read_bytes(), np.float32)[::-1].tobytes())
    [broken] = loader.load(folder).values()
    assert isinstance(broken, ModelLoadFailed)
    assert broken.where == "golden/1.npz"


def test_a_model_is_fine_tuned_beside_its_weights_and_published_in_int4(made: tuple[Path, str], texts: Path) -> None:
    """LoRA from a local folder; what INT4 costs is told, and refused where it is too much."""
    place, _ = made
    flags = ["--data", str(texts), "--base", str(place / "run" / "trained"), "--lora-rank", "2", "--precision", "int4"]
    flags += ["--window", "32", "--epochs", "1", "--batch-size", "16", "--run-dir", str(place / "tuned")]
    said = run(*flags, "--name", "tuned", "--repository", str(place / "models"), "--most-worse", "5")
    assert "at int4" in said
    version = json.loads((place / "models" / "tuned" / "manifest.json").read_text())["versions"]["1"]
    assert version["environment"]["precision"] == "int4"
    assert version["metrics"]["perplexity"] != version["metrics"]["perplexity_trained"]


def test_a_model_is_fine_tuned_whole(made: tuple[Path, str], texts: Path) -> None:
    """From a local folder, without LoRA: all its weights move, and it is certified as one from scratch is."""
    place, _ = made
    base = place / "run" / "trained"
    flags = ["--data", str(texts), "--base", str(base), "--window", "32", "--epochs", "1", "--batch-size", "16"]
    run(*flags, "--run-dir", str(place / "whole"), "--name", "whole", "--repository", str(place / "models"))
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, place / "whole" / "trained"))
    weights = dict(after.named_parameters())
    assert [name for name, weight in before.named_parameters() if bool((weights[name] == weight).all())] == []
    version = json.loads((place / "models" / "whole" / "manifest.json").read_text())["versions"]["1"]
    assert version["metrics"]["same_tokens_as_transformers"] == 1
    assert version["baseline"]["name"] == "bigram table"


def test_a_base_that_can_not_be_tuned_is_named(made: tuple[Path, str], texts: Path, tmp_path: Path) -> None:
    """By its option: it has other layers than those that are tuned, or lies where the run would empty its folder."""
    place, _ = made
    trained, other = place / "run" / "trained", tmp_path / "other"
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=96)).save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(trained / name, other)
    flags = ["--data", str(texts), "--name", "m", "--window", "32", "--epochs", "1"]
    for more, named in (
        (["--base", str(other), "--lora-rank", "2", "--run-dir", str(tmp_path / "run")], "--lora-rank"),
        (["--base", str(trained), "--run-dir", str(place / "run")], "--base"),
    ):
        result = CliRunner().invoke(commands, ["text-generation", *flags, *more])
        assert (result.exit_code, named in result.output) == (2, True), result.output
    assert (trained / "config.json").is_file()


def test_fp16_for_cuda_is_certified_on_the_cpu(made: tuple[Path, str], tmp_path: Path) -> None:
    """By the same golden prompts and held-out text: what the trained model gives, but for the half of the digits."""
    trained = made[0] / "run" / "trained"
    build(trained, tmp_path / "built", "fp16")
    folder = tmp_path / "asks"
    folder.mkdir()
    stage(folder, tmp_path / "built", "asks")
    model = AutoModelForCausalLM.from_pretrained(trained)
    held_out = np.arange(2, 200)
    config = make_config(data="handbook", name="asks", precision="fp16", window=32, most_worse=0.01)
    found = certify(folder, "1", config, model, ["Ada asks", "Grace"], held_out)
    assert found.perplexity == pytest.approx(perplexity(of_trained(model), held_out, 32), rel=0.01)
    assert found.outputs["text_output"].shape == (2,)


def test_a_run_goes_on_only_with_its_own_texts_and_configuration(made: tuple[Path, str], texts: Path) -> None:
    """With either changed it is another run."""
    place, _ = made
    flags = ["text-generation", "--data", str(texts), "--name", "asks", "--run-dir", str(place / "run"), "--resume"]
    other = CliRunner().invoke(commands, [*flags, *FLAGS, "--seed", "1"])
    assert (other.exit_code, "another configuration" in other.output) == (4, True)
    data = place / "run" / "data.json"
    before = data.read_text()
    data.write_text('{"sha256": "another"}')
    changed = CliRunner().invoke(commands, [*flags, *FLAGS])
    data.write_text(before)
    assert (changed.exit_code, "trained on" in changed.output) == (4, True)


def test_texts_are_split_by_passages_without_doubles(texts: Path) -> None:
    """The same every time; files that can't be read are named."""
    corpus = read_corpus(str(texts))
    assert corpus == read_corpus(str(texts))
    assert [dropped.where for dropped in corpus.broken] == ["broken.txt"]
    everything = [text for texts in corpus.passages.values() for text in texts]
    assert len(everything) == len(set(everything))
    assert len(corpus.passages[Split.TRAIN]) > len(corpus.passages[Split.TEST]) > 0
    (texts / "more").mkdir(exist_ok=True)
    (texts / "more" / "again.md").write_text((texts / "asks.txt").read_text())
    assert read_corpus(str(texts)).sha256 == corpus.sha256
    assert read_corpus("handbook").passages[Split.TEST]


def test_perplexity_is_that_of_the_distribution() -> None:
    """Of even odds the size of the vocabulary; of a table that knows the pairs nearly 1."""
    tokens = np.arange(400) % 4
    assert perplexity(lambda read: np.zeros((len(read), 4)), tokens, 16) == pytest.approx(4)
    assert bigram_perplexity(tokens, tokens, 4, 16) == pytest.approx(1 / (0.9 + 0.1 / 4), rel=0.01)


def test_what_can_not_be_made_is_said(texts: Path, tmp_path: Path) -> None:
    """By the option, or the data."""
    (tmp_path / "few.txt").write_text("one\n\ntwo")
    with pytest.raises(DataError):
        read_corpus(str(tmp_path))
    with pytest.raises(DataError):
        read_corpus(str(tmp_path / "nowhere"))
    for said, error in (({"precision": "int2"}, UsageError), ({"name": "/"}, UsageError)):
        with pytest.raises(error):
            make_config(**{"data": "x", "name": "m", **said})
    for flags, code in ((["--width", "33"], 2), (["--base", str(tmp_path / "none")], 2), (["--window", "100000"], 2)):
        arguments = ["text-generation", "--data", str(texts), "--name", "m", "--run-dir", str(tmp_path / "run"), *flags]
        result = CliRunner().invoke(commands, arguments)
        assert result.exit_code == code, result.output
    assert VerifyError.exit_code == 6
    assert GenerationConfig(data="x", name="m").precision == "fp32"
