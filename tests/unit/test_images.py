"""The Dockerfile and compose.yaml, as far as it goes without a container engine; `make images` builds and runs them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.environment import load_settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


def stages() -> dict[str, str]:
    """The text of each, by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize(
    ("target", "installed"),
    [("server", "installed"), ("server-gpu", "installed-gpu"), ("exporter", "installed-exporter")],
)
def test_an_image_runs_as_nobody_in_particular_and_has_what_was_installed_alone(target: str, installed: str) -> None:
    """A user with a number, one copy out of the stage with the tools, no step of its own, and what its health is."""
    stage = stages()[target]
    assert re.findall(r"^USER (.*)$", stage, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^COPY --from=(\S+) /opt/forwardpass /opt/forwardpass$", stage, re.MULTILINE) == [installed]
    assert "RUN " not in stage
    assert len(re.findall(r"^HEALTHCHECK ", stage, re.MULTILINE)) == 1
    assert 'ENTRYPOINT ["forwardpass"]' in stage


def test_bases_are_arguments_so_that_they_can_be_pinned() -> None:
    """No FROM names an image by itself."""
    named = set(stages())
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert all(base in named or re.fullmatch(r"\$\{(PYTHON|CUDA)\}", base) for base in bases)


@pytest.mark.parametrize(
    ("cuda", "cudnn", "said"),
    [
        ("13.0.1", "9.13.0.50-1", ""),
        ("", "", ""),
        ("12.9.1", "9.10.2.21-1", "for CUDA 13 and cuDNN 9, the base has 12 and 9"),
        ("13.0.1", "", "the base has 13 and "),
    ],
    ids=["the same", "no CUDA at all", "an older CUDA", "no cuDNN"],
)
def test_an_onnx_runtime_for_another_cuda_ends_the_build(cuda: str, cudnn: str, said: str, tmp_path: Path) -> None:
    """By what its package says, and what NVIDIA's images say of themselves in their environment."""
    known = tmp_path / "onnxruntime_gpu-1.28.0.dist-info"
    known.mkdir()
    wants = 'Requires-Dist: nvidia-cudnn-cu13~=9.0; extra == "cudnn"'
    (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.28.0\n{wants}\n")
    (step,) = re.findall(r"^RUN \S+/python3 (-c .*(?:\n.*)*?)\n\n", stages()["installed-gpu"], re.MULTILINE)
    environment = {"PYTHONPATH": str(tmp_path), "CUDA_VERSION": cuda, "NV_CUDNN_VERSION": cudnn}
    command = ["sh", "-c", f"{sys.executable} {step}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) is (not said), done.stderr
    assert said in done.stderr


def test_the_builder_gets_what_it_copies_and_hardly_more() -> None:
    """`.dockerignore` lets through the sources of every COPY, and no tests, builds or models."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY ([^-].*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert copied - {"server/__init__.py"} == allowed


@pytest.mark.parametrize("name", ["server", "gateway"])
def test_the_environment_of_compose_is_the_servers_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that it reads, beside those of the image; read-only, without rights, for this machine only."""
    service = COMPOSE["services"][name]
    image = dict(re.findall(r"(FORWARDPASS_\w+)='?([^'\s]+)'?", stages()["server"]))
    for key, value in {**image, **service["environment"]}.items():
        monkeypatch.setenv(key, value)
    settings = load_settings()
    assert settings.host == settings.metrics.host == "0.0.0.0"  # noqa: S104 - of a container
    assert settings.repository.path == ("/models",)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["user"] == "10001:10001"
    grace_s = int(service["stop_grace_period"].removesuffix("s"))
    assert grace_s > settings.shutdown.delay_s + settings.shutdown.grace_s
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def mounted(service: str) -> dict[str, Path]:
    """What of this folder a service sees, by where it sees it; all of it is there, and read-only."""
    found = {}
    for volume in COMPOSE["services"][service]["volumes"]:
        source, target, mode = volume.split(":")
        assert mode == "ro"
        assert (ROOT / source).exists(), source
        found[target] = ROOT / source
    return found


def test_prometheus_takes_the_configuration_of_compose(tmp_path: Path) -> None:
    """By promtool, with the chart's own rules; it asks services that are there, at the port of their metrics."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    there = mounted("prometheus")
    config = there["/etc/prometheus/prometheus.yml"].read_text()
    rules = there["/etc/prometheus/rules"]
    (tmp_path / "prometheus.yml").write_text(config.replace("/etc/prometheus/rules", str(rules)))
    done = subprocess.run([promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    groups = yaml.safe_load((rules / "forwardpass.yaml").read_text())["groups"]
    assert f"{sum(len(group['rules']) for group in groups)} rules found" in done.stdout
    jobs = yaml.safe_load(config)["scrape_configs"]
    asked = [target.split(":") for job in jobs for each in job["static_configs"] for target in each["targets"]]
    assert {name for name, _ in asked} <= COMPOSE["services"].keys()
    assert {port for _, port in asked} == {"8002"}


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    """By what is provisioned: a service and its port, and the folder that they lie in."""
    there = mounted("grafana")
    folder = Path("/etc/grafana/provisioning")
    (source,) = yaml.safe_load(there[str(folder / "datasources" / "forwardpass.yaml")].read_text())["datasources"]
    assert source["type"] == "prometheus"
    name, _, port = source["url"].removeprefix("http://").partition(":")
    assert COMPOSE["services"][name]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (provider,) = yaml.safe_load(there[str(folder / "dashboards" / "forwardpass.yaml")].read_text())["providers"]
    dashboards = [json.loads(path.read_text()) for path in there[provider["options"]["path"]].iterdir()]
    assert dashboards
    assert all(dashboard["uid"] and dashboard["panels"] for dashboard in dashboards)


def test_what_compose_names_is_there() -> None:
    """Services that others wait for, models, what is built, and no port twice."""
    services = COMPOSE["services"]
    assert {name for each in services.values() for name in each.get("depends_on", [])} <= services.keys()
    for name in ("server", "gateway"):
        assert services[name]["build"] == {"context": ".", "target": "server"}
        assert [path.name for path in mounted(name).values()] == ["model_repository"]
    assert services["gateway"]["environment"]["FORWARDPASS_TRITON__URL"] == "grpc://triton:8001"
    assert mounted("triton")["/models"] == ROOT / "model_repository"
    taken = [port.split(":")[1] for each in services.values() for port in each.get("ports", [])]
    assert len(taken) == len(set(taken))
