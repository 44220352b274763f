"""Remote repositories: addresses, the cache, downloads that meet faults and changes, polls; over a store in memory."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.app import load_first
from server.engine.fake import FakeEngine
from server.environment import load_settings
from server.errors import InvalidRequest, ModelLoadFailed, ModelUnreachable
from server.model_control import ModelControl
from server.repository.loading import Loader
from server.repository.remote.address import Address, read_address
from server.repository.remote.cache import Cache
from server.repository.remote.source import RemoteSource
from server.repository.remote.store import Patience, Unreachable
from server.repository.repository import Repository
from server.repository.sources import LocalSource, Needed, Source
from server.settings import RemoteSettings, RepositorySettings
from tests.support.onnx_models import CONFIG
from tests.support.scripted_store import ScriptedStore

DOWN = ConnectionError("no route to 10.0.0.1")
SETTINGS = RemoteSettings(tries=2, backoff_s=0, downloads=2)


def model(name: str, content: bytes = b"not read", version: str = "1") -> dict[str, bytes]:
    """The files of a model for the scripted engine."""
    config = CONFIG.format(name=name, max_batch_size=4, more="").encode()
    return {f"{name}/config.pbtxt": config, f"{name}/{version}/model.onnx": content}


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore(model("m"))


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    opened = Cache(tmp_path / "cache", 10_000)
    yield opened
    opened.close()


@pytest.fixture
def source(store: ScriptedStore, cache: Cache) -> RemoteSource:
    return RemoteSource("repo", "x://repo", store, cache, SETTINGS)


def no_pipeline(folder: Path) -> Any:
    raise AssertionError(f"{folder.name} has no processing.yaml")


def repository(*sources: Source) -> Repository:
    return Repository(sources, FakeEngine(), load_pipeline=no_pipeline, warmup_s=1.0)


def everything(folder: Path) -> Callable[[str], bool]:
    return lambda path: True


def held(source: Source, name: str = "m", needed: Needed = everything) -> dict[str, bytes]:
    """What a load finds in the model's folder."""
    with source.hold(name, needed) as folder:
        assert folder.name == name
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def kept(tmp_path: Path) -> list[int]:
    """The sizes of what is in the cache."""
    return sorted(path.stat().st_size for path in (tmp_path / "cache" / "files").glob("*/*"))


# --- addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "protocol", "root", "options", "name"),
    [
        ("s3://bucket", "s3", "bucket", {}, "bucket"),
        ("s3://bucket/a/b/", "s3", "bucket/a/b", {}, "b"),
        ("gs://bucket/a", "gs", "bucket/a", {}, "a"),
        ("gcs://bucket/a", "gs", "bucket/a", {}, "a"),
        ("az://container/a", "abfs", "container/a", {}, "a"),
        ("abfss://box@acc.dfs.core.windows.net/a", "abfs", "box/a", {"account_name": "acc"}, "a"),
        ("as://acc/box/a", "abfs", "box/a", {"account_name": "acc"}, "a"),
        ("as://acc.blob.core.windows.net/box", "abfs", "box", {"account_name": "acc"}, "box"),
        ("http://host:1/a%20b/", "http", "http://host:1/a%20b", {}, "a b"),
        ("https://u:p@host/a", "http", "https://host/a", {}, "a"),
    ],
)
def test_an_address_is_read_as_its_scheme_says(
    text: str, protocol: str, root: str, options: dict[str, str], name: str
) -> None:
    """The spellings of the libraries, and Triton's of Azure."""
    address = read_address(text)

    assert isinstance(address, Address)
    assert (address.protocol, address.root, address.options, address.name) == (protocol, root, options, name)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("s3://localhost:9000/bucket/a", "http://localhost:9000"),
        ("s3://http://minio/bucket/a", "http://minio"),
        ("s3://https://minio:9000/bucket/a", "https://minio:9000"),
    ],
)
def test_another_s3_server_is_named_as_with_triton(text: str, endpoint: str) -> None:
    """Its host and port in front of the bucket, HTTP unless it says HTTPS; buckets are in the path there."""
    address = read_address(text)

    assert isinstance(address, Address)
    assert address.root == "bucket/a"
    assert address.options["endpoint_url"] == endpoint
    assert address.options["config_kwargs"] == {"s3": {"addressing_style": "path"}}


@pytest.mark.parametrize(("text", "path"), [("models", "models"), ("/a//b", "/a//b"), ("file:///a/b%20c", "/a/b c")])
def test_a_path_is_a_folder_of_this_machine(text: str, path: str) -> None:
    """As it was without remote repositories; and so is a file URL."""
    assert read_address(text) == Path(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ftp://host/a", "the scheme is none of file, s3, gs"),
        ("memory://a", "the scheme is none of"),
        ("s3://", "must be SCHEME://BUCKET/PREFIX"),
        ("s3:///a", "must be SCHEME://BUCKET/PREFIX"),
        ("s3://localhost:9000", "must be SCHEME://BUCKET/PREFIX"),
        ("s3://key:secret@bucket/a", "credentials come from the environment|must be s3://HOST:PORT"),
        ("gs://key:secret@bucket/a", "credentials come from the environment"),
        ("s3://ftp://host/bucket", "must be s3://HOST:PORT"),
        ("as://account", "must be as://ACCOUNT/CONTAINER/PREFIX"),
        ("http:///a", "has no host"),
        ("https://host/a?token=secret", r"takes no \? and no #"),
    ],
)
def test_an_address_that_is_none_is_refused(text: str, problem: str) -> None:
    """By its flag, with what it must be, and without what it must not tell."""
    with pytest.raises(InvalidRequest, match=f"--model-repository: .*({problem})") as caught:
        read_address(text)

    assert "key:secret" not in str(caught.value)


def test_a_login_is_used_and_never_told() -> None:
    """Not by the address, nor where the settings are logged."""
    address = read_address("https://me:s3cr%65t@host/a")
    settings = load_settings({"repository": {"path": ["https://me:s3cr%65t@host/a", "b"]}})

    assert isinstance(address, Address)
    assert address.login == ("me", "s3cret")
    assert "s3cr" not in f"{address} {address.url} {address.root}"
    assert '["https://***@host/a","b"]' in settings.model_dump_json()
    assert settings.repository.path[0] == "https://me:s3cr%65t@host/a"


# --- the cache --------------------------------------------------------------------------------------


def put(cache: Cache, key: str, content: bytes) -> None:
    with cache.folder() as folder:
        (folder / "part").write_bytes(content)
        cache.keep(folder / "part", key)


def test_the_longest_unused_is_removed_first(cache: Cache, tmp_path: Path) -> None:
    """Until there is room for what comes; but nothing of the model that comes."""
    for age, key in enumerate(["ab1", "ab2", "cd3", "cd4"]):
        put(cache, key, bytes(2000))
        place = next((tmp_path / "cache" / "files").glob(f"*/{key}"))
        os.utime(place, ns=(age, age))
    with cache.folder() as folder:
        assert cache.take("ab1", 2000, folder / "used")

        cache.make_room(6000, {"ab2"})

        assert [cache.take(key, 2000, folder / key) for key in ("ab1", "ab2", "cd3", "cd4")] == [
            True,
            True,
            False,
            False,
        ]
        assert (folder / "used").read_bytes() == bytes(2000)


def test_a_file_that_is_not_whole_is_not_taken(cache: Cache, tmp_path: Path) -> None:
    """As after a crash of the machine; it is removed, and will be downloaded anew."""
    put(cache, "ab1", b"half")
    with cache.folder() as folder:
        assert not cache.take("ab1", 8, folder / "a")
        assert not cache.take("ab1", 4, folder / "a")

    assert kept(tmp_path) == []


def test_without_hard_links_files_are_copied(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    put(cache, "ab1", b"content")
    with cache.folder() as folder:
        assert cache.take("ab1", 7, folder / "a")
        assert (folder / "a").read_bytes() == b"content"


# --- downloading ------------------------------------------------------------------------------------


def test_only_what_changed_is_downloaded_again(source: RemoteSource, store: ScriptedStore) -> None:
    """A second load downloads nothing; documents and hidden files never are."""
    store.content |= {"m/README.md": b"x", "m/.hidden/x": b"x"}
    assert held(source) == {path.removeprefix("m/"): content for path, content in model("m").items()}
    assert len(store.fetched) == 2
    assert held(source) == held(source)
    assert len(store.fetched) == 2

    store.content["m/1/model.onnx"] = b"another"

    assert held(source)["1/model.onnx"] == b"another"
    assert store.fetched[2:] == ["m/1/model.onnx"]


def test_a_download_that_fails_goes_on_where_it_was(source: RemoteSource, store: ScriptedStore) -> None:
    """File by file: what had come is not downloaded again."""
    store.content |= model("m", version="2")

    def lose(path: str) -> None:
        if path == "m/2/model.onnx":
            raise DOWN

    store.on_fetch = lose
    with pytest.raises(ModelUnreachable, match="repository 'repo': it can't be reached"):
        held(source)
    store.on_fetch = lambda _: None
    held(source)

    assert sorted(store.fetched) == ["m/1/model.onnx", "m/2/model.onnx", "m/config.pbtxt"]


def test_a_fault_that_passes_is_not_noticed(source: RemoteSource, store: ScriptedStore) -> None:
    """Each question is asked again as often as the settings say, and no more."""
    store.faults = [DOWN]
    assert held(source)
    store.faults = [DOWN, DOWN]
    with pytest.raises(Unreachable):
        source.names()
    store.asked = 0
    store.faults = [PermissionError("secret key wrong")]
    with pytest.raises(Unreachable, match=r"^access is denied$"):
        source.names()

    assert store.asked == 1


@pytest.mark.parametrize("when", ["this file", "another file"])
def test_a_change_during_the_download_is_noticed(store: ScriptedStore, cache: Cache, when: str) -> None:
    """No load sees one file of before and another of after, nor a content under the mark of another one."""
    source = RemoteSource("repo", "x://repo", store, cache, RemoteSettings(downloads=1))
    store.content = {"m/a": b"old", **store.content}

    def change(path: str) -> None:
        if path == ("m/a" if when == "this file" else "m/config.pbtxt"):
            store.content["m/a"] = b"new"

    store.on_fetch = change

    assert held(source)["a"] == b"new"
    store.on_fetch = lambda _: None
    assert held(source)["a"] == b"new"
    store.content["m/a"] = b"old"
    assert held(source)["a"] == b"old"


def test_a_model_that_never_rests_is_not_loaded(source: RemoteSource, store: ScriptedStore) -> None:
    """Its download is begun a bounded number of times."""
    store.on_fetch = lambda path: store.content.update({"m/1/model.onnx": store.content["m/1/model.onnx"] + b"."})

    with pytest.raises(ModelUnreachable, match="it changed in each of 3 downloads"):
        held(source)


@pytest.mark.parametrize("path", ["/etc/x", "1//x", "a\\b", "a\0b", "x" * 256])
def test_a_name_can_not_lead_out_of_the_folder(
    source: RemoteSource, store: ScriptedStore, tmp_path: Path, path: str
) -> None:
    """Keys of a bucket are any text: a model with such a one is refused before anything is downloaded."""
    store.content[f"m/{path}"] = b"planted"

    with pytest.raises(ModelLoadFailed, match="is no path of a file below the model's folder"):
        held(source)
    assert store.fetched == []
    assert kept(tmp_path) == []


@pytest.mark.parametrize("path", ["../x", "1/../../x", "1/./x", ".hidden"])
def test_what_begins_with_a_dot_is_no_part_of_a_model(source: RemoteSource, store: ScriptedStore, path: str) -> None:
    """As in a folder of this machine; so what would lead up is not downloaded either."""
    store.content[f"m/{path}"] = b"planted"

    assert held(source).keys() == {"config.pbtxt", "1/model.onnx"}


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a\\b", "", "x" * 256])
def test_what_is_no_name_of_a_model_is_none(source: RemoteSource, store: ScriptedStore, name: str) -> None:
    """Neither in the index nor in a survey."""
    store.content[f"{name}/config.pbtxt"] = b"planted"

    assert source.names() == ["m"]
    assert set(source.survey()) == {"m"}


def test_only_versions_that_serve_are_downloaded(source: RemoteSource, store: ScriptedStore) -> None:
    """The policy says which; the newest one where it does not, and the files of no version come along."""
    for version in ("1", "2", "10"):
        store.content |= model("m", version=version) | {f"m/golden/{version}.npz": b"x"}
    store.content["m/labels.txt"] = b"x"
    loader = Loader(FakeEngine(), no_pipeline, 1.0)

    assert held(source, needed=loader.needed).keys() == {
        "config.pbtxt",
        "labels.txt",
        "10/model.onnx",
        "golden/10.npz",
    }
    store.content["m/config.pbtxt"] += b"version_policy { specific { versions: [1, 2] } }"
    assert "2/model.onnx" in held(source, needed=loader.needed)
    store.content["m/config.pbtxt"] = b"nonsense"
    with pytest.raises(ModelLoadFailed, match=r"config\.pbtxt"):
        held(source, needed=loader.needed)


def test_the_cache_is_bounded(source: RemoteSource, store: ScriptedStore, tmp_path: Path) -> None:
    """Old contents make room for new ones; a model that is larger than all of it is refused."""
    for version in range(5):
        store.content["m/1/model.onnx"] = bytes([version]) * 4000
        held(source)
        assert sum(kept(tmp_path)) <= 10_000
    assert len(kept(tmp_path)) == 3
    store.content["m/1/model.onnx"] = bytes(10_001)

    with pytest.raises(ModelLoadFailed, match=r"has \d+ bytes, over --repository-cache-max-bytes 10000"):
        held(source)


def test_a_cache_that_can_not_be_written_is_named(store: ScriptedStore, tmp_path: Path) -> None:
    """By its flag, without the path."""
    (tmp_path / "file").write_text("")
    source = RemoteSource("repo", "x://repo", store, Cache(tmp_path / "file", 10_000), SETTINGS)

    with pytest.raises(ModelUnreachable, match="--repository-cache-folder: can't be written: File exists"):
        held(source)


def test_two_servers_share_a_cache(source: RemoteSource, store: ScriptedStore, tmp_path: Path) -> None:
    """What one downloaded the other has; what one removes the other keeps for as long as it loads it."""
    other_cache = Cache(tmp_path / "cache", 10_000)
    other = RemoteSource("repo", "x://repo", store, other_cache, SETTINGS)
    held(source)
    with other.hold("m", everything) as folder:
        assert len(store.fetched) == 2
        Cache(tmp_path / "cache", 1).make_room(0, ())
        assert kept(tmp_path) == []

        assert (folder / "1" / "model.onnx").read_bytes() == b"not read"
    other_cache.close()


def test_a_stop_ends_what_waits(store: ScriptedStore, cache: Cache) -> None:
    """A server that shuts down does not wait out the tries of a download."""
    source = RemoteSource("repo", "x://repo", store, cache, RemoteSettings(tries=20, backoff_s=30))
    store.faults = [DOWN] * 20
    source.stop()
    with pytest.raises(Unreachable):
        source.names()

    assert store.asked == 1
    assert store.stopped.is_set()


@pytest.mark.parametrize(
    ("error", "problem", "asked"),
    [
        (FileNotFoundError("bucket"), "it is not there", 1),
        (PermissionError("Forbidden"), "access is denied", 1),
        (type("Answer", (Exception,), {"status": 401})(), "access is denied", 1),
        (type("Answer", (Exception,), {"status_code": 404})(), "it is not there", 1),
        (type("Answer", (Exception,), {"code": "400"})(), "it answers with HTTP status 400", 1),
        (type("Answer", (Exception,), {"status": 429})(), "it answers with HTTP status 429", 2),
        (type("Answer", (Exception,), {"status": 503})(), "it answers with HTTP status 503", 2),
        (TimeoutError("nothing for 30 s"), "it does not answer in time", 2),
        (ConnectionError("10.0.0.1"), r"it can't be reached \(ConnectionError\)", 2),
    ],
)
def test_what_may_pass_is_asked_again(error: BaseException, problem: str, asked: int) -> None:
    """What would be the same is not; whoever asks learns what it is, and no address."""
    times = []

    def question() -> None:
        times.append(1)
        raise error

    with pytest.raises(Unreachable, match=f"^{problem}$"):
        Patience(SETTINGS).ask("x", question)
    assert len(times) == asked


# --- several repositories, and polls ----------------------------------------------------------------


def add_local(root: Path, name: str) -> Source:
    for path, content in model(name).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return LocalSource(root)


def control(*sources: Source) -> ModelControl:
    return ModelControl(repository(*sources), default_max_queue_size=10)


def serving(models: ModelControl) -> list[str]:
    return sorted(served.model.name for served in models)


@pytest.mark.parametrize(
    ("mode", "strict", "with_local", "starts"),
    [
        ("none", False, False, False),
        ("none", False, True, True),
        ("none", True, True, False),
        ("poll", False, False, True),
        ("poll", True, True, False),
        ("explicit", False, False, True),
    ],
)
async def test_a_start_without_a_remote_repository(
    source: RemoteSource, store: ScriptedStore, tmp_path: Path, mode: str, strict: bool, with_local: bool, starts: bool
) -> None:
    """It goes on with the others, or waits, unless nobody would look again or readiness is strict."""
    store.faults = [DOWN] * 2
    others = [add_local(tmp_path / "local", "n")] if with_local else []
    models = control(source, *others)
    settings = RepositorySettings.model_validate({"control_mode": mode, "strict_readiness": strict})
    try:
        if starts:
            await load_first(models, settings)
            assert serving(models) == ["n"] * with_local
        else:
            with pytest.raises(OSError, match="a repository can't be read: repo: it can't be reached"):
                await load_first(models, settings)
    finally:
        await models.close()


async def test_polls_go_on_without_a_repository_that_is_down(
    source: RemoteSource, store: ScriptedStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its models serve on, the others are followed; it is logged when it goes and when it comes, not at each look."""
    local = tmp_path / "local"
    models = control(source, add_local(local, "n"))
    await models.load_all(models.names())
    store.faults = [DOWN] * 6
    add_local(local, "later")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await models._follow()
        assert serving(models) == ["later", "m", "n"]
        assert caplog.text.count("the repository 'repo' can't be read") == 1

        store.content = model("o")
        await models._follow()
    await models.settled()

    assert serving(models) == ["later", "n", "o"]
    assert caplog.text.count("the repository 'repo' can be read again") == 1
    await models.close()


async def test_a_download_that_failed_is_tried_again_at_the_next_look(
    source: RemoteSource, store: ScriptedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Though nothing changed since; it is logged once, and what served before serves meanwhile."""
    models = control(source)
    await models.load_all(models.names())
    before = models.resolve("m")
    store.content["m/1/model.onnx"] = b"another"

    def lose(path: str) -> None:
        raise DOWN

    store.on_fetch = lose
    for _ in range(3):
        await models._follow()
    assert models.resolve("m") is before
    assert caplog.text.count("model 'm' can't be loaded") == 1
    assert "the last load failed: repository 'repo': it can't be reached" in models.index()[0].reason

    store.on_fetch = lambda _: None
    await models._follow()
    assert models.resolve("m") is not before
    before = models.resolve("m")
    await models._follow()
    assert models.resolve("m") is before
    await models.close()


async def test_a_load_says_that_the_repository_is_out_of_reach(source: RemoteSource, store: ScriptedStore) -> None:
    """Not that there is no such model; the index says it too."""
    models = control(source)
    models.names()
    store.faults = [DOWN] * 8
    with pytest.raises(ModelUnreachable, match="can't be read: it can't be reached"):
        await models.load("m")

    assert [(entry.name, entry.state) for entry in models.index()] == [("m", "UNAVAILABLE")]
    assert "can't be reached" in models.index()[0].reason
    await models.close()


async def test_a_close_does_not_wait_for_a_download(store: ScriptedStore, cache: Cache) -> None:
    """What is under way is given up: the load fails, and the models are closed."""
    source = RemoteSource("repo", "x://repo", store, cache, RemoteSettings(tries=20, backoff_s=30))
    models = control(source)
    models.names()
    lost = threading.Event()

    def lose(path: str) -> None:
        lost.set()
        raise DOWN

    store.on_fetch = lose
    loading = asyncio.create_task(models.load("m"))
    await asyncio.to_thread(lost.wait)
    await models.close()

    with pytest.raises(ModelUnreachable):
        await loading
