"""`serve` on repositories that are not of this machine: polls, model control, several processes, and secrets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import REPOSITORY, ROOT, StartServer
from tests.e2e.test_model_control import digits_answers, eventually, index
from tests.support.remotes import S3, Nginx, Remote

pytestmark = pytest.mark.e2e


def opened(kind: type[Remote], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    remote = kind(tmp_path / "remote" / "files")
    settings = {"FORWARDPASS_REMOTE__CACHE_FOLDER": str(tmp_path / "cache"), "FORWARDPASS_REMOTE__BACKOFF_S": "0.01"}
    for name, value in {**remote.environment, **settings}.items():
        monkeypatch.setenv(name, value)
    try:
        remote.start()
        remote.put_all(REPOSITORY / "digits", "digits")
        yield remote
    finally:
        remote.stop()


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    yield from opened(S3, tmp_path, monkeypatch)


@pytest.fixture
def nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    yield from opened(Nginx, tmp_path, monkeypatch)


def test_a_poll_follows_a_bucket_and_outlives_it(start_server: StartServer, s3: Remote) -> None:
    """What comes is served; while the bucket is out of reach all serves on, which is told once; then it goes on."""
    poll = ["--model-control-mode", "poll", "--repository-poll-secs", "0.2"]
    server = start_server(*poll, repository=s3.url)
    with httpx.Client(base_url=server.http, timeout=30) as client:
        assert digits_answers(client) == 200
        s3.put_all(REPOSITORY / "fraud", "fraud")
        assert eventually(lambda: index(client).get("fraud", {}).get("state") == "READY", 60)

        s3.stop()
        assert eventually(lambda: "the repository 'prod' can't be read" in server.log.read_text(), 60)
        assert digits_answers(client) == 200

        s3.start()
        s3.put_all(REPOSITORY / "digits", "digits")
        assert eventually(lambda: "fraud" not in index(client), 60)
        assert digits_answers(client) == 200
    assert server.log.read_text().count("EndpointConnectionError") == 1
    assert server.terminate() == 0


def test_a_model_of_a_bucket_is_loaded_on_demand(start_server: StartServer, s3: Remote, tmp_path: Path) -> None:
    """In explicit mode, also beside a folder; a load while the bucket is out of reach is 503, with the reason."""
    more = ["--model-control-mode", "explicit", "--model-repository", s3.url]
    (tmp_path / "empty").mkdir()
    server = start_server(*more, repository=tmp_path / "empty")
    with httpx.Client(base_url=server.http, timeout=30) as client:
        assert client.post("/v2/repository/models/digits/load").status_code == 200
        assert digits_answers(client) == 200
        s3.stop()
        refused = client.post("/v2/repository/models/digits/load")
        assert digits_answers(client) == 200

    assert refused.status_code == 503
    assert "can't be reached" in refused.json()["error"]


def test_several_processes_and_a_password(start_server: StartServer, nginx: Remote) -> None:
    """All of them serve what one of them downloaded; the password is in no log and no banner."""
    nginx.put_all(REPOSITORY / "breast_cancer", "breast_cancer")
    server = start_server("--workers", "2", repository=nginx.url)
    with httpx.Client(base_url=server.http, timeout=30) as client:
        assert digits_answers(client) == 200
        assert index(client)["breast_cancer"]["state"] == "READY"
    assert server.terminate() == 0

    assert "s3cr" not in server.log.read_text() + server.banner
    assert "http://***@127.0.0.1" in server.log.read_text()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9/models", "a repository can't be read: models: it can't be reached"),
        ("ftp://host/models", "--model-repository: ftp://host/models: the scheme is none of file, s3"),
    ],
)
@pytest.mark.parametrize("command", ["check", "serve", "serve --workers 2"])
def test_a_place_that_is_none_ends_the_start(url: str, said: str, command: str, tmp_path: Path) -> None:
    """With one clear line, and status 1."""
    ports = [] if command == "check" else ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    cache = ["--repository-cache-folder", str(tmp_path)]
    run = [sys.executable, "-m", "server", *command.split(), "--model-repository", url, *cache, *ports]
    environment = {"FORWARDPASS_REMOTE__TRIES": "1", "FORWARDPASS_WORKERS__MAX_DEATHS": "1"}
    ended = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ | environment)

    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "is killed" not in ended.stderr, "a front waits for models that never come"
