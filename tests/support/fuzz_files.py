"""What reads the files of models and of keys, and the pictures of strangers: targets as those of `fuzz_targets`."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from server.errors import InvalidRequest, ModelLoadFailed, ServingError
from server.pipeline.base import PROCESSING_FILE, Pipeline
from server.pipeline.load import load_pipeline
from server.pipeline.text_spec import TokensSpec
from server.pipeline.tokens import TextEncoder
from server.repository.config_text import CONFIG_FILE
from server.repository.model_config import read_model_config
from server.security.keys import BadKeys, KeyFile, new_key, read_file, write_file
from server.security.onnx_files import NotOnnx, named_in
from server.types import ImageInput, TextInput

SHIPPED = Path(__file__).parents[2] / "model_repository"


@cache
def _folder() -> Path:
    """One for all files, which are small, under a name that a model may have."""
    root = Path(tempfile.mkdtemp(prefix="forwardpass-fuzz-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folder = root / "digits"
    folder.mkdir()
    (folder / "labels.txt").write_text((SHIPPED / "digits" / "labels.txt").read_text())
    return folder


# --- ONNX ---------------------------------------------------------------------------------------------


def onnx_file(received: bytes) -> None:
    """Whatever file onnx itself finds named in a model is found, also where it is hidden."""
    try:
        found = {text for kind, text in named_in(memoryview(received)) if kind == "location"}
    except NotOnnx:
        return
    try:
        model = onnx.ModelProto.FromString(received)
    except DecodeError:
        return
    assert set(_locations(model)) <= found


def _locations(model: onnx.ModelProto) -> Iterator[str]:
    left = [model.graph, *(each.initialization for each in model.training_info)]
    nodes = [node for function in model.functions for node in function.node]
    while left or nodes:
        if left:
            graph = left.pop()
            nodes += graph.node
            yield from (name for tensor in graph.initializer for name in _of(tensor))
            continue
        for attribute in nodes.pop().attribute:
            yield from (name for tensor in (attribute.t, *attribute.tensors) for name in _of(tensor))
            left += [attribute.g, *attribute.graphs]


def _of(tensor: TensorProto) -> list[str]:
    # protobuf gives a text that is not UTF-8 as bytes.
    return [os.fsdecode(entry.value) for entry in tensor.external_data if entry.key == "location"]


def _model() -> bytes:
    tensor = TensorProto(name="w", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../weights")
    node = helper.make_node("Identity", ["w"], ["y"], value=tensor)
    branch = helper.make_graph([node], "b", [], [helper.make_tensor_value_info("y", 1, [2])], [tensor])
    chosen = helper.make_node("If", ["on"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node, chosen], "g", [], [helper.make_tensor_value_info("y", 1, [2])], [tensor])
    return bytes(helper.make_model(graph).SerializeToString())


# --- pictures -----------------------------------------------------------------------------------------


@cache
def _pictures() -> Pipeline:
    return load_pipeline(SHIPPED / "digits")


def picture(received: bytes) -> None:
    """A picture becomes a tensor, or is refused."""
    try:
        _pictures().preprocess([ImageInput(received)])
    except ServingError as error:
        assert error.code in ("INVALID_ARG", "TOO_LARGE")  # noqa: PT017 - a rule of the target


def _saved(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((24, 24)).save(buffer, kind)
    return buffer.getvalue()


# --- texts --------------------------------------------------------------------------------------------

_MOST_TOKENS = 24


@cache
def _encoders() -> tuple[TextEncoder, ...]:
    """WordPiece as BERT has it, and BPE of bytes as GPT has it; the one cuts, the other refuses."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnop")]
    pieces = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("e", "r"), ("Ġ", "the")]
    vocabulary = [*alphabet, *("".join(pair) for pair in merges), "<|end|>"]
    byte_level = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, merges))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens(["<|end|>"])
    return (
        TextEncoder(TokensSpec(max_length=_MOST_TOKENS, token_type_ids="token_type_ids"), pieces),
        TextEncoder(TokensSpec(max_length=_MOST_TOKENS, truncation="refuse", max_characters=200), byte_level),
    )


def tokens(received: bytes) -> None:
    """Texts become ids that the model has, no more than it takes, each as if it had come alone; or are refused. Octets
    that are no UTF-8 are characters all the same: also halves of pairs, as JSON may hold them."""
    texts = [TextInput(piece.decode("utf-8", "surrogatepass" if at % 2 else "replace")) for at, piece in _cut(received)]
    for encoder in _encoders():
        alone = [rows for text in texts if (rows := _encoded(encoder, [text])) is not None]
        together = _encoded(encoder, texts) if texts else None
        if together is None:
            continue
        assert len(alone) == len(texts)
        for index, (row,) in enumerate(alone):
            assert together[index][: len(row)] == row
            assert set(together[index][len(row) :]) <= {encoder.spec.pad_id}


def _cut(received: bytes) -> Iterator[tuple[int, bytes]]:
    for at, piece in enumerate(received.split(b"\0")):
        with suppress(UnicodeDecodeError):
            piece.decode("utf-8", "surrogatepass")
            yield at, piece


def _encoded(encoder: TextEncoder, texts: Sequence[TextInput]) -> list[list[int]] | None:
    """Their rows of ids; None: refused."""
    try:
        tensors = encoder.preprocess(texts)
    except ServingError as error:
        assert error.code in ("INVALID_ARG", "TOO_LARGE")  # noqa: PT017 - a rule of the target
        return None
    ids = tensors["input_ids"]
    assert ids.shape[0] == len(texts)
    assert ids.shape[1] <= _MOST_TOKENS
    assert 0 <= ids.min() <= ids.max() < encoder._tokenizer.get_vocab_size()
    return ids.tolist()


def tokenizer(received: bytes) -> None:
    """A tokenizer.json is one that encodes, or is refused."""
    path = _folder() / "tokenizer.json"
    path.write_bytes(received)
    try:
        encoder = TextEncoder.from_folder(TokensSpec(max_length=_MOST_TOKENS), path.parent)
    except ModelLoadFailed as error:
        assert error.problem  # noqa: PT017
        return
    with suppress(InvalidRequest):
        encoder.preprocess([TextInput("The cat's 3rd naïve café, 東京 🎉 <|end|>")])


# --- files of text ------------------------------------------------------------------------------------


def config(received: bytes) -> None:
    """A config.pbtxt is understood to the last field, or refused with what is wrong."""
    (_folder() / CONFIG_FILE).write_bytes(received)
    try:
        read_model_config(_folder())
    except ModelLoadFailed as error:
        assert error.problem  # noqa: PT017


def processing(received: bytes) -> None:
    """A processing.yaml is a pipeline, or refused as whoever loads a model expects it."""
    (_folder() / PROCESSING_FILE).write_bytes(received)
    try:
        load_pipeline(_folder())
    except (ServingError, ValueError, KeyError, TypeError):
        return


def keys(received: bytes) -> None:
    """A file of keys is read as a whole or not at all, and no text of it is told."""
    path = _folder().parent / "keys.yaml"
    path.write_bytes(received)
    try:
        read_file(path)
    except BadKeys as error:
        assert _SECRET not in str(error)  # noqa: PT017


_SECRET = "0123456789abcdef" * 4


def _keys() -> bytes:
    path = _folder().parent / "seed.yaml"
    _, record = new_key(name="shop", roles=("predict", "read"), models=("fraud*",), rate_per_s=1.5)
    write_file(path, KeyFile(keys=(record.model_copy(update={"sha256": _SECRET}),)))
    return path.read_bytes()


_TEXTS = (
    "the other thing\0[CLS] a b\0<|end|>",
    "naïve e\u0301 \u202eabc\u200d\u200b\0東京タワー 🎉👩\u200d👩\u200d👧",
    "\ud83d\0\udc00 a",
    "a" * 60 + "\0" + "the " * 30,
)

FILES = {
    "onnx": (onnx_file, lambda: [_model(), next((SHIPPED / "digits").glob("*/model.onnx")).read_bytes()[:4000]]),
    "picture": (picture, lambda: [(SHIPPED / "digits" / "example.png").read_bytes(), _saved("JPEG"), _saved("WEBP")]),
    "config": (config, lambda: [(SHIPPED / name / CONFIG_FILE).read_bytes() for name in ("digits", "fraud")]),
    "processing": (processing, lambda: [(SHIPPED / "digits" / PROCESSING_FILE).read_bytes()]),
    "tokens": (tokens, lambda: [text.encode("utf-8", "surrogatepass") for text in _TEXTS]),
    "tokenizer": (tokenizer, lambda: [each._tokenizer.to_str().encode() for each in _encoders()]),
    "keys": (keys, lambda: [_keys()]),
}
"""Each with its seeds, which are made when they are wanted."""
