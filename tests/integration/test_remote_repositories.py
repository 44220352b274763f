"""Model repositories behind real servers: buckets of S3 and of Google Cloud Storage, and HTTP with index pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.engine.onnxruntime import OnnxRuntimeEngine
from server.errors import InvalidRequest, ModelLoadFailed, ModelUnreachable, UnknownModel
from server.pipeline.load import load_pipeline
from server.repository.fetching import fetch
from server.repository.opening import open_sources
from server.repository.repository import Repository
from server.settings import RemoteSettings
from server.types import Batch
from tests.support.onnx_models import WEIGHTS, linear, linear_folder
from tests.support.remotes import KINDS, Remote

DIGITS = Path(__file__).parents[2] / "model_repository" / "digits"
X = np.ones((1, 3), np.float32)


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    served = KINDS[request.param](tmp_path_factory.mktemp("remote") / "files")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in served.environment.items():
            patch.setenv(name, value)
        try:
            served.start()
            yield served
        finally:
            served.stop()


@pytest.fixture
def remote(server: Remote, tmp_path: Path) -> Remote:
    """A repository with a certified model, `digits`, and one without a manifest, `two words`, of version 1."""
    server.prefix = tmp_path.name
    fill(server, tmp_path)
    return server


def fill(remote: Remote, tmp_path: Path) -> None:
    linear_folder(tmp_path / "made", "two words")
    remote.put_all(DIGITS, "digits")
    remote.put_all(tmp_path / "made" / "two words", "two words")


@pytest.fixture
def repository(remote: Remote, tmp_path: Path) -> Iterator[Repository]:
    opened = open_repository(remote, tmp_path / "cache")
    yield opened
    opened.close()


def open_repository(remote: Remote, cache: Path, **settings: object) -> Repository:
    given = RemoteSettings.model_validate({"cache_folder": str(cache), "backoff_s": 0.0, "timeout_s": 20.0, **settings})
    sources = open_sources([remote.url], given)
    return Repository(sources, OnnxRuntimeEngine(1), load_pipeline=load_pipeline, warmup_s=1.0)


def kept(cache: Path) -> set[tuple[str, int]]:
    """The files of the cache, and which content each is."""
    return {(path.name, path.stat().st_ino) for path in (cache / "files").glob("*/*")}


def answer(repository: Repository, name: str = "two words") -> float:
    """The first output of a new load of a linear model, for ones."""
    (*_, model) = repository.load(name)
    try:
        (instance,) = model.engine_model.instances
        return float(instance.run(Batch(name, model.version, 1, {"x": X}))["y"][0, 0])
    finally:
        model.engine_model.close()


def test_a_model_is_loaded_by_what_its_certificate_says(repository: Repository) -> None:
    """Hashes, golden inputs and pipeline are those of the remote files; names with a space are names."""
    (digits,) = repository.load("digits")
    digits.engine_model.close()

    assert repository.names() == ["digits", "two words"]
    assert digits.certified
    assert digits.pipeline is not None
    assert answer(repository) == (X @ WEIGHTS)[0, 0]


def test_what_is_here_is_not_downloaded_again(repository: Repository, remote: Remote, tmp_path: Path) -> None:
    """Neither by the same process nor by another; what changed is, and that alone."""
    answer(repository)
    first = kept(tmp_path / "cache")
    answer(repository)
    other = open_repository(remote, tmp_path / "cache")
    answer(other)
    other.close()
    assert kept(tmp_path / "cache") == first

    linear(tmp_path / "changed.onnx", weights=WEIGHTS * 2)
    remote.put("two words/1/model.onnx", (tmp_path / "changed.onnx").read_bytes())

    assert answer(repository) == 2 * (X @ WEIGHTS)[0, 0]
    assert len(kept(tmp_path / "cache") - first) == 1


def test_the_survey_follows_what_changes(repository: Repository, remote: Remote, tmp_path: Path) -> None:
    """A fingerprint is of one model's files, the same by a survey as alone; what is gone is not in it."""
    before = repository.survey()
    assert before.fingerprints["digits"] == repository.fingerprint("digits")
    assert before.fingerprints == repository.survey().fingerprints

    linear(tmp_path / "changed.onnx", weights=WEIGHTS * 2)
    remote.put("two words/1/model.onnx", (tmp_path / "changed.onnx").read_bytes())
    changed = repository.survey()
    assert changed.fingerprints["digits"] == before.fingerprints["digits"]
    assert changed.fingerprints["two words"] != before.fingerprints["two words"]

    for path in ("config.pbtxt", "1/model.onnx"):
        remote.delete(f"two words/{path}")
    assert set(repository.survey().fingerprints) == {"digits"}
    with pytest.raises(UnknownModel):
        repository.load("two words")


def test_a_changed_byte_is_found_by_the_manifest(repository: Repository, remote: Remote) -> None:
    """A file that is not what was certified keeps its model out, and no other one."""
    remote.put("digits/example.png", (DIGITS / "example.png").read_bytes() + b" ")

    with pytest.raises(ModelLoadFailed, match=r"example\.png: differs from manifest\.json"):
        repository.load("digits")
    assert answer(repository) == (X @ WEIGHTS)[0, 0]


def test_all_models_are_fetched_as_their_manifests_say(remote: Remote, tmp_path: Path) -> None:
    """In the place of what was there; one whose files are others is not put there, and nothing half is left."""
    settings, to = RemoteSettings(backoff_s=0, timeout_s=20), tmp_path / "here"
    (to / "digits").mkdir(parents=True)
    (to / "digits" / "old").write_bytes(b"x")
    assert fetch([remote.url], to, settings) == ["digits", "two words"]
    assert contents(to / "digits") == contents(DIGITS)
    assert contents(to / "two words") == contents(tmp_path / "made" / "two words")

    remote.put("digits/example.png", (DIGITS / "example.png").read_bytes() + b" ")
    with pytest.raises(ModelLoadFailed, match=r"example\.png: differs from manifest\.json"):
        fetch([remote.url], tmp_path / "there", settings)
    assert list((tmp_path / "there").iterdir()) == []
    with pytest.raises(InvalidRequest, match="model 'digits' is in"):
        fetch([remote.url, str(DIGITS.parent)], to, settings)
    with pytest.raises(InvalidRequest, match="has no model"):
        fetch([f"{remote.url}/digits/1"], to, settings)
    assert contents(to / "digits") == contents(DIGITS)


def contents(folder: Path) -> dict[str, bytes]:
    """But for what people read, which counts for no server."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "README.md"}


def test_a_server_that_is_down_is_told_and_asked_again(remote: Remote, tmp_path: Path) -> None:
    """While it is down its models are unseen, not gone; a load says why it fails; when it is back, all is as before."""
    repository = open_repository(remote, tmp_path / "cache", timeout_s=2.0)  # gcsfs would ask for half a minute
    assert repository.names() == ["digits", "two words"]
    remote.stop()

    assert repository.survey().unseen == {"digits", "two words"}
    assert repository.unreachable()[0].startswith(f"{remote.prefix}: it ")
    with pytest.raises(ModelUnreachable, match=r"can't be read: it (can't be reached|does not answer in time)"):
        repository.load("digits")

    remote.start()
    fill(remote, tmp_path)
    assert set(repository.survey().fingerprints) == {"digits", "two words"}
    assert repository.unreachable() == []
    assert answer(repository) == (X @ WEIGHTS)[0, 0]
    repository.close()


def test_what_is_not_there_is_said(remote: Remote, tmp_path: Path) -> None:
    """A place without anything is no empty repository: its name may be wrong."""
    remote.prefix = "nothing"
    repository = open_repository(remote, tmp_path / "cache")

    assert repository.names() == []
    assert repository.unreachable() == ["nothing: it is not there"]


def test_a_model_over_the_cache_is_refused(remote: Remote, tmp_path: Path) -> None:
    """Before any of it is downloaded, with both sizes."""
    repository = open_repository(remote, tmp_path / "cache", cache_max_bytes=1000)
    with pytest.raises(ModelLoadFailed, match=r"has \d+ bytes, over --repository-cache-max-bytes 1000"):
        repository.load("digits")

    assert kept(tmp_path / "cache") == set()
