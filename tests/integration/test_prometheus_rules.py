"""Recording and alert rules, by Prometheus' own promtool, and against what the server exposes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.observability.catalog import Family
from server.observability.definitions import CATALOG
from server.scheduler.histogram import DURATION_BOUNDS_NS, Histogram
from tests.support.chart import CHART, ROOT, one, render
from tests.support.parts import tool

DURATION = "forwardpass_request_duration_seconds"
RULES = CHART / "rules" / "forwardpass.yaml"
CASES = [ROOT / "tests" / "golden" / name for name in ("rules_test.yaml", "rules_day_test.yaml")]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True)


def rules(kind: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def test_each_alert_fires_for_its_cause_and_not_without_it(tmp_path: Path) -> None:
    """The cases of tests/golden/rules_test.yaml and rules_day_test.yaml, on a scripted history."""
    for path in (RULES, *CASES):
        shutil.copy(path, tmp_path)

    done = promtool("test", "rules", *(tmp_path / path.name for path in CASES))

    assert done.returncode == 0, done.stdout + done.stderr


def _history(metric: str, values: str, **labels: str) -> dict[str, str]:
    told = {"namespace": "ns", **labels}
    return {"series": metric + "{" + ",".join(f'{k}="{v}"' for k, v in told.items()) + "}", "values": values}


_HISTORY = [
    _history("forwardpass_saturation", "0.9x4", model="a", version="1", pod="r-forwardpass-7d9f8-x2x4z"),
    _history("forwardpass_saturation", "0.2x4", model="b", version="1", pod="r-forwardpass-7d9f8-x2x4z"),
    _history("forwardpass_saturation", "0.6x4", model="a", version="1", pod="r-forwardpass-7d9f8cut"),
    _history(
        "forwardpass_saturation", "0.6x4", model="a", version="1", pod="r-forwardpass-7d9f8cut", service="scraped twice"
    ),
    _history("forwardpass_saturation", "9x4", model="a", version="1", pod="r-forwardpass-b-7d9f8-x2x4z"),
    _history(
        "forwardpass_saturation", "9x4", model="a", version="1", pod="r-forwardpass-7d9f8-other", namespace="other"
    ),
    _history("forwardpass_triton_up", "1x4", triton="t1", pod="r-forwardpass-7d9f8-x2x4z"),
    _history("forwardpass_triton_up", "1x4", triton="t1", pod="r-forwardpass-7d9f8-x2x4z", service="scraped twice"),
    _history("forwardpass_triton_up", "1x4", triton="t2", pod="r-forwardpass-7d9f8-x2x4z"),
    _history("forwardpass_triton_up", "1x4", triton="t1", pod="r-forwardpass-7d9f8cut"),
    _history(
        "envoy_cluster_upstream_cx_none_healthy",
        "0+30x8",
        envoy_cluster_name="forwardpass",
        pod="r-forwardpass-envoy-x",
    ),
]
_CASE = "{ eval_time: 1m, expr: %s, exp_samples: [%s] }"


def test_what_autoscalers_ask_prometheus_is_sound_and_gives_the_right_number(tmp_path: Path) -> None:
    """The adapter's rule as the adapter fills it in, and KEDA's queries as the chart renders them, by promtool."""
    (rule,) = yaml.safe_load((CHART / "rules" / "adapter.yaml").read_text())["rules"]
    adapted = rule["metricsQuery"]
    for name, value in (
        ("GroupBy", "pod"),
        ("Series", "forwardpass_saturation"),
        ("LabelMatchers", 'namespace="ns",pod=~"r-forwardpass-7d9f8-x2x4z|r-forwardpass-7d9f8cut"'),
    ):
        adapted = adapted.replace(f"<<.{name}>>", value)

    def queries(**values: Any) -> list[str]:
        keda = {"autoscaling": {"kind": "keda", "minReplicas": 0}, **values}
        return [each["metadata"]["query"] for each in one(render(keda), "ScaledObject")["spec"]["triggers"]]

    of_pods, nobody = queries(grpcBalancing={"kind": "envoy"})
    of_tritons, nobody_again = queries(engine="triton", grpcBalancing={"kind": "envoy"})
    assert nobody_again == nobody
    wanted: dict[str, list[tuple[str, float]]] = {
        adapted: [('{pod="r-forwardpass-7d9f8-x2x4z"}', 0.9), ('{pod="r-forwardpass-7d9f8cut"}', 0.6)],
        of_pods: [("{}", 1.5)],
        of_tritons: [("{}", 1.5)],
        nobody: [("{}", 2)],
    }
    asked = [
        {"eval_time": "1m", "expr": query, "exp_samples": [{"labels": k, "value": v} for k, v in samples]}
        for query, samples in wanted.items()
    ]
    tests = [{"interval": "15s", "input_series": _HISTORY, "promql_expr_test": asked}]
    (tmp_path / "scaling.yaml").write_text(json.dumps({"evaluation_interval": "15s", "tests": tests}))

    done = promtool("test", "rules", tmp_path / "scaling.yaml")

    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_is_without_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    """A new alert needs both; of one that names its victim, the other victims of a case are the second."""
    fires, silent = set(), set()
    for case in (case for path in CASES for case in yaml.safe_load(path.read_text())["tests"]):
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
    """Every metric is in the catalog, which another test holds equal to /metrics."""
    exposed = set(CATALOG)
    recorded = {rule["record"] for rule in rules("record")}
    asked = {
        name
        for rule in rules("expr")
        for name in re.findall(r"\b(?:nv|forwardpass)[\w:]*", re.sub('"[^"]*"', "", rule["expr"]))
    }
    series = {re.sub(r"_(bucket|count|sum)$", "", name) if name not in exposed else name for name in asked}

    assert series - recorded <= exposed


def test_the_chart_puts_its_own_objectives_into_the_rules(tmp_path: Path) -> None:
    """No objective of the file is left, and promtool takes what is written."""
    objectives = {
        "availability": 0.95,
        "latencySeconds": 0.25,
        "latencyRatio": 0.9,
        "runbookUrl": "https://docs.example",
    }
    values = {"metrics": {"prometheusRule": {"enabled": True, "labels": {"release": "monitoring"}, **objectives}}}
    rule = one(render(values), "PrometheusRule")
    written = tmp_path / "rules.yaml"
    written.write_text(yaml.safe_dump(rule["spec"], width=1000))

    text = written.read_text()
    assert "(1 - 0.95)" in text
    assert "(1 - 0.9)" in text
    assert 'le="0.25"' in text
    assert re.search(r":p99_5m\{[^}]*\} > 0.25$", text, re.MULTILINE)
    assert "runbook_url: https://docs.example#errors" in text
    assert "README" not in text
    assert not re.search(r"0\.999|0\.99\)|\"0\.1\"|> 0\.1$", text)
    assert rule["metadata"]["labels"]["release"] == "monitoring"
    assert promtool("check", "rules", written).returncode == 0


@pytest.mark.parametrize(("seconds", "bound"), [(1, "1.0"), (10, "10.0"), (2.5, "2.5"), (0.00005, "5e-05")])
def test_an_objective_is_the_bound_of_a_bucket_as_it_is_exposed(seconds: float, bound: str) -> None:
    """Label values are text: one that is whole has a point, as the server and Prometheus 3 write it."""
    values = {"metrics": {"prometheusRule": {"enabled": True, "latencySeconds": seconds}}}
    exprs = [
        each["expr"] for group in one(render(values), "PrometheusRule")["spec"]["groups"] for each in group["rules"]
    ]
    histogram = Family(DURATION)
    histogram.add_histogram(("m", "1"), Histogram(DURATION_BOUNDS_NS), 1e-9)

    assert {found for expr in exprs for found in re.findall(r'le="([^"]+)"', expr)} == {bound}
    assert any(f'le="{bound}"' in line.labels for line in histogram.metric.lines)


def test_the_charts_rules_are_of_their_own_release(tmp_path: Path) -> None:
    """Another one, its canary for example, has objectives of its own: neither records, nor wakes, for the other."""
    pods = {
        "m": {"pod": "r-forwardpass-7d9f8-x2x4z"},
        "t": {"pod": "r-forwardpass-triton-7d9f8-x2x4z"},
        "n": {"pod": "r-forwardpass-b-7d9f8-x2x4z"},
        "o": {"pod": "r-forwardpass-7d9f8-x2x4z", "namespace": "other"},
    }
    history = []
    for model, pod in pods.items():
        labels = {"model": model, "version": "1", "instance": model, **pod}
        history += [
            _history("nv_inference_pending_request_count", "1x40", **labels),
            _history("nv_inference_exec_count", "5x40", **labels),
            *([_history("forwardpass_saturation", "2x40", **labels)] if model != "t" else []),
        ]
    for deployment in ("r-forwardpass", "r-forwardpass-b", "shop"):
        history += [
            _history("kube_deployment_status_replicas_available", "0x40", deployment=deployment),
            _history("kube_deployment_spec_replicas", "1x40", deployment=deployment),
        ]
    spec = one(render({"metrics": {"prometheusRule": {"enabled": True}}}), "PrometheusRule")["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    whose = 'namespace="ns",release="r"'
    firing = [
        ("ForwardpassNoReplicas", 'deployment="r-forwardpass"'),
        ("ForwardpassQueueStuck", 'model="m"'),
        ("ForwardpassQueueStuck", 'model="t"'),
        ("ForwardpassSaturated", 'model="m"'),
    ]
    asked = {
        "forwardpass:saturation:max": [{"labels": f'forwardpass:saturation:max{{model="m",{whose}}}', "value": 2}],
        'count by (alertname, model, deployment, namespace, release) (ALERTS{alertstate="firing"})': [
            {"labels": f'{{alertname="{name}",{victim},{whose}}}', "value": 1} for name, victim in firing
        ],
    }
    test = {
        "interval": "1m",
        "input_series": history,
        "promql_expr_test": [
            {"expr": expr, "eval_time": "20m", "exp_samples": samples} for expr, samples in asked.items()
        ],
    }
    told = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "releases.yaml").write_text(json.dumps(told))

    done = promtool("test", "rules", tmp_path / "releases.yaml")

    assert done.returncode == 0, done.stdout + done.stderr
