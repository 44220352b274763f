"""Models are code: what a file may name, and who must have signed it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from onnx import TensorProto, helper
from typer.testing import CliRunner

from server.cli import create_app
from server.engine.onnxruntime import OnnxRuntimeEngine
from server.errors import ModelLoadFailed
from server.pipeline.load import load_pipeline
from server.repository.override import read_override
from server.repository.repository import Repository
from server.security.onnx_files import NotOnnx, check_onnx, named
from server.security.signing import SIGNATURE_FILE, BadKey, Trusted, new_pair, sign

MODEL = Path(__file__).parents[2] / "model_repository" / "breast_cancer"


# --- what a file names ------------------------------------------------------------------------------------


def outside(name: str, location: str) -> Any:
    """A tensor that lies in a file."""
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    made.external_data.add(key="location", value=location)
    made.external_data.add(key="length", value="8")
    return made


def in_a_branch(location: str) -> list[Any]:
    """The tensor stands in an attribute of a node of a subgraph."""
    constant = helper.make_node("Constant", [], ["c"], value=outside("v", location))
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("c", 1, [2])])
    return [helper.make_node("If", ["on"], ["y"], then_branch=branch, else_branch=branch)]


def a_file(path: Path, nodes: list[Any], tensors: list[Any]) -> Path:
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", 1, [2])], tensors)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


IDENTITY = [helper.make_node("Identity", ["w"], ["y"])]


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../other/weights", "a/../../weights", "..", "", "w\0", "..\\weights", "link", "folder/w"],
)
@pytest.mark.parametrize("deep", [False, True], ids=["an initializer", "a subgraph"])
def test_a_tensor_is_in_no_file_of_elsewhere(tmp_path: Path, location: str, deep: bool) -> None:
    """By no absolute path, no way up, and no link that leads out; wherever in the model it stands."""
    path = tmp_path / "1" / "model.onnx"
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "link").symlink_to("/etc/passwd")
    (tmp_path / "1" / "folder").symlink_to(tmp_path)
    a_file(path, in_a_branch(location) if deep else IDENTITY, [] if deep else [outside("w", location)])

    with pytest.raises(ModelLoadFailed, match="not within its version's folder"):
        check_onnx("m", path, "1/model.onnx")


def test_a_tensor_may_be_in_a_file_beside_the_model(tmp_path: Path) -> None:
    """Also where the repository is put together from links."""
    path = a_file(tmp_path / "1" / "model.onnx", IDENTITY, [outside("w", "data/weights.bin")])
    check_onnx("m", path, "1/model.onnx")
    (tmp_path / "2").symlink_to(path.parent)
    check_onnx("m", tmp_path / "2" / "model.onnx", "2/model.onnx")


def test_compiled_code_is_refused(tmp_path: Path) -> None:
    path = a_file(tmp_path / "1" / "model.onnx", [helper.make_node("EPContext", [], ["y"], domain="com.microsoft")], [])
    with pytest.raises(ModelLoadFailed, match="compiled code"):
        check_onnx("m", path, "1/model.onnx")


def test_everything_that_is_named_is_found() -> None:
    """What the walk says of a real model is what onnx says."""
    [version] = sorted(MODEL.glob("*/model.onnx"))
    wanted = [node.op_type for node in onnx.load(version).graph.node]
    assert [text for kind, text in named(version) if kind == "operator"] == wanted


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"\x3a\xff\xff\xff\xff\x7f", b"\x3a\x05ab", b"\xff" * 20, b"\x0b", b"\x09abc", b"\x38" + b"\x80" * 9],
    ids=repr,
)
def test_what_is_no_model_is_told_so(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(NotOnnx):
        list(named(tmp_path / "model.onnx"))


def test_a_model_of_boxes_within_boxes_ends(tmp_path: Path) -> None:
    """Graphs within graphs beyond what protobuf reads are refused, without a deep recursion."""
    data = b""
    for _ in range(200):
        attribute = b"\x32" + _length(data) + data  # AttributeProto.g
        node = b"\x2a" + _length(attribute) + attribute  # NodeProto.attribute
        data = b"\x0a" + _length(node) + node  # GraphProto.node
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + _length(data) + data)
    with pytest.raises(NotOnnx, match="within each other"):
        list(named(tmp_path / "model.onnx"))


def _length(data: bytes) -> bytes:
    size, out = len(data), bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((*out, size))


# --- who signed it ----------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model, signed, and the public key in `keys`."""
    root = tmp_path / "models"
    shutil.copytree(MODEL, root / MODEL.name)
    public = new_pair(tmp_path / "signing.pem")
    (tmp_path / "keys").mkdir()
    public.rename(tmp_path / "keys" / "ours.pem")
    sign(root / MODEL.name, tmp_path / "signing.pem")
    return root


def load(root: Path, overriding: bool = False) -> str:
    """What became of the model: READY, or why not."""
    repository = Repository(
        root,
        OnnxRuntimeEngine(1),
        load_pipeline=load_pipeline,
        warmup_s=0.01,
        vouch=Trusted(root.parent / "keys").vouch,
    )
    try:
        config = read_override({"config": json.dumps({"max_batch_size": 2})}, 1024) if overriding else None
        for model in repository.load(MODEL.name, config):
            model.engine_model.close()
    except ModelLoadFailed as error:
        return str(error)
    finally:
        repository.close()
    return repository.index()[0].state


def test_a_signed_model_is_loaded(repository: Path, tmp_path: Path) -> None:
    """By one of several who signed it."""
    assert load(repository) == "READY"
    new_pair(tmp_path / "other.pem")
    sign(repository / MODEL.name, tmp_path / "other.pem")
    assert len((repository / MODEL.name / SIGNATURE_FILE).read_text().splitlines()) == 2
    assert load(repository) == "READY"


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("manifest.json", "has no signature of manifest.json by a trusted key"),
        ("processing.yaml", "differs from manifest.json"),
        ("config.pbtxt", "differs from manifest.json"),
        ("labels.txt", "differs from manifest.json"),
    ],
)
def test_a_model_that_was_changed_is_not(repository: Path, file: str, told: str) -> None:
    """Not one file of it is read before it is known to be as it was signed."""
    with (repository / MODEL.name / file).open("a") as changed:
        changed.write("\n")
    assert told in load(repository)


def test_what_nobody_signed_is_not_loaded(repository: Path) -> None:
    """No signature, no manifest, a file that is not listed, a config of a load request."""
    folder = repository / MODEL.name
    assert "is signed by nobody" in load(repository, overriding=True)
    (folder / "extra.py").write_text("")
    assert "is not listed" in load(repository)
    (folder / "extra.py").unlink()
    signature = folder / SIGNATURE_FILE
    signature.write_text("ed25519 0123456789abcdef AAAA\nnonsense\ned25519 x\n")
    assert "trusted key" in load(repository)
    signature.unlink()
    assert "manifest.sig: is missing" in load(repository)
    (folder / "manifest.json").unlink()
    assert "manifest.json: is missing" in load(repository)


def test_another_models_signature_does_not_do(repository: Path, tmp_path: Path) -> None:
    """Its manifest names it."""
    folder = repository / MODEL.name
    other = repository / "other"
    shutil.copytree(folder, other)
    shutil.rmtree(folder)
    with pytest.raises(ModelLoadFailed, match="is of model"):
        Repository(
            repository,
            OnnxRuntimeEngine(1),
            load_pipeline=load_pipeline,
            warmup_s=0.01,
            vouch=Trusted(tmp_path / "keys").vouch,
        ).load("other")


def test_a_key_of_nobody_we_trust_does_not_do(repository: Path, tmp_path: Path) -> None:
    new_pair(tmp_path / "other.pem")
    (repository / MODEL.name / SIGNATURE_FILE).unlink()
    sign(repository / MODEL.name, tmp_path / "other.pem")
    assert "trusted key" in load(repository)


def test_the_command_line_signs(repository: Path, tmp_path: Path) -> None:
    run, app = CliRunner().invoke, create_app()
    key = tmp_path / "mine.pem"
    done = run(app, ["sign", str(repository / MODEL.name), "--key", str(key), "--new-key"])
    assert done.exit_code == 0, done.output
    assert key.stat().st_mode & 0o077 == 0
    (tmp_path / "mine.pub.pem").rename(tmp_path / "keys" / "ours.pem")
    assert load(repository) == "READY"
    assert run(app, ["sign", "--key", str(key), "--new-key"]).exit_code == 1
    assert run(app, ["sign"]).exit_code == 2


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    private = rsa.generate_private_key(65537, 2048)
    pem = serialization.Encoding.PEM
    (tmp_path / "rsa.pem").write_bytes(
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(BadKey, match="Ed25519"):
        Trusted(tmp_path / "rsa.pem")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadKey, match="no public key"):
        Trusted(tmp_path / "empty")
