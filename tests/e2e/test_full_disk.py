"""A disk that is full where the log goes: requests, actions and the end are as ever."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import REPOSITORY, end, start

pytestmark = pytest.mark.e2e

PICTURE = (REPOSITORY / "digits" / "example.png").read_bytes()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_takes_the_lines_of_the_log_and_nothing_else(
    tmp_path: Path, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request has a line in the access log, each action one in the audit log; none can be written."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    log = tmp_path / "server.log"
    log.symlink_to("/dev/full")
    flags = ["--log-access", "1", "--model-control-mode", "explicit", "--load-model", "digits", "--workers", workers]
    server = start(log, *flags)
    try:
        with httpx.Client(base_url=server.http, timeout=30) as client:

            def predicted() -> httpx.Response:
                return client.post("/v2/models/digits/predict", content=PICTURE, headers={"content-type": "image/png"})

            assert [predicted().status_code for _ in range(10)] == [200] * 10
            assert client.post("/v2/repository/models/fraud/load", json={}).status_code == 200
            assert client.post("/v2/models/fraud/infer", content=b"{").status_code == 400
            assert client.post("/v2/repository/models/fraud/unload", json={}).status_code == 200
            assert client.post("/v2/repository/models/nobody/load", json={}).status_code == 404
            assert predicted().json()["predictions"][0]["label"]
        assert server.terminate() == 0
    finally:
        end(server)
