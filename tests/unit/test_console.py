"""The console's routes: its files with their headers, what the page asks for, and that it can be turned off."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import server
from server.repository.certificate import DataRecord, Manifest, RowCounts, VersionRecord
from server.settings import HttpSettings
from server.transport.console import CONSOLE, FILES
from server.transport.http1.server import Http1Server
from server.transport.rest import RestApp
from server.types import ImageInput, RawInput, RowInput
from tests.support.fake_dataplane import MODEL, FakeDataPlane
from tests.support.http1 import Answer, Peer

FOLDER = Path(server.__file__).parent / "console"
TYPES = {
    "/": "text/html; charset=utf-8",
    "/console/style.css": "text/css; charset=utf-8",
    "/console/app.js": "text/javascript; charset=utf-8",
    "/console/icon.svg": "image/svg+xml",
}
PAGE_FILES = ["/", *(f"/console/{name}" for name in FILES)]


class Example:
    """A pipeline, as far as the console asks one."""

    def __init__(self, example: RawInput) -> None:
        self._example = example

    def example(self) -> RawInput:
        return self._example


async def call(path: str, dataplane: FakeDataPlane | None = None, *, method: str = "GET", **options: Any) -> Answer:
    headers: dict[str, str] = options.get("headers", {})
    app = RestApp(dataplane or FakeDataPlane(), max_body_bytes=1000, console=options.get("console", True))  # type: ignore[arg-type]
    peer = Peer(app, Http1Server(app, "127.0.0.1", 0, HttpSettings()))
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    peer.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode())
    await peer.transport.written.wait()
    [answer] = peer.answers(method)
    return answer


@pytest.mark.parametrize("path", PAGE_FILES)
async def test_a_file_comes_with_its_type_and_the_policy_of_the_page(path: str) -> None:
    """Each file is what stands in the folder, is asked for anew each time, and lets nothing of others in."""
    answer = await call(path)

    assert answer.status == 200
    assert answer.body == (FOLDER / (path.removeprefix("/console/").lstrip("/") or "index.html")).read_bytes()
    assert answer.headers["content-type"] == TYPES.get(path, TYPES["/console/app.js"])
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_every_file_of_the_folder_has_its_route() -> None:
    """A file without a route would be asked for in vain; the README is for readers of the code."""
    there = {path.name for path in FOLDER.iterdir()} - {"README.md", "console.png", "__pycache__"}
    assert there == {"index.html", *FILES}


@pytest.mark.parametrize("name", ["index.html", *FILES])
def test_nothing_is_fetched_from_another_host(name: str) -> None:
    """The only absolute addresses are those of XML namespaces, which nobody fetches."""
    text = (FOLDER / name).read_text()
    found = set(re.findall(r"""(?:[a-z]+:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s"'`)]*""", text, re.IGNORECASE))
    assert found <= {"http://www.w3.org/2000/svg"}


async def test_a_file_that_the_browser_has_is_not_sent_again() -> None:
    """The tag that came with it answers 304, with no body and no length; another tag gets the file."""
    tag = (await call("/console/app.js")).headers["etag"]

    kept = await call("/console/app.js", headers={"If-None-Match": f'"other", {tag}'})
    assert (kept.status, kept.body, kept.headers["etag"]) == (304, b"", tag)
    assert "content-length" not in kept.headers
    assert (await call("/console/app.js", headers={"If-None-Match": '"other"'})).status == 200


async def test_head_is_answered_as_get_without_the_body() -> None:
    """The same headers, with the length of what GET sends."""
    head, get = await call("/", method="HEAD"), await call("/")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(get.body))
    assert head.headers["etag"] == get.headers["etag"]


@pytest.mark.parametrize("path", [*PAGE_FILES, "/console/models", "/console/counts"])
async def test_turned_off_it_is_not_there(path: str) -> None:
    """With http.console false every path of it is 404, and none by POST where it is on."""
    assert (await call(path, console=False)).status == 404
    assert (await call(path, method="POST")).status == 405


@pytest.mark.parametrize("path", ["/console/", "/console/app.js/", "/console/../settings.py", "/console/%2e%2e/app.py"])
async def test_there_is_no_other_file(path: str) -> None:
    """Files are named in the table, and found by nothing else."""
    assert (await call(path)).status == 404


def certificate() -> Manifest:
    record = VersionRecord(
        created="2026-01-02T03:04:05+00:00",
        opset=18,
        ir_version=10,
        seed=0,
        data=DataRecord(source="made up", sha256="0" * 64, rows=RowCounts(train=3, validation=2, test=1)),
        metrics={"accuracy": 0.9},
        baseline={"name": "chance", "accuracy": 0.5},
        environment={},
        tolerances={},
        errors={},
    )
    return Manifest(
        model_name=MODEL, recipe="r", task="t", synthetic=True, versions={"1": record}, files={"f": "0" * 64}
    )


async def test_models_are_told_with_what_they_take_and_their_certificate() -> None:
    """A version that serves has tensors, metrics and baseline; one that does not has its reason."""
    told = (await call("/console/models", FakeDataPlane(certificate=certificate(), control_mode="explicit"))).json

    assert (told["control_mode"], told["ready"]) == ("explicit", True)
    serving, broken = told["models"]
    assert serving["serves"]
    assert [spec["name"] for spec in serving["inputs"]] == ["a", "b"]
    assert serving["certificate"]["metrics"] == {"accuracy": 0.9}
    assert serving["certificate"]["baseline"] == {"name": "chance", "accuracy": 0.5}
    assert serving["certificate"]["synthetic"] is True
    assert broken == {
        "name": "broken",
        "version": "",
        "state": "UNAVAILABLE",
        "reason": "no model file",
        "serves": False,
    }


async def test_a_model_without_a_certificate_has_none() -> None:
    """It is told as null, not left out."""
    assert (await call("/console/models")).json["models"][0]["certificate"] is None


async def test_counts_are_those_of_the_statistics() -> None:
    """Counters, and buckets with their bounds: one bucket more than bounds."""
    answer = await call("/console/counts")
    [model] = answer.json["models"]

    assert (model["name"], model["version"], model["passes"], model["rows"]) == (MODEL, "1", 1, 3)
    assert sum(model["batch"]) == 1
    assert len(model["duration"]) == len(model["duration_bounds_ns"]) + 1
    assert answer.headers["cache-control"] == "no-store"


async def test_an_example_is_a_picture_or_a_row() -> None:
    """A picture comes as it is, a row as JSON; a model without a pipeline says so, and an unknown one is 404."""
    path = f"/console/models/{MODEL}/versions/1/example"

    picture = await call(path, FakeDataPlane(runs=Example(ImageInput(b"\x89PNG", "image/png"))))  # type: ignore[arg-type]
    assert (picture.headers["content-type"], picture.body) == ("image/png", b"\x89PNG")
    row = await call(path, FakeDataPlane(runs=Example(RowInput({"hour": 14}))))  # type: ignore[arg-type]
    assert row.json == {"input": {"hour": 14}}
    assert (await call(path)).status == 501
    assert (await call("/console/models/nobody/versions/1/example")).status == 404


async def test_the_console_is_no_part_of_the_api() -> None:
    """The OpenAPI document has none of its routes: they change with the page."""
    paths = (await call("/v2/docs/openapi.json")).json["paths"]
    assert not {route.pattern for route in CONSOLE} & paths.keys()
