"""Recording and alert rules, by Prometheus' own promtool, and against what the server exposes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import CHART, ROOT, one, render
from tests.support.parts import tool

RULES = CHART / "rules" / "forwardpass.yaml"
CASES = ROOT / "tests" / "golden" / "rules_test.yaml"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True)


def rules(kind: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def test_each_alert_fires_for_its_cause_and_not_without_it(tmp_path: Path) -> None:
    """The cases of tests/golden/rules_test.yaml, on a scripted history."""
    shutil.copy(RULES, tmp_path)
    shutil.copy(CASES, tmp_path)

    done = promtool("test", "rules", tmp_path / CASES.name)

    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_is_without_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    """A new alert needs both; of one that names its victim, the other victims of a case are the second."""
    fires, silent = set(), set()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for asked in case["alert_rule_test"]:
            (fires if asked["exp_alerts"] else silent).add(asked["alertname"])
    alerts = {rule["alert"] for rule in rules("alert")}

    assert fires == alerts
    assert silent >= alerts - {"ForwardpassQueueStuck", "ForwardpassRestarts"}


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: str(rule["alert"]))
def test_who_is_woken_finds_what_to_do(rule: dict[str, Any]) -> None:
    """A summary, a severity, and a section of the runbook."""
    assert rule["annotations"]["summary"]
    assert rule["labels"]["severity"] in ("page", "ticket")
    page, _, section = rule["annotations"]["runbook"].partition("#")
    assert re.search(rf"^### {section}$", (ROOT / page).read_text(), re.IGNORECASE | re.MULTILINE)


def test_rules_ask_for_nothing_that_is_not_exposed() -> None:
    """Every metric is in the table of server/README.md, which another test holds equal to /metrics."""
    exposed = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "server" / "README.md").read_text(), re.MULTILINE))
    recorded = {rule["record"] for rule in rules("record")}
    asked = {name for rule in rules("expr") for name in re.findall(r"\b(?:nv|forwardpass)[\w:]*", rule["expr"])}
    series = {re.sub(r"_(bucket|count|sum)$", "", name) if name not in exposed else name for name in asked}

    assert series - recorded <= exposed


def test_the_chart_puts_its_own_objectives_into_the_rules(tmp_path: Path) -> None:
    """No objective of the file is left, and promtool takes what is written."""
    objectives = {"availability": 0.95, "latencySeconds": 0.25, "latencyRatio": 0.9}
    values = {"metrics": {"prometheusRule": {"enabled": True, "labels": {"release": "monitoring"}, **objectives}}}
    rule = one(render(values), "PrometheusRule")
    written = tmp_path / "rules.yaml"
    written.write_text(yaml.safe_dump(rule["spec"]))

    text = written.read_text()
    assert "(1 - 0.95)" in text
    assert "(1 - 0.9)" in text
    assert 'le="0.25"' in text
    assert not re.search(r"0\.999|0\.99\)|\"0\.1\"", text)
    assert rule["metadata"]["labels"]["release"] == "monitoring"
    assert promtool("check", "rules", written).returncode == 0
