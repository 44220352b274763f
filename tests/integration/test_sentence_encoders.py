"""Encoders of sentences from anywhere: other architectures, tokenizers, poolings and layers, as their folders say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from exporter import hub_import
from exporter.config import make_config
from exporter.errors import DataError, UsageError
from exporter.importing import import_path
from exporter.recipes import find
from exporter.text.hub import HubFolder
from server.pipeline.tokens import TextEncoder
from server.types import TextInput
from tests.support.text_models import IDS, WORDS, write_encoder, write_texts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TEXTS = ["the film was good", "Anna lives in OSLO and was very very long in the film. " * 4, "bad?"]


def change(path: Path, **values: Any) -> None:
    """Of a JSON object in a file; a value of None takes the key away."""
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def distilbert(folder: Path) -> None:
    """Its width is named `dim`, it has no types, and the first token stands for the text."""
    from transformers import DistilBertConfig, DistilBertModel

    made = DistilBertConfig(
        vocab_size=len(IDS), dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=24
    )
    DistilBertModel(made).save_pretrained(folder)
    change(folder / "tokenizer_config.json", tokenizer_class="DistilBertTokenizer")
    change(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)


def unigram(folder: Path) -> None:
    from transformers import CamembertConfig, CamembertModel

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made = CamembertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=26,
        type_vocab_size=1,
        pad_token_id=1,
    )
    CamembertModel(made).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **names, model_max_length=None)


def camembert(folder: Path) -> None:
    """Pieces of words, and places that begin behind the padding's: of 26 are 24 for tokens. The largest numbers."""
    unigram(folder)
    (folder / "sentence_bert_config.json").unlink()
    (folder / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32, "pooling_mode": "max"}')


def half_of_t5(folder: Path) -> None:
    """A model with a decoder, of which the encoder is taken."""
    from transformers import T5Config, T5Model

    T5Model(T5Config(vocab_size=len(IDS), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(
        folder
    )


def lowers_apart(folder: Path) -> None:
    """An older folder: the encoder stands in one of its own. The texts are lowered before the tokenizer."""
    apart = folder / "0_Transformer"
    apart.mkdir()
    for path in [each for each in folder.iterdir() if each.is_file() and each.name != "modules.json"]:
        path.rename(apart / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = apart.name
    (folder / "modules.json").write_text(json.dumps(modules))
    change(apart / "sentence_bert_config.json", do_lower_case=True)


def projected(folder: Path) -> None:
    """A layer behind the pooling makes 12 numbers of 32."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense

    made = SentenceTransformer(str(folder), device="cpu")
    made.insert(2, Dense(32, 12, activation_function=torch.nn.Tanh()))
    made.save(str(folder / "made"))
    for path in (folder / "made").iterdir():
        shutil.rmtree(folder / path.name, ignore_errors=True)
        path.rename(folder / path.name)


def encoder_folder(folder: Path, rewrite: Callable[[Path], None]) -> Path:
    write_encoder(folder)
    # By the file alone: what lowers texts stands in its normalizer, or nowhere.
    if rewrite is lowers_apart:
        plain = json.loads((folder / "tokenizer.json").read_text()) | {"normalizer": None}
        (folder / "tokenizer.json").write_text(json.dumps(plain))
        change(folder / "tokenizer_config.json", do_lower_case=False)
    torch.manual_seed(0)
    rewrite(folder)
    return folder


@pytest.mark.parametrize(
    ("rewrite", "dimensions"),
    [(distilbert, 32), (camembert, 32), (half_of_t5, 32), (lowers_apart, 32), (projected, 12)],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_vectors_are_those_of_sentence_transformers(
    tmp_path: Path, rewrite: Callable[[Path], None], dimensions: int
) -> None:
    """Within 1e-4, long texts cut at the same place, alone and padded beside others."""
    from sentence_transformers import SentenceTransformer

    path = encoder_folder(tmp_path / "encoder", rewrite)
    found = hub_import.read(HubFolder(path))
    assert found.outputs[0].dims == (dimensions,)
    [tokens] = [spec.tokens for spec in [found.spec] if hasattr(spec, "tokens")]
    assert tokens.max_length == 24
    encoder = TextEncoder(tokens, Tokenizer.from_buffer(found.folder.tokenizer_json))
    inputs = encoder.preprocess([TextInput(text) for text in TEXTS])
    with torch.inference_mode():
        ours = found.network_of().eval()(*(torch.from_numpy(array) for array in inputs.values())).numpy()
    reference = SentenceTransformer(str(path), device="cpu")
    reference.max_seq_length = tokens.max_length
    np.testing.assert_allclose(ours, reference.encode(TEXTS), atol=1e-4)
    assert len({tuple(row) for row in np.round(ours, 4).tolist()}) == len(TEXTS)


def modules(folder: Path, *kinds: str) -> None:
    told = [
        {"path": "" if kind == "Transformer" else "1_Pooling", "type": f"sentence_transformers.models.{kind}"}
        for kind in kinds
    ]
    (folder / "modules.json").write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json is no tokenizer: "),
        (
            lambda f: ((f / "tokenizer.json").unlink(), (f / "vocab.txt").unlink()),
            "has no tokenizer.json, and none of tokenizer.json, vocab.txt to make it of",
        ),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: an object is wanted, not list"),
        (lambda f: (f / "config.json").write_text("{"), "config.json can't be read: "),
        (
            lambda f: change(f / "config.json", model_type="mine", auto_map={"AutoConfig": "code.Config"}),
            "model_type 'mine', which transformers does not know",
        ),
        (lambda f: change(f / "config.json", vocab_size=5), "its tokenizer has 19 tokens, the model by config.json 5"),
        (lambda f: change(f / "config.json", pad_token_id=77), "tokens.pad_id: 77 is no token"),
        (lambda f: (f / "model.safetensors").unlink(), "can't be loaded: Error no file named model.safetensors"),
        (
            lambda f: change(f / "sentence_bert_config.json", max_seq_length=0),
            "sentence_bert_config.json: max_seq_length leaves 0 tokens",
        ),
        (lambda f: change(f / "sentence_bert_config.json", max_seq_length=2), "2 leaves no token for the text"),
        (lambda f: (f / "modules.json").write_text("{}"), "modules.json: a list is wanted, not dict"),
        (lambda f: (f / "modules.json").write_text('[{"path": ""}]'), "each module needs the texts type and path"),
        (lambda f: modules(f, "Transformer", "Normalize"), "has Transformer, Normalize; known is Transformer, Pooling"),
        (lambda f: modules(f, "Transformer", "Pooling", "LSTM"), "has Transformer, Pooling, LSTM; known is"),
        (
            lambda f: change(f / "1_Pooling" / "config.json", pooling_mode_cls_token=True),
            "pools by pooling_mode_cls_token, pooling_mode_mean_tokens; known are",
        ),
        (lambda f: change(f / "1_Pooling" / "config.json", pooling_mode="lasttoken"), "pools by pooling_mode_lastto"),
        (lambda f: change(f / "1_Pooling" / "config.json", include_prompt=False), "include_prompt is false"),
        (lambda f: shutil.rmtree(f / "1_Pooling"), "1_Pooling/config.json can't be read"),
        (
            lambda f: (modules(f, "Transformer", "Pooling", "Dense"), change(f / "1_Pooling" / "config.json")),
            "in_features and out_features are no sizes",
        ),
    ],
)
def test_what_a_folder_lacks_or_has_too_much_is_named(
    tmp_path: Path, spoil: Callable[[Path], Any], problem: str
) -> None:
    """An error of data with the file or the setting. No code of the folder is run, and nobody is asked whether to."""
    path = write_encoder(tmp_path / "encoder")
    spoil(path)
    data = write_texts(tmp_path / "wishes.csv")
    with pytest.raises(DataError) as caught:
        prepared(data, path).fit(tmp_path)
    assert problem in str(caught.value)


def test_an_older_folder_has_its_config_elsewhere(tmp_path: Path) -> None:
    """`import` takes it for one by its modules.json."""
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(DataError, match="a list is wanted, not dict"):
        import_path(tmp_path, "m", tmp_path / "repository", lambda *_: None, replace=False)


def prepared(data: Path, encoder: Path, training: dict[str, Any] | None = None, **options: Any) -> Any:
    given = {"recipe": "text-embedding", "data": str(data), "name": "m", "text": {"encoder": str(encoder), **options}}
    config = make_config(given, training or {})
    return find("text-embedding").collect(config).prepare(config)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("tiny") / "encoder")


def csv_of(path: Path, rows: list[str], head: str = "text,label") -> Path:
    path.write_text("\n".join([head, *rows]))
    return path


def test_without_labels_one_is_told_of_the_command_that_needs_none(tiny: Path, tmp_path: Path) -> None:
    """No column of labels, none in it, one alone, or one for each text; of many the first ten are named."""
    texts = [f"a film number {number}" for number in range(30)]
    for head, rows, problem in (
        ("text", texts, "has no column label"),
        ("text,label", [f"{text}," for text in texts], "no row has a text and a label"),
        ("text,label", [f"{text},a" for text in texts], "has 1 labels after clean-up"),
        ("text,label", [f"{text},{text[-2:]}" for text in texts], " and 20 more"),
    ):
        with pytest.raises(DataError) as caught:
            prepared(csv_of(tmp_path / "a.csv", rows, head), tiny)
        assert problem in str(caught.value)
        assert str(caught.value).endswith("`forwardpass import FOLDER` publishes an encoder without a single text")


def test_texts_without_a_word_have_a_baseline_of_characters(tiny: Path, tmp_path: Path) -> None:
    """Signs alone, or single characters, as of Chinese."""
    rows = [f"{chr(0x4E00 + number)},{'ab'[number % 2]}" for number in range(60)]
    task = prepared(csv_of(tmp_path / "a.csv", rows), tiny)
    evaluation = task.evaluate(task.fit(tmp_path).predict)
    assert set(evaluation.baseline) == set(evaluation.metrics)


def test_a_text_that_no_token_stands_for_is_named_by_its_line(tiny: Path, tmp_path: Path) -> None:
    """Where the tokenizer puts no tokens around it."""
    path = tmp_path / "bare"
    shutil.copytree(tiny, path)
    change(path / "tokenizer.json", post_processor=None)
    rows = [f"the film {number},{'ab'[number % 2]}" for number in range(40)]
    with pytest.raises(DataError, match="line 42: has no token"):
        prepared(csv_of(tmp_path / "a.csv", [*rows, "\u200b,a"]), path)


@pytest.mark.parametrize(
    ("training", "options", "name"),
    [({"epochs": 3}, {}, "epochs"), ({"devices": 2}, {}, "devices"), ({}, {"tuning": "frozen"}, "tuning")],
)
def test_what_would_train_is_refused_for_nothing_is_trained(
    tiny: Path, tmp_path: Path, training: dict[str, Any], options: dict[str, Any], name: str
) -> None:
    """By its name, before any data is read."""
    with pytest.raises(UsageError, match=f"--{name}: nothing is trained by text-embedding"):
        prepared(tmp_path / "none.csv", tiny, training, **options)
