"""Small models that read text."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from server.pipeline.classification import LABELS
from server.pipeline.load import write_spec
from server.pipeline.text_spec import TextClassificationSpec, TextEmbeddingSpec, TokenClassificationSpec, TokensSpec
from tests.support.onnx_models import save, tensor

WORDS = ("the", "film", "was", "good", "bad", "very", "and", "long", "##er", "##ly", "anna", "lives", "in", "oslo", ".")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
IDS = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}


def tokenizer() -> Tokenizer:
    """WordPiece over `WORDS`, with [CLS] and [SEP] around a text; what truncates and pads is to be overruled."""
    made = Tokenizer(WordPiece(IDS, unk_token="[UNK]"))
    made.normalizer = BertNormalizer(lowercase=True)
    made.pre_tokenizer = BertPreTokenizer()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, IDS[name]) for name in ("[CLS]", "[SEP]")]
    )
    made.enable_truncation(3)
    made.enable_padding(length=128)
    return made


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


WISHES = {
    "delivery": ("where is my parcel", "when does the shipment come", "track the package"),
    "refund": ("my money back please", "I return the shoes", "a refund for the order"),
    "billing": ("a copy of the invoice", "I was charged twice", "the receipt for tax"),
}


def write_texts(path: Path, rows: int = 150) -> Path:
    """A CSV of `text,label` that one word tells; a copy, a contradiction, an empty text and a row without label too."""
    lines = []
    for number in range(rows):
        label, texts = list(WISHES.items())[number % len(WISHES)]
        lines.append((f"{texts[number // 3 % 3]} {number}", label))
    lines += [lines[0], ("who knows", "refund"), ("Who  knows", "billing"), (" ", "refund"), ("no label", "")]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *lines])
    return path


def write_encoder(folder: Path, *, sentence: bool = True) -> Path:
    """A BERT of two layers and width 32 in a folder of Hugging Face's form; `sentence` makes it one of sentences."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(IDS),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    BertModel(config).eval().save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 40}')
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in IDS))
    if sentence:
        parts = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
        modules = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(parts)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 24, "do_lower_case": false}')
    return folder


WORD_CONFIG = """
max_batch_size: 8 platform: "onnxruntime_onnx"
input {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }}
input {{ name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }}
output {{ name: "{output}" data_type: TYPE_FP32 dims: [ {dims} ] {labels} }}
dynamic_batching {{ }} parameters {{ key: "length_buckets" value {{ string_value: "4,8,16" }} }}
"""


def word_folder(root: Path, task: str) -> Path:
    """A model folder of a task for texts, whose answers follow from which words there are: each adds a row of a table.

    text-classification: "good" and "bad" tell. text-embedding: three numbers. token-classification: anna is a person,
    oslo a place.
    """
    folder = write_tokenizer(root / task)
    width = {"text-classification": 2, "text-embedding": 3, "token-classification": 3}[task]
    weights = np.zeros((len(IDS), width), np.float32)
    tokens = TokensSpec(max_length=16)
    spec: TextClassificationSpec | TextEmbeddingSpec | TokenClassificationSpec
    if task == "text-classification":
        weights[IDS["bad"]], weights[IDS["good"]] = (4, 0), (0, 4)
        spec = TextClassificationSpec(tokens=tokens, example="the film was good")
        LABELS.write(folder, ("bad", "good"))
    elif task == "text-embedding":
        weights[IDS["good"]], weights[IDS["bad"]] = (0.5, -0.25, 1.0), (-0.5, 0.25, 0.0)
        spec = TextEmbeddingSpec(tokens=tokens, output="logits", dimensions=3, normalized=False, example="good")
    else:
        weights[:, 0] = 1
        weights[IDS["anna"]], weights[IDS["oslo"]] = (0, 6, 0), (0, 0, 6)
        spec = TokenClassificationSpec(tokens=tokens, example="anna lives in oslo")
        LABELS.write(folder, ("O", "B-PER", "B-LOC"))
    write_spec(spec, folder)
    per_token = task == "token-classification"
    labels = "" if task == "text-embedding" else 'label_filename: "labels.txt"'
    config = WORD_CONFIG.format(output="logits", dims=f"-1, {width}" if per_token else width, labels=labels)
    (folder / "config.pbtxt").write_text(f'name: "{task}" {config}')
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["each"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["each", "wide"], ["logits" if per_token else "masked"]),
    ]
    if not per_token:
        nodes.append(helper.make_node("ReduceSum", ["masked", "one"], ["logits"], keepdims=0))
    ids = [tensor(name, ["batch", "length"], TensorProto.INT64) for name in tokens.tensors]
    constants = {"weights": weights, "last": np.array([-1]), "one": np.array([1])}
    used = ("weights", "last") if per_token else tuple(constants)
    save(
        folder / "1" / "model.onnx",
        nodes,
        ids,
        [tensor("logits", ["batch", "length", width] if per_token else ["batch", width])],
        [numpy_helper.from_array(constants[name], name) for name in used],
    )
    return folder
