"""What `helm test` runs, as the chart renders it, against a real server: with TLS, for callers with keys."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.security.keys import KeyFile, new_key, write_file
from tests.e2e.conftest import REPOSITORY, ServerProcess, StartServer
from tests.support.certificates import Authority
from tests.support.chart import one, render

pytestmark = pytest.mark.e2e


def helm_test(
    server: ServerProcess, key: str = "", ready_s: float = 30, **test: str
) -> subprocess.CompletedProcess[str]:
    """The pod's command with its environment, but for where the Service is, and for the Secret's entry."""
    values: dict[str, Any] = {
        "test": {**test, "keySecret": {"name": "keys"}},
        "tls": {"secretName": "certificate"},
        "auth": {"keysSecret": "keys"},
    }
    (container,) = one(render(values), "Pod", "r-forwardpass-test")["spec"]["containers"]
    environment = {each["name"]: each.get("value", key) for each in container["env"]}
    there = environment | {"URL": f"https://127.0.0.1:{server.port('REST')}/v2", "READY_S": str(ready_s)}
    command = [sys.executable, *container["command"][1:], *container["args"]]
    return subprocess.run(command, env=there, capture_output=True, text=True, timeout=60)


def test_it_waits_predicts_and_says_what_is_wrong(start_server: StartServer, tmp_path: Path) -> None:
    """Ready; zeros of what the model says it takes; a body of its own. What is refused ends it, with the words."""
    key, record = new_key(name="helm", roles=("predict", "read"))
    write_file(tmp_path / "keys.yaml", KeyFile(keys=(record,)))
    certificate, secret = Authority(tmp_path).issue("r-forwardpass")
    server = start_server(
        *("--auth-keys", str(tmp_path / "keys.yaml")),
        *("--http-tls-certificate", str(certificate), "--http-tls-key", str(secret)),
    )

    assert helm_test(server).stdout == "ready\n"

    done = helm_test(server, key, model="digits")
    assert done.returncode == 0, done.stderr
    (output,) = json.loads(done.stdout.removeprefix("ready\n"))["outputs"]
    assert (output["name"], output["shape"]) == ("logits", [1, 10])

    readme = (REPOSITORY / "breast_cancer" / "README.md").read_text()
    (row,) = re.findall(r"^forwardpass predict breast_cancer '(.*)'$", readme, re.MULTILINE)
    done = helm_test(server, key, model="breast_cancer", body=json.dumps({"inputs": [json.loads(row)]}))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.removeprefix("ready\n"))["predictions"][0]["label"] in ("benign", "malignant")

    refused = helm_test(server, key, model="breast_cancer", body='{"inputs": [{}]}')
    assert refused.returncode == 1
    assert "/models/breast_cancer/predict: 400" in refused.stderr

    stranger = helm_test(server, "fp_not_a_key", model="digits")
    assert stranger.returncode == 1
    assert "/models/digits: 401" in stranger.stderr

    server.terminate()
    gone = helm_test(server, key, ready_s=0)
    assert gone.returncode == 1
    assert "/health/ready:" in gone.stderr
