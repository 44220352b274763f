"""Callers with keys against real servers, over every transport: who may do what, and what is written down of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc

from server.security.keys import KeyFile, new_key, write_file
from tests.e2e.conftest import REPOSITORY, end, on_one_port, start
from tests.support.fake_cuda import allocated, build

pytestmark = pytest.mark.e2e

FRAUD, DIGITS = "/v2/models/fraud", "/v2/models/digits"


class Shop:
    """A server, and keys: `user` may predict with digits, `reader` read, `ops` everything, `slow` little at a time."""

    def __init__(self, folder: Path, flags: list[str]) -> None:
        granted: dict[str, dict[str, Any]] = {
            "user": {"roles": ("predict",), "models": ("digits",)},
            "reader": {"roles": ("read",)},
            "ops": {"roles": ("predict", "read", "control"), "tenant": "*"},
            "slow": {"roles": ("predict", "read"), "rate_per_s": 0.001, "burst": 4},
        }
        made = {name: new_key(name=name, **more) for name, more in granted.items()}
        self.keys = {name: key for name, (key, _) in made.items()}
        write_file(folder / "keys.yaml", KeyFile(keys=tuple(record for _, record in made.values())))
        explicit = ["--model-control-mode", "explicit", "--load-model", "digits", "--load-model", "fraud"]
        self.server = start(folder / "server.log", "--auth-keys", str(folder / "keys.yaml"), *explicit, *flags)

    def ask(self, method: str, path: str, who: str = "", **more: Any) -> httpx.Response:
        headers = {"x-api-key": self.keys[who]} if who else {}
        headers |= more.pop("headers", {})
        return httpx.request(method, self.server.http + path, headers=headers, timeout=30, **more)

    def infer(self, who: str, model: str = "digits") -> str:
        """The gRPC status of an infer."""
        shape = (1, 1, 20, 20) if model == "digits" else (1, 4)
        tensor = tritonclient.grpc.InferInput("image", shape, "FP32")
        tensor.set_data_from_numpy(np.zeros(shape, np.float32))
        with tritonclient.grpc.InferenceServerClient(self.server.grpc) as client:
            headers = {"authorization": f"Bearer {self.keys[who]}"} if who else None
            try:
                client.infer(model, [tensor], headers=headers)
            except tritonclient.grpc.InferenceServerException as error:
                return str(error.status()).removeprefix("StatusCode.")
        return "OK"


@pytest.fixture(
    scope="module", params=[["one port"], ["--grpc-transport", "grpcio"], ["--workers", "2"]], ids=lambda p: p[-1]
)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    flags = on_one_port() if request.param == ["one port"] else request.param
    made = Shop(tmp_path_factory.mktemp("shop"), flags)
    yield made
    assert made.server.process.poll() is None
    end(made.server)


def picture() -> dict[str, Any]:
    return {
        "content": (REPOSITORY / "digits" / "example.png").read_bytes(),
        "headers": {"content-type": "image/png"},
    }


def test_who_shows_nothing_is_asked_to(shop: Shop) -> None:
    """401 with the scheme; health is open, and so is the page, without what it shows."""
    answer = shop.ask("POST", f"{DIGITS}/predict", **picture())
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert shop.ask("GET", "/v2/health/ready").status_code == 200
    assert shop.ask("GET", "/").status_code == 200
    assert shop.ask("GET", "/console/models").status_code == 401
    assert shop.infer("") == "UNAUTHENTICATED"


def test_a_key_does_what_it_is_for(shop: Shop) -> None:
    assert shop.ask("POST", f"{DIGITS}/predict", "user", **picture()).json()["predictions"]
    assert [shop.infer("user") for _ in range(3)] == ["OK"] * 3
    assert shop.infer("user", "fraud") == "PERMISSION_DENIED"
    assert shop.infer("user", "nowhere") == "PERMISSION_DENIED"
    assert shop.infer("reader") == "PERMISSION_DENIED"
    assert shop.ask("POST", f"{FRAUD}/infer", "user", json={}).status_code == 403
    assert shop.ask("POST", f"{FRAUD}/predict", "user", json={"inputs": []}).status_code == 403
    assert shop.ask("GET", DIGITS, "user").status_code == 403
    assert shop.ask("GET", DIGITS, "reader").status_code == 200
    assert shop.ask("POST", "/v2/repository/models/digits/unload", "reader").status_code == 403
    assert shop.ask("POST", "/v2/logging", "reader", json={}).status_code == 403


def test_a_tenant_is_not_for_the_asking(shop: Shop) -> None:
    other = {"x-tenant": "somebody"}
    assert shop.ask("GET", DIGITS, "reader", headers=other).status_code == 403
    assert shop.ask("GET", DIGITS, "ops", headers=other).status_code == 200


def test_who_is_over_its_rate_is_told_when_to_come_again(shop: Shop) -> None:
    """A burst of four, shared by the processes of the server; then a token in a quarter of an hour."""
    answers = [shop.ask("POST", f"{DIGITS}/predict", "slow", **picture()) for _ in range(12)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    # Each of two processes grants half, and which of them is asked is not said.
    assert 2 <= len(answers) - len(refused) <= 4
    assert int(refused[0].headers["retry-after"]) > 100
    assert "RESOURCE_EXHAUSTED" in [shop.infer("slow") for _ in range(5)]


def test_what_is_changed_is_written_down(shop: Shop) -> None:
    """Who, what, how it went; and no key in any of it."""
    assert shop.ask("POST", "/v2/repository/models/fraud/unload", "ops").status_code == 200
    assert shop.ask("POST", "/v2/repository/models/fraud/load", "ops").status_code == 200
    assert shop.ask("POST", "/v2/repository/models/no'where/load", "ops").status_code >= 400

    log = shop.server.log.read_text()
    assert "audit: actor='ops' action=model.unload model='fraud'" in log
    assert "audit: actor='ops' action=model.load model='fraud' repository='' parameters='' outcome='done'" in log
    assert """model="no'where" """ in log
    printed = log + shop.server.banner + httpx.get(shop.server.metrics).text
    printed += Path(f"/proc/{shop.server.process.pid}/cmdline").read_text()
    assert not [name for name, key in shop.keys.items() if key.split("_", 2)[2] in printed]


def test_a_page_from_elsewhere_may_not_ask(shop: Shop) -> None:
    """Whatever key the browser may have; the console's own page may."""
    for origin in ("http://evil.example.com", "null"):
        answer = shop.ask("POST", "/v2/repository/models/digits/unload", "ops", headers={"origin": origin})
        assert (answer.status_code, "origin" in answer.text) == (403, True)
    own = picture()["headers"] | {"origin": shop.server.http}
    assert shop.ask("POST", f"{DIGITS}/predict", "user", **(picture() | {"headers": own})).status_code == 200


def test_the_metrics_take_a_token_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    server = start(tmp_path / "server.log", "--metrics-token-file", str(tmp_path / "token"))
    try:
        assert httpx.get(server.metrics).status_code == 401
        assert httpx.get(server.metrics, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert httpx.get(server.metrics, headers={"authorization": "Bearer s3cret"}).status_code == 200
        (tmp_path / "token").write_text("newer")
        assert httpx.get(server.metrics, headers={"authorization": "Bearer s3cret"}).status_code == 401
    finally:
        end(server)


def test_regions_of_gpus_are_their_owners_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a driver without a GPU; what one forgets of a kind is its own, of that kind."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build(tmp_path)))
    shop = Shop(tmp_path, [])
    at = "/v2/cudasharedmemory"

    def told(who: str) -> list[str]:
        return [region["name"] for region in shop.ask("GET", f"{at}/status", who).json()]

    try:
        with allocated(1600) as (handle, _):
            place = {"raw_handle": {"b64": base64.b64encode(handle).decode()}, "device_id": 0, "byte_size": 1600}
            answers = [shop.ask("POST", f"{at}/region/mine/register", "ops", json=place) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 409]
            assert (told("ops"), told("user")) == (["mine"], [])
            shop.ask("POST", f"{at}/unregister", "user")
            shop.ask("POST", "/v2/systemsharedmemory/unregister", "ops")
            assert shop.ask("POST", f"{at}/region/mine/unregister", "user").status_code == 404
            assert told("ops") == ["mine"]
            shop.ask("POST", f"{at}/unregister", "ops")
            assert told("ops") == []
            assert "actor='ops' action=shared_memory.register region='mine' device='0'" in shop.server.log.read_text()
    finally:
        end(shop.server)


def test_regions_are_their_owners(tmp_path: Path) -> None:
    """A region that another registered is not there: not to be seen, not to be used, not to be unregistered."""
    shop = Shop(tmp_path, [])
    region = Path("/dev/shm/forwardpass-test-access")  # noqa: S108 - where shared memory is
    region.write_bytes(bytes(1600))
    try:
        place = {"key": f"/{region.name}", "byte_size": 1600}
        at = "/v2/systemsharedmemory/region/mine"
        assert shop.ask("POST", f"{at}/register", "ops", json=place).status_code == 200
        shared = {"shared_memory_region": "mine", "shared_memory_byte_size": 1600}
        image = {"name": "image", "datatype": "FP32", "shape": [1, 1, 20, 20], "parameters": shared}
        answers = [shop.ask("POST", f"{DIGITS}/infer", who, json={"inputs": [image]}) for who in ("ops", "user")]
        assert [answer.status_code for answer in answers] == [200, 404]
        assert shop.ask("GET", "/v2/systemsharedmemory/status", "user").json() == []
        shop.ask("POST", "/v2/systemsharedmemory/unregister", "user")
        assert shop.ask("POST", "/v2/systemsharedmemory/region/mine/unregister", "user").status_code == 404
        assert len(shop.ask("GET", "/v2/systemsharedmemory/status", "ops").json()) == 1
    finally:
        region.unlink()
        end(shop.server)
