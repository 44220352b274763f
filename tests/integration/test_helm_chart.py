"""The chart: rendered by two Helms alike, sound by Kubernetes' schemas, each switch doing what it says."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from server.cli import create_app
from server.environment import load_settings
from tests.support.chart import CHART, KUBERNETES, ROOT, Document, Refused, kinds, lint, one, render, render_by_helm4

Values = dict[str, Any]

GATEWAY = {
    "enabled": True,
    "parentRefs": [{"name": "public", "sectionName": "rest"}],
    "grpc": {"parentRefs": [{"name": "public", "sectionName": "grpc"}]},
}
CRON = {
    "type": "cron",
    "metadata": {"timezone": "UTC", "start": "0 6 * * *", "end": "0 20 * * *", "desiredReplicas": "9"},
}
ENGINES = {
    "extraEnv": [{"name": "CACHE", "value": "/engines"}],
    "extraVolumes": [{"name": "engines", "persistentVolumeClaim": {"claimName": "engines-h100"}}],
    "extraVolumeMounts": [{"name": "engines", "mountPath": "/engines"}],
    "updateStrategy": {"maxSurge": 0, "maxUnavailable": "50%"},
}
OPEN = {"auth": {"insecure": True}}
CERT_MANAGER = {"enabled": True, "issuerRef": {"name": "ca", "kind": "Issuer"}}

CASES: dict[str, Values] = {
    "the defaults": {},
    "Envoy in front": {"grpcBalancing": {"kind": "envoy"}},
    "Envoy in front, with TLS": {"grpcBalancing": {"kind": "envoy"}, "tls": {"secretName": "certificate"}},
    "Envoy in front, with mutual TLS": {
        "grpcBalancing": {"kind": "envoy", "envoy": {"requireClientCertificates": True}},
        "tls": {"secretName": "certificate"},
    },
    "as many pods as a peak takes": {
        "capacity": {
            "kinds": {"a": {"requestsPerSecond": 100, "slo": "p99=20ms"}, "b": {"requestsPerSecond": 50.5}},
            "peak": {"a": 700, "b": 101},
        },
    },
    "an HPA": {"autoscaling": {"kind": "hpa", "targetCPUUtilizationPercentage": 80}},
    "KEDA, to zero": {"autoscaling": {"kind": "keda", "minReplicas": 0, "keda": {"authenticationRef": "who"}}},
    "an HPA with the adapter's rule": {
        "autoscaling": {"kind": "hpa", "hpa": {"adapterRule": True, "adapterNamespace": "monitoring"}}
    },
    "KEDA, to zero behind Envoy": {
        "autoscaling": {
            "kind": "keda",
            "minReplicas": 0,
            "keda": {"extraTriggers": [{"type": "cron", "metadata": {}}]},
        },
        "grpcBalancing": {"kind": "envoy"},
        "metrics": {"podMonitor": {"enabled": True}},
    },
    "KEDA asks the server": {
        "autoscaling": {"kind": "keda", "keda": {"trigger": "external"}},
        "networkPolicy": {"enabled": True, "metricsFrom": [{"podSelector": {}}]},
        "tls": {"secretName": "certificate"},
    },
    "KEDA asks the servers how busy the Tritons are": {
        "engine": "triton",
        "autoscaling": {"kind": "keda", "keda": {"trigger": "external"}},
    },
    "KEDA scales Tritons to zero": {
        "engine": "triton",
        "autoscaling": {"kind": "keda", "minReplicas": 0},
        "grpcBalancing": {"kind": "envoy"},
        "metrics": {"podMonitor": {"enabled": True}},
    },
    "load balancers": {
        "service": {
            "type": "LoadBalancer",
            "annotations": {"example.com/internal": "true"},
            "externalTrafficPolicy": "Local",
            "loadBalancerClass": "example.com/lb",
            "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
        },
        "settings": OPEN,
        "grpcBalancing": {"kind": "envoy"},
        "metrics": {"serviceMonitor": {"enabled": True}},
    },
    "ports of nodes, for callers with keys": {"service": {"type": "NodePort"}, "auth": {"keysSecret": "keys"}},
    "a dual-stack cluster": {
        "service": {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]},
        "engine": "triton",
        "grpcBalancing": {"kind": "envoy"},
    },
    "a cluster of IPv4 alone": {"service": {"ipFamilies": ["IPv4"]}, "grpcBalancing": {"kind": "envoy"}},
    "KEDA, to zero while idle": {
        "autoscaling": {
            "kind": "keda",
            "keda": {"idleToZero": True, "authenticationRef": "who", "authModes": "bearer"},
        },
        "grpcBalancing": {"kind": "envoy"},
    },
    "pods of each kind in their own places": {
        "engine": "triton",
        "triton": {
            "scheduling": {
                "nodeSelector": {"gpu": "yes"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "runtimeClassName": "nvidia",
                "priorityClassName": "",
            },
        },
        "grpcBalancing": {"kind": "envoy", "envoy": {"scheduling": {"priorityClassName": "higher"}}},
        "nodeSelector": {"disk": "fast"},
        "priorityClassName": "high",
    },
    "models from a volume": {"modelRepository": {"kind": "pvc", "pvc": {"existingClaim": "models", "subPath": "a"}}},
    "models from far away": {"modelRepository": {"kind": "remote", "remote": {"urls": ["s3://bucket/models"]}}},
    "models from far away, for Tritons": {
        "engine": "triton",
        "modelRepository": {"kind": "remote", "remote": {"urls": ["s3://bucket/models", "gs://other"]}},
        "settings": {"remote": {"downloads": 4}},
        "extraEnv": [{"name": "AWS_REGION", "value": "x"}],
        "extraEnvFrom": [{"secretRef": {"name": "credentials"}}],
    },
    "models from far away, for a Triton in each pod": {
        "engine": "triton",
        "triton": {"placement": "sidecar"},
        "modelRepository": {"kind": "remote", "remote": {"urls": ["s3://bucket/models"]}},
    },
    "a GPU": {
        "resourcesPreset": "gpu",
        "runtimeClassName": "nvidia",
        "updateStrategy": {"maxSurge": 0, "maxUnavailable": 1},
    },
    "a slice of a GPU": {"gpu": {"resource": "nvidia.com/mig-1g.10gb", "count": 1}},
    "an Ingress": {"ingress": {"enabled": True, "className": "nginx", "hosts": [{"host": "a.example", "path": "/"}]}}
    | {"settings": OPEN},
    "routes of a Gateway": {
        "gateway": GATEWAY | {"canary": {"serviceName": "next", "weight": 10}},
        "settings": OPEN,
    },
    "monitors and rules": {
        "metrics": {name: {"enabled": True} for name in ("serviceMonitor", "podMonitor", "prometheusRule")},
    },
    "monitors that show a token": {
        "metrics": {
            "serviceMonitor": {
                "enabled": True,
                "authorization": {"credentials": {"name": "scrapers", "key": "token"}},
            },
        },
        "settings": {"metrics": {"token_file": "/token/token"}},
    },
    "a network policy": {"networkPolicy": {"enabled": True, "from": [{"podSelector": {}}]}},
    "a network policy around Envoy and Tritons": {
        "networkPolicy": {"enabled": True, "from": [{"podSelector": {}}], "metricsFrom": [{"namespaceSelector": {}}]},
        "engine": "triton",
        "grpcBalancing": {"kind": "envoy"},
    },
    "`helm test` with a key": {
        "test": {"model": "digits", "keySecret": {"name": "keys", "key": "helm"}},
        "auth": {"keysSecret": "keys"},
    },
    "Tritons of its own": {"engine": "triton", "triton": {"replicas": 3, "flags": ["--log-verbose=1"]}},
    "Tritons that keep what they built": {"engine": "triton", "triton": ENGINES},
    "a Triton in each pod that keeps what it built": {"engine": "triton", "triton": ENGINES | {"placement": "sidecar"}},
    "a Triton in each pod": {"engine": "triton", "triton": {"placement": "sidecar"}},
    "Tritons that are there": {"engine": "triton", "triton": {"placement": "external", "urls": ["grpc://a:8001"]}},
    "a certificate of cert-manager": {"tls": {"certManager": CERT_MANAGER}},
    "a certificate of cert-manager, behind Envoy": {
        "tls": {"certManager": CERT_MANAGER},
        "grpcBalancing": {"kind": "envoy", "envoy": {"requireClientCertificates": True}},
        "settings": {"tls": {"client_ca": "/tls/ca.crt"}},
    },
    "callers with keys": {"auth": {"keysSecret": "keys"}, "settings": {"auth": {"insecure": False}}},
    "everything that may be added to a pod": {
        "extraEnv": [{"name": "AWS_REGION", "value": "x"}],
        "extraEnvFrom": [{"secretRef": {"name": "credentials"}}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "extraContainers": [{"name": "aside", "image": "aside:1"}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "commonLabels": {"e": "f"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "registry"}],
    },
}


PROFILES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CHART / "profiles").glob("*.yaml"))}
CASES |= {f"the profile {name}": values for name, values in PROFILES.items()}


@pytest.fixture(scope="module")
def by_helm4() -> dict[str, dict[str, Any]]:
    return render_by_helm4(CASES)


@pytest.mark.parametrize("case", CASES)
def test_both_helms_render_it_alike_and_kubernetes_would_take_it(case: str, by_helm4: dict[str, Any]) -> None:
    """Strictly by the schemas of every version: no unknown field, no wrong type."""
    found = by_helm4[case]

    assert found["problems"] == []
    assert by_name(found["documents"]) == by_name(render(CASES[case]))


OWN_GROUPS = ("", "apps", "autoscaling", "networking.k8s.io", "policy")
"""Of Kubernetes itself, in the chart."""
CUSTOM = yaml.safe_load((ROOT / "tests" / "golden" / "custom_resources.yaml").read_text())


def problems(document: Document) -> list[str]:
    """What its definition has against a custom resource."""
    known = CUSTOM["kinds"][document["kind"]]
    schema = {"definitions": CUSTOM["definitions"], **known["spec"]}
    found = [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document["spec"])]
    return found if document["apiVersion"] == known["apiVersion"] else [document["apiVersion"], *found]


def test_custom_resources_are_what_their_definitions_want(by_helm4: dict[str, Any]) -> None:
    """Of every case, and every kind is among them: no unknown field, no wrong type, nothing missing."""
    documents = [each for case in by_helm4.values() for each in case["documents"]]
    custom = [each for each in documents if each["apiVersion"].rpartition("/")[0] not in OWN_GROUPS]
    assert {each["kind"] for each in custom} == set(CUSTOM["kinds"])
    assert [(each["kind"], found) for each in custom if (found := problems(each))] == []


@pytest.mark.parametrize(
    ("case", "kind", "path", "value"),
    [
        ("KEDA, to zero", "ScaledObject", ("minReplicas",), 0),
        ("KEDA, to zero", "ScaledObject", ("triggers", 0, "metadata", "threshold"), 0.7),
        ("monitors and rules", "ServiceMonitor", ("endpoints", 0, "interval"), "15 s"),
        ("routes of a Gateway", "GRPCRoute", ("rules", 0, "backendRefs", 0, "port"), "grpc"),
        ("a certificate of cert-manager", "Certificate", ("issuerRef", "names"), "x"),
    ],
)
def test_a_planted_mistake_in_a_custom_resource_is_found(
    case: str, kind: str, path: tuple[Any, ...], value: Any, by_helm4: dict[str, Any]
) -> None:
    """An unknown field, a number where text is wanted, a duration that is none."""
    document = deepcopy(next(each for each in by_helm4[case]["documents"] if each["kind"] == kind))
    place = document["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert len(problems(document)) == 1


@pytest.mark.parametrize(
    "case", ["the defaults", "a network policy around Envoy and Tritons", "KEDA, to zero behind Envoy"]
)
def test_helm_lint_has_nothing_to_say(case: str) -> None:
    """Strictly: warnings are errors."""
    lint(CASES[case])


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_every_version_of_kubernetes_gets_the_same(kubernetes: str) -> None:
    """Nothing is written by the version of the cluster."""
    assert render(kubernetes=kubernetes) == render()


def test_the_default_rendering_is_that_of_the_snapshot() -> None:
    """A change of it is seen in a review: `helm template` into tests/golden/chart.yaml writes it anew."""
    assert render() == list(yaml.safe_load_all((ROOT / "tests" / "golden" / "chart.yaml").read_text()))


def by_name(documents: list[Document]) -> dict[str, Document]:
    return {f"{each['kind']} {each['metadata']['name']}": each for each in documents}


def server(values: Values | None = None) -> Document:
    """The pod's spec, with the server's container as `server`."""
    spec: Document = one(render(values), "Deployment")["spec"]["template"]["spec"]
    return spec | {"server": next(each for each in spec["containers"] if each["name"] == "server")}


def environment(container: Document) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


class TestSettings:
    """`settings` are the server's own, by the same names and limits."""

    def test_the_server_takes_what_the_chart_gives_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Numbers, lists, and large numbers that a template would write as 1e+09."""
        wanted = {"http": {"max_bodies_bytes": 1_000_000_000}, "scheduler": {"default_max_queue_size": 77}}
        container = server({"settings": wanted | {"repository": {"warmup_s": 2.5, "strict_readiness": True}}})["server"]
        for name, value in environment(container).items():
            monkeypatch.setenv(name, value)

        settings = load_settings()

        assert settings.http.max_bodies_bytes == 1_000_000_000
        assert settings.scheduler.default_max_queue_size == 77
        assert settings.repository.warmup_s == 2.5
        assert settings.repository.strict_readiness
        assert settings.repository.path == ("/models",)
        assert settings.host == settings.metrics.host == "::"
        assert settings.log.format == "json"

    @pytest.mark.parametrize("case", CASES)
    def test_the_server_would_start_with_what_it_is_given(self, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """All of its own checks of settings pass, those between two of them too."""
        for name, value in environment(server(CASES[case])["server"]).items():
            monkeypatch.setenv(name, value)
        assert load_settings().http.port == 8000

    def test_another_setting_makes_new_pods(self) -> None:
        """The checksum of the settings is in the pod's annotations."""
        marks = {
            one(render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
            for values in ({}, {"settings": {"log": {"level": "debug"}}})
        }
        assert len(marks) == 2

    def test_the_pod_has_longer_than_its_drain(self) -> None:
        """The server's delay and grace, and a margin, before it is killed."""
        spec = server({"settings": {"shutdown": {"delay_s": 12.5, "grace_s": 40}}, "terminationMarginSeconds": 5})
        assert spec["terminationGracePeriodSeconds"] == 13 + 40 + 5

    def test_both_listeners_speak_tls_where_there_is_a_certificate(self) -> None:
        """And the probes with them."""
        spec = server({"tls": {"secretName": "certificate"}})
        found = environment(spec["server"])

        assert found["FORWARDPASS_TLS__CERTIFICATE"] == found["FORWARDPASS_HTTP_TLS__CERTIFICATE"] == "/tls/tls.crt"
        assert spec["server"]["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
        assert {"name": "tls", "secret": {"secretName": "certificate", "defaultMode": 0o440}} in spec["volumes"]

    def test_a_remote_repository_is_polled_by_the_server(self) -> None:
        """No container copies it."""
        spec = server(CASES["models from far away"])
        found = environment(spec["server"])

        assert "initContainers" not in spec
        assert json.loads(found["FORWARDPASS_REPOSITORY__PATH"]) == ["s3://bucket/models"]
        assert found["FORWARDPASS_REPOSITORY__CONTROL_MODE"] == "poll"

    def test_what_is_downloaded_fits_in_its_volume(self) -> None:
        """The server keeps it there, and less than would have the pod evicted."""
        spec = server(CASES["models from far away"])
        found = environment(spec["server"])
        (volume,) = [each for each in spec["volumes"] if each["name"] == "cache"]
        (mount,) = [each for each in spec["server"]["volumeMounts"] if each["name"] == "cache"]

        assert volume["emptyDir"] == {"sizeLimit": "10Gi"}
        assert found["FORWARDPASS_REMOTE__CACHE_FOLDER"] == mount["mountPath"]
        assert int(found["FORWARDPASS_REMOTE__CACHE_MAX_BYTES"]) == 7.5 * 2**30


class TestPods:
    """What every pod is held to."""

    @pytest.mark.parametrize("case", ["the defaults", "Envoy in front"])
    def test_no_container_may_more_than_it_needs(self, case: str) -> None:
        """No root, no writable image, no capability, no token of the cluster's API."""
        for deployment in (each for each in render(CASES[case]) if each["kind"] == "Deployment"):
            spec = deployment["spec"]["template"]["spec"]
            assert spec["automountServiceAccountToken"] is False
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in spec["containers"] + spec.get("initContainers", []):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert container["resources"]["limits"]

    def test_liveness_asks_less_than_readiness(self) -> None:
        """A model that fails makes no pod be killed; a cold start has its own, longer time."""
        container = server()["server"]
        assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
        assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] == 300
        assert startup["httpGet"]["path"] == "/v2/health/ready"

    @pytest.mark.parametrize("case", ["Tritons of its own", "a Triton in each pod", "Tritons that are there"])
    def test_a_server_is_not_restarted_for_the_start_of_a_triton(self, case: str) -> None:
        """It takes what it takes, and may be scaled to zero."""
        container = server(CASES[case])["server"]
        assert container["startupProbe"]["httpGet"]["path"] == "/v2/health/live"
        assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"

    def test_pull_secrets_and_priority_are_every_pods(self) -> None:
        """Of Envoys and Tritons too, whose images may lie in the same registry."""
        values = {"imagePullSecrets": [{"name": "registry"}], "priorityClassName": "high"}
        documents = render(CASES["Tritons of its own"] | {"grpcBalancing": {"kind": "envoy"}} | values)
        pods = [each["spec"]["template"]["spec"] for each in documents if each["kind"] == "Deployment"]
        assert len(pods) == 3
        assert all(pod.items() >= values.items() for pod in pods)

    def test_tritons_and_envoys_may_have_places_of_their_own(self) -> None:
        """GPUs are theirs who use them: no server and no Envoy is put on their nodes for what a Triton needs."""
        documents = render(CASES["pods of each kind in their own places"])
        test = one(documents, "Pod", "r-forwardpass-test")["spec"]
        pods = {
            each["metadata"]["name"]: each["spec"]["template"]["spec"]
            for each in documents
            if each["kind"] == "Deployment"
        }
        keys = ("nodeSelector", "tolerations", "runtimeClassName", "priorityClassName")
        fast = {"nodeSelector": {"disk": "fast"}}
        found = {name: {key: pod[key] for key in keys if key in pod} for name, pod in {**pods, "test": test}.items()}
        assert found == {
            "r-forwardpass": {**fast, "priorityClassName": "high"},
            "r-forwardpass-envoy": {**fast, "priorityClassName": "higher"},
            "r-forwardpass-triton": {
                "nodeSelector": {"gpu": "yes"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                "runtimeClassName": "nvidia",
            },
            "test": {**fast, "priorityClassName": "high"},
        }

    @pytest.mark.parametrize(
        ("values", "limits"),
        [
            ({}, {"cpu": "2", "memory": "1Gi"}),
            ({"resourcesPreset": "gpu"}, {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}),
            (
                {"gpu": {"resource": "nvidia.com/gpu.shared", "count": 2}},
                {"cpu": "2", "memory": "1Gi", "nvidia.com/gpu.shared": "2"},
            ),
        ],
        ids=["a preset", "a GPU", "slices of GPUs"],
    )
    def test_requests_are_limits(self, values: Values, limits: dict[str, str]) -> None:
        """A server that is throttled misses its deadlines."""
        assert server(values)["server"]["resources"] == {"requests": limits, "limits": limits}

    def test_resources_of_the_values_are_taken_as_they_are(self) -> None:
        """Instead of the preset."""
        assert server({"resources": {"limits": {"cpu": "9"}}})["server"]["resources"] == {"limits": {"cpu": "9"}}

    def test_an_image_is_named_by_its_digest_where_there_is_one(self) -> None:
        """Instead of the tag."""
        digest = "sha256:" + "a" * 64
        assert server({"image": {"digest": digest, "tag": "x"}})["server"]["image"] == f"forwardpass/server@{digest}"

    def test_the_images_that_are_built_are_those_that_are_pulled(self) -> None:
        """By the commands with which the README begins."""
        text = (ROOT / "helm" / "README.md").read_text().partition("helm test")[0]
        built = set(re.findall(r"docker build .*?-t (\S+)", text))
        assert built == set(re.findall(r"docker push (\S+)", text))
        values: Values = {}
        for path, value in re.findall(r"--set ([\w.]+)=(\S+)", text):
            *sections, name = path.split(".")
            place = values
            for section in sections:
                place = place.setdefault(section, {})
            place[name] = value
        spec = one(render(values, name="predict"), "Deployment", "predict-forwardpass")["spec"]["template"]["spec"]
        assert {each["image"] for each in spec["initContainers"] + spec["containers"]} == built


class TestTriton:
    """Three places for the Tritons behind the server."""

    @pytest.mark.parametrize(
        ("case", "url"),
        [
            ("Tritons of its own", "dns:///r-forwardpass-triton.ns.svc:8001"),
            ("a Triton in each pod", "grpc://127.0.0.1:9001"),
            ("Tritons that are there", "grpc://a:8001"),
        ],
    )
    def test_the_server_is_told_where_they_are(self, case: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """By its own settings, which it reads."""
        for name, value in environment(server(CASES[case])["server"]).items():
            monkeypatch.setenv(name, value)
        settings = load_settings()
        assert settings.engine.kind == "triton"
        assert settings.triton.url == url

    @pytest.mark.parametrize("case", ["Tritons of its own", "a Triton in each pod"])
    def test_they_are_scraped_apart_from_the_servers(self, case: str) -> None:
        """Their metrics have the same names; a monitor is a job."""
        documents = render(CASES[case] | {"metrics": {"podMonitor": {"enabled": True}}})
        ports = {
            each["metadata"]["name"]: [endpoint["port"] for endpoint in each["spec"]["podMetricsEndpoints"]]
            for each in documents
            if each["kind"] == "PodMonitor"
        }
        assert ports == {"r-forwardpass": ["metrics"], "r-forwardpass-triton": ["triton-metrics"]}

    @pytest.mark.parametrize(
        ("address", "more"), [("10.0.0.1", []), ("fd00::1", ["--http-address=ipv6:::", "--grpc-address=[::]"])]
    )
    def test_a_triton_listens_on_the_address_that_is_asked(self, address: str, more: list[str], tmp_path: Path) -> None:
        """Its shell for real: by itself a Triton listens on IPv4 alone. Flags of the values come last, and win."""
        (container,) = one(render(CASES["Tritons of its own"]), "Deployment", "r-forwardpass-triton")["spec"][
            "template"
        ]["spec"]["containers"]
        assert container["env"] == [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
        triton = tmp_path / "tritonserver"
        triton.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        triton.chmod(0o755)
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "POD_IP": address}
        done = subprocess.run(container["command"] + container["args"], env=path, capture_output=True, text=True)
        assert done.stdout.split() == [*more, *container["args"]]

    @pytest.mark.parametrize(
        ("case", "name"),
        [
            ("Tritons that keep what they built", "r-forwardpass-triton"),
            ("a Triton in each pod that keeps what it built", "r-forwardpass"),
        ],
    )
    def test_a_triton_has_volumes_of_its_own(self, case: str, name: str) -> None:
        """Not the server's: for engines that take minutes to build, by the kind of GPU. And it may go before the next
        one comes, where there is no GPU for both."""
        deployment = one(render(CASES[case]), "Deployment", name)["spec"]
        spec = deployment["template"]["spec"]
        (triton,) = [each for each in spec["containers"] if each["name"] == "triton"]
        assert ENGINES["extraVolumes"][0] in spec["volumes"]
        assert ENGINES["extraVolumeMounts"][0] in triton["volumeMounts"]
        assert ENGINES["extraEnv"][0] in triton["env"]
        for other in (each for each in spec["containers"] if each is not triton):
            assert ENGINES["extraVolumeMounts"][0] not in other["volumeMounts"]
        surge = {"maxSurge": 1, "maxUnavailable": 0} if name == "r-forwardpass" else ENGINES["updateStrategy"]
        assert deployment["strategy"]["rollingUpdate"] == surge

    def test_a_service_monitor_takes_none_of_them_for_a_server(self) -> None:
        """Their Service has a port of metrics as well."""
        documents = render(CASES["Tritons of its own"] | {"metrics": {"serviceMonitor": {"enabled": True}}})
        chosen = one(documents, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
        services = [each["metadata"] for each in documents if each["kind"] == "Service"]
        assert [each["name"] for each in services if chosen <= each["labels"].items()] == ["r-forwardpass-headless"]

    def test_those_of_the_chart_are_reached_one_by_one(self) -> None:
        """A headless Service over the Deployment's pods, also over those that are not ready."""
        documents = render(CASES["Tritons of its own"])
        service = one(documents, "Service", "r-forwardpass-triton")["spec"]
        deployment = one(documents, "Deployment", "r-forwardpass-triton")["spec"]
        assert service["clusterIP"] == "None"
        assert service["publishNotReadyAddresses"] is True
        assert service["selector"].items() <= deployment["template"]["metadata"]["labels"].items()
        assert deployment["replicas"] == 3
        (container,) = deployment["template"]["spec"]["containers"]
        assert container["args"][-1] == "--log-verbose=1"

    @pytest.mark.parametrize("name", ["r-forwardpass", "r-forwardpass-triton"])
    def test_both_fetch_what_is_far_away(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the server's own program, into the folder that both read; the command line is one that it takes."""
        spec = one(render(CASES["models from far away, for Tritons"]), "Deployment", name)["spec"]["template"]["spec"]
        (fetching,) = spec["initContainers"]
        assert {"name": "models", "mountPath": "/models"} in fetching["volumeMounts"]
        assert {"name": "models", "mountPath": "/models", "readOnly": True} in spec["containers"][0]["volumeMounts"]
        assert {"name": "models", "emptyDir": {"sizeLimit": "10Gi"}} in spec["volumes"]
        assert fetching["envFrom"] == [{"secretRef": {"name": "credentials"}}]
        asked: list[Any] = []

        def fetch(*given: Any) -> list[str]:
            asked.append(given)
            return ["digits"]

        monkeypatch.setattr("server.repository.fetching.fetch", fetch)
        told = {**environment(fetching), "FORWARDPASS_HOST": "0.0.0.0"}  # noqa: S104 - as the image has it
        done = CliRunner().invoke(create_app(), fetching["args"], env=told)
        assert (done.exit_code, done.output) == (0, "digits\n")
        ((places, to, settings),) = asked
        assert (places, to, settings.downloads) == (["s3://bucket/models", "gs://other"], Path("/models"), 4)
        assert told["AWS_REGION"] == "x"

    def test_a_sidecar_shares_memory_and_models_with_the_server(self) -> None:
        """One /dev/shm, one /models, and no port of the server's."""
        spec = server(CASES["a Triton in each pod"])
        triton = next(each for each in spec["containers"] if each["name"] == "triton")
        for path in ("/dev/shm", "/models"):  # noqa: S108 - of the pod
            (mine,) = [m["name"] for m in spec["server"]["volumeMounts"] if m["mountPath"] == path]
            (its,) = [m["name"] for m in triton["volumeMounts"] if m["mountPath"] == path]
            assert mine == its
        ports = [port["containerPort"] for each in spec["containers"] for port in each["ports"]]
        assert len(ports) == len(set(ports))

    def test_a_sidecar_is_not_told_to_end_before_its_server_has(self) -> None:
        """Both get SIGTERM at once; the server has answers to give until its last listener, of metrics, is closed."""
        spec = server(CASES["a Triton in each pod"])
        (triton,) = [each for each in spec["containers"] if each["name"] == "triton"]
        (metrics,) = [port["containerPort"] for port in spec["server"]["ports"] if port["name"] == "metrics"]
        *bash, script = triton["lifecycle"]["preStop"]["exec"]["command"]
        assert f"/127.0.0.1/{metrics})" in script
        with socket.create_server(("127.0.0.1", 0)) as listener:
            there = script.replace(str(metrics), str(listener.getsockname()[1]))
            waiting = subprocess.Popen([*bash, there])
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(0.5)
        assert waiting.wait(30) == 0
        (alone,) = one(render(CASES["Tritons of its own"]), "Deployment", "r-forwardpass-triton")["spec"]["template"][
            "spec"
        ]["containers"]
        assert "lifecycle" not in alone


class TestScaling:
    """Who has the count of pods."""

    @pytest.mark.parametrize(("kind", "written"), [("none", True), ("hpa", False), ("keda", False)])
    def test_an_autoscalers_count_is_never_reset(self, kind: str, written: bool) -> None:
        """With one, the Deployment names no count."""
        deployment = one(render({"autoscaling": {"kind": kind}}), "Deployment")
        assert ("replicas" in deployment["spec"]) is written

    def test_the_hpa_goes_by_the_hottest_model_and_comes_down_slowly(self) -> None:
        """Saturation of each pod, a CPU guard where asked for, five minutes before a pod leaves."""
        spec = one(render(CASES["an HPA"]), "HorizontalPodAutoscaler")["spec"]
        assert [each["type"] for each in spec["metrics"]] == ["Pods", "Resource"]
        assert spec["metrics"][0]["pods"]["metric"]["name"] == "forwardpass_saturation"
        assert spec["metrics"][0]["pods"]["target"] == {"type": "AverageValue", "averageValue": "0.7"}
        assert spec["behavior"]["scaleUp"]["stabilizationWindowSeconds"] == 0
        assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300

    def test_keda_asks_prometheus_for_the_same(self) -> None:
        """The pods' saturations together, over what one pod is to have; a fallback if Prometheus is gone."""
        spec = one(render(CASES["KEDA, to zero"]), "ScaledObject")["spec"]
        (trigger,) = spec["triggers"]
        assert spec["minReplicaCount"] == 0
        assert spec["fallback"] == {"failureThreshold": 3, "replicas": 4}
        assert trigger["metadata"]["query"] == (
            "max(sum by (model, version) (max by (pod, model, version) "
            '(forwardpass_saturation{namespace="ns",pod=~"r-forwardpass-[a-z0-9]+(-[a-z0-9]+)?"})))'
        )
        assert trigger["metadata"]["threshold"] == "0.7"

    @pytest.mark.parametrize(
        ("case", "idle", "least", "more"),
        [
            ("KEDA, to zero", None, 0, {}),
            ("KEDA, to zero while idle", 0, 2, {"authModes": "bearer"}),
            ("KEDA, never to zero", None, 2, {"ignoreNullValues": "false"}),
        ],
    )
    def test_where_there_is_always_a_pod_silence_is_no_idleness(
        self, case: str, idle: int | None, least: int, more: dict[str, str]
    ) -> None:
        """Nothing scraped is an error then, after which KEDA keeps its fallback; to zero it is to be expected."""
        spec = one(render(CASES.get(case, {"autoscaling": {"kind": "keda"}})), "ScaledObject")["spec"]
        assert (spec.get("idleReplicaCount"), spec["minReplicaCount"]) == (idle, least)
        said = spec["triggers"][0]["metadata"]
        assert {key: said[key] for key in ("authModes", "ignoreNullValues") if key in said} == more
        waking = [each["metadata"] for each in spec["triggers"][1:]]
        assert [each.get("authModes") for each in waking] == (["bearer"] if idle == 0 else [])

    def test_envoy_wakes_the_first_pod(self) -> None:
        """By the calls that it finds no pod for, which it is scraped for; more pods are the saturation's to ask for."""
        documents = render(CASES["KEDA, to zero behind Envoy"])
        _, first, more = one(documents, "ScaledObject")["spec"]["triggers"]
        assert "envoy_cluster_upstream_cx_none_healthy" in first["metadata"]["query"]
        assert float(first["metadata"]["threshold"]) > 1000
        assert more["type"] == "cron"
        monitor = one(documents, "PodMonitor", "r-forwardpass-envoy")["spec"]
        assert monitor["podMetricsEndpoints"][0]["path"] == "/stats/prometheus"

    def test_keda_asks_the_server_which_asks_its_pods(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the external scaler, served, by all pods' metrics, which the network policy lets them see."""
        values = CASES["KEDA asks the server"]
        documents = render(values)
        (trigger,) = one(documents, "ScaledObject")["spec"]["triggers"]
        assert trigger["type"] == "external"
        assert trigger["metadata"] == {
            "scalerAddress": "r-forwardpass.ns.svc:8001",
            "enableTLS": "true",
            "scales": "replicas",
            "targetSaturation": "0.7",
            "activationSaturation": "0.01",
        }
        for name, value in environment(server(values)["server"]).items():
            monkeypatch.setenv(name, value)
        settings = load_settings().scaling
        assert settings.external_scaler
        assert settings.peers == "r-forwardpass-headless.ns.svc:8002"
        policy = one(documents, "NetworkPolicy")["spec"]
        own = {"podSelector": {"matchLabels": policy["podSelector"]["matchLabels"]}}
        assert {"from": [own]} in policy["ingress"]
        assert {"to": [own]} in policy["egress"]

    def test_the_charts_tritons_are_scaled_by_what_the_servers_tell_of_them(self) -> None:
        """The servers' count is the values', the Tritons' is KEDA's."""
        documents = render(CASES["KEDA asks the servers how busy the Tritons are"])
        spec = one(documents, "ScaledObject")["spec"]
        assert spec["scaleTargetRef"]["name"] == "r-forwardpass-triton"
        assert spec["triggers"][0]["metadata"]["scales"] == "tritons"
        assert one(documents, "Deployment", "r-forwardpass")["spec"]["replicas"] == 2
        assert "replicas" not in one(documents, "Deployment", "r-forwardpass-triton")["spec"]

    def test_envoy_wakes_the_first_triton(self) -> None:
        """Servers without one are not ready, so that its calls find nobody; how many there are is the saturation's."""
        documents = render(CASES["KEDA scales Tritons to zero"])
        spec = one(documents, "ScaledObject")["spec"]
        busy, nobody = (each["metadata"]["query"] for each in spec["triggers"])
        assert spec["scaleTargetRef"]["name"] == "r-forwardpass-triton"
        assert "forwardpass_triton_up" in busy
        assert "envoy_cluster_upstream_cx_none_healthy" in nobody

    def test_the_adapters_rule_is_the_file_that_promtool_sees(self) -> None:
        """As a ConfigMap with the key that prometheus-adapter's chart reads."""
        config = one(render(CASES["an HPA with the adapter's rule"]), "ConfigMap", "r-forwardpass-adapter")
        assert config["metadata"]["namespace"] == "monitoring"
        assert yaml.safe_load(config["data"]["config.yaml"]) == yaml.safe_load(
            (CHART / "rules/adapter.yaml").read_text()
        )

    def test_a_stated_peak_says_how_many_pods_there_are(self) -> None:
        """9 full ones at 0.7 are 13; an autoscaler must be allowed as many."""
        values = CASES["as many pods as a peak takes"]
        assert one(render(values), "Deployment")["spec"]["replicas"] == 13
        assert one(render(values | {"replicas": 20}), "Deployment")["spec"]["replicas"] == 20
        with pytest.raises(Refused, match="takes 13 pods"):
            render(values | {"autoscaling": {"kind": "hpa", "maxReplicas": 12}})

    @pytest.mark.parametrize(
        ("values", "of"),
        [
            ({}, ["server"]),
            ({"replicas": 1}, []),
            ({"replicas": 1, "autoscaling": {"kind": "hpa"}}, ["server"]),
            ({"replicas": 1, "capacity": CASES["as many pods as a peak takes"]["capacity"]}, ["server"]),
            (CASES["Tritons of its own"] | {"grpcBalancing": {"kind": "envoy"}}, ["envoy", "server", "triton"]),
            (
                CASES["KEDA asks the servers how busy the Tritons are"] | {"replicas": 1, "triton": {"replicas": 1}},
                ["triton"],
            ),
            ({"podDisruptionBudget": {"maxUnavailable": ""}}, []),
        ],
        ids=["two pods", "one pod", "an autoscaler", "a peak", "Envoys and Tritons", "Tritons by KEDA", "not wanted"],
    )
    def test_a_disruption_budget_is_for_more_than_one_pod(self, values: Values, of: list[str]) -> None:
        """Of each Deployment; with one pod it would keep a node from ever being drained."""
        budgets = [each["spec"] for each in render(values) if each["kind"] == "PodDisruptionBudget"]
        component = "app.kubernetes.io/component"
        assert [each["selector"]["matchLabels"][component] for each in budgets] == of
        assert all(each["maxUnavailable"] == 1 for each in budgets)


class TestWaysIn:
    """Services, routes, and who may use them."""

    def test_dashboards_are_found_by_their_label(self) -> None:
        """Each is a ConfigMap of its own, with the objectives of the values in the place of the file's."""
        objectives = {"availability": 0.95, "latencySeconds": 0.25}
        values = {"metrics": {"dashboards": {"enabled": True}, "prometheusRule": objectives}}
        found = [
            each for each in render(values) if each["kind"] == "ConfigMap" and "dashboard" in each["metadata"]["name"]
        ]
        assert len(found) == len(list((CHART / "dashboards").iterdir()))
        assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in found)
        texts = {name: text for each in found for name, text in each["data"].items()}
        slo = json.loads(texts["forwardpass-slo.json"])
        assert next(v for v in slo["templating"]["list"] if v["name"] == "objective")["query"] == "0.25"
        assert "(1 - 0.95)" in texts["forwardpass-slo.json"]
        assert len(json.loads(texts["forwardpass-time.json"])["panels"]) == 10

    def test_each_pod_can_be_reached_by_itself(self) -> None:
        """The headless Service, for clients that balance."""
        assert one(render(), "Service", "r-forwardpass-headless")["spec"]["clusterIP"] == "None"

    def test_metrics_are_for_the_inside_of_the_cluster(self) -> None:
        """A load balancer has REST and gRPC alone; the monitor finds each pod's metrics once."""
        documents = render(CASES["load balancers"])
        services = [each for each in documents if each["kind"] == "Service"]
        ports = {each["metadata"]["name"]: [port["name"] for port in each["spec"]["ports"]] for each in services}
        assert ports == {
            "r-forwardpass": ["http", "grpc"],
            "r-forwardpass-headless": ["http", "grpc", "metrics"],
            "r-forwardpass-envoy": ["grpc"],
        }
        monitor = one(documents, "ServiceMonitor")["spec"]
        found = [
            each["metadata"]["name"]
            for each in services
            if monitor["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
            and monitor["endpoints"][0]["port"] in ports[each["metadata"]["name"]]
        ]
        assert found == ["r-forwardpass-headless"]
        assert [port["name"] for port in one(render(), "Service")["spec"]["ports"]] == ["http", "grpc"]

    def test_what_makes_a_load_balancer_internal_is_said_of_each(self) -> None:
        """Envoy's is one as well."""
        documents = render(CASES["load balancers"])
        for name in ("r-forwardpass", "r-forwardpass-envoy"):
            service = one(documents, "Service", name)
            assert service["metadata"]["annotations"] == {"example.com/internal": "true"}
            assert (
                service["spec"].items()
                >= {
                    "type": "LoadBalancer",
                    "externalTrafficPolicy": "Local",
                    "loadBalancerClass": "example.com/lb",
                    "loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/8"],
                }.items()
            )
        headless = one(documents, "Service", "r-forwardpass-headless")
        assert headless["spec"]["type"] == "ClusterIP"
        assert "annotations" not in headless["metadata"]
        assert headless["spec"].keys() == {"type", "clusterIP", "selector", "ports"}

    def test_every_service_has_the_families_that_are_told(self) -> None:
        """Whichever they are, pods listen on all of their addresses; on a kernel without IPv6 Envoy must be told."""
        services = [each["spec"] for each in render(CASES["a dual-stack cluster"]) if each["kind"] == "Service"]
        assert len(services) == 4
        for spec in services:
            assert (spec["ipFamilyPolicy"], spec["ipFamilies"]) == ("RequireDualStack", ["IPv6", "IPv4"])
        everywhere = {"the defaults": "::", "a dual-stack cluster": "::", "a cluster of IPv4 alone": "0.0.0.0"}  # noqa: S104
        for case, address in everywhere.items():
            told = environment(server(CASES[case])["server"])
            assert told["FORWARDPASS_HOST"] == told["FORWARDPASS_METRICS__HOST"] == address
        for case, listening in (
            ("a dual-stack cluster", {"address": "::", "ipv4_compat": True}),
            ("a cluster of IPv4 alone", {"address": "0.0.0.0"}),  # noqa: S104
        ):
            text = one(render(CASES[case]), "ConfigMap", "r-forwardpass-envoy")["data"]["envoy.yaml"]
            for listener in yaml.safe_load(text)["static_resources"]["listeners"]:
                assert listener["address"]["socket_address"].items() >= listening.items()

    def test_who_comes_from_outside_is_let_in_by_a_word_or_with_a_key(self) -> None:
        """Inside of the cluster everybody may ask, as the values say; with keys nobody else."""
        for case, insecure in (
            ("the defaults", "true"),
            ("load balancers", "true"),
            ("ports of nodes, for callers with keys", None),
        ):
            assert environment(server(CASES[case])["server"]).get("FORWARDPASS_AUTH__INSECURE") == insecure

    @pytest.mark.parametrize(("cpu", "threads"), [("500m", "1"), ("2500m", "3"), (4, "4"), (None, "")])
    def test_envoy_has_as_many_threads_as_cores(self, cpu: Any, threads: str) -> None:
        """Those that it may use, not those of the node; without a limit all."""
        resources = {"limits": {"cpu": cpu}}
        documents = render({"grpcBalancing": {"kind": "envoy", "envoy": {"resources": resources}}})
        pod = one(documents, "Deployment", "r-forwardpass-envoy")["spec"]["template"]["spec"]
        arguments = pod["containers"][0]["args"]
        assert arguments[4:] == (["--concurrency", threads] if threads else [])

    def test_a_certificate_is_for_every_name_that_callers_use(self) -> None:
        """Of the Services; and Envoy shows it to the servers, as a client's."""
        names = {"": "r-forwardpass", ", behind Envoy": "r-forwardpass-envoy"}
        for more, name in names.items():
            spec = one(render(CASES[f"a certificate of cert-manager{more}"]), "Certificate")["spec"]
            assert {f"{name}.ns.svc", "r-forwardpass.ns.svc", "r-forwardpass-headless.ns.svc"} <= set(spec["dnsNames"])
            assert ("client auth" in spec["usages"]) is bool(more)
            assert "server auth" in spec["usages"]

    def test_routes_part_the_requests_with_a_second_release(self) -> None:
        """By weight, REST and gRPC."""
        documents = render(CASES["routes of a Gateway"])
        for kind, name, port in (("HTTPRoute", "http", 8000), ("GRPCRoute", "grpc", 8001)):
            (rule,) = one(documents, kind, f"r-forwardpass-{name}")["spec"]["rules"]
            assert rule["backendRefs"] == [
                {"name": "r-forwardpass", "port": port, "weight": 90},
                {"name": "next", "port": port, "weight": 10},
            ]

    def test_the_route_of_grpc_may_have_names_of_its_own(self) -> None:
        """Instead of another listener; or one route is all that is wanted."""
        names = {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["rest.example"]}
        documents = render({"gateway": names | {"grpc": {"hostnames": ["grpc.example"]}}, "settings": OPEN})
        for kind, name in (("HTTPRoute", "http"), ("GRPCRoute", "grpc")):
            spec = one(documents, kind, f"r-forwardpass-{name}")["spec"]
            assert spec["hostnames"] == [f"{'rest' if name == 'http' else name}.example"]
            assert spec["parentRefs"] == [{"name": "public"}]
        found = kinds(render({"gateway": names | {"routes": ["grpc"]}, "settings": OPEN}))
        assert "GRPCRoute" in found
        assert "HTTPRoute" not in found

    def test_a_policy_lets_in_those_it_names(self) -> None:
        """And the pods out to names and to each other only, where nothing more is said."""
        spec = one(render(CASES["a network policy"]), "NetworkPolicy")["spec"]
        own = {"podSelector": spec["podSelector"]}
        assert spec["ingress"] == [
            {"from": [own]},
            {"ports": [{"port": "http"}, {"port": "grpc"}], "from": [{"podSelector": {}}]},
            {"ports": [{"port": "metrics"}]},
        ]
        assert spec["egress"] == [
            {"to": [own]},
            {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
        ]

    def test_a_policys_ports_are_those_of_the_pods(self) -> None:
        """Of whoever is scraped; Envoy's admin page, which can end it, and Triton's own ports are nobody's."""
        documents = render(CASES["a network policy around Envoy and Tritons"])
        spec = one(documents, "NetworkPolicy")["spec"]
        ports = {
            port["name"]: port["containerPort"]
            for each in documents
            if each["kind"] == "Deployment"
            for container in each["spec"]["template"]["spec"]["containers"]
            for port in container["ports"]
        }
        assert [port["port"] for port in spec["ingress"][2]["ports"]] == ["metrics", "triton-metrics", "stats"]
        assert {port["port"] for rule in spec["ingress"][1:] for port in rule["ports"]} == ports.keys() - {
            "triton-http",
            "triton-grpc",
        }
        envoy = yaml.safe_load(one(documents, "ConfigMap", "r-forwardpass-envoy")["data"]["envoy.yaml"])
        assert envoy["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"

    def test_helm_test_shows_a_key_of_a_secret(self) -> None:
        """And asks the model that it was told."""
        (container,) = one(render(CASES["`helm test` with a key"]), "Pod", "r-forwardpass-test")["spec"]["containers"]
        *_, model, body, key = container["env"]
        assert [model["value"], body["value"]] == ["digits", ""]
        assert key == {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "helm"}}}


REFUSED: dict[str, tuple[Values, str]] = {
    "a load balancer for everybody": (
        {"service": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8"]}},
        "settings.auth.insecure: service.type LoadBalancer: whoever",
    ),
    "ports of nodes for everybody": (
        {"service": {"type": "NodePort"}},
        "settings.auth.insecure: service.type NodePort",
    ),
    "an Ingress and a Gateway for everybody": (
        {"ingress": {"enabled": True, "hosts": [{"host": "a.example"}]}, "gateway": GATEWAY},
        "settings.auth.insecure: ingress.enabled, gateway.enabled: whoever",
    ),
    "a rolling update of no pod": ({"updateStrategy": {"maxSurge": 0}}, "updateStrategy: maxSurge and maxUnavailable"),
    "a rolling update of no Triton": (
        {"engine": "triton", "triton": {"updateStrategy": {"maxSurge": 0}}},
        "triton.updateStrategy: maxSurge and maxUnavailable",
    ),
    "an Ingress of no host": ({"ingress": {"enabled": True}, "settings": OPEN}, "ingress.hosts"),
    "one port for two": ({"service": {"httpPort": 8001}}, "service.grpcPort"),
    "a name that no Service may have": ({"fullnameOverride": "9lives"}, "fullnameOverride"),
    "a GPU that would be left out": ({"resources": {"limits": {"cpu": 4}}, "gpu": {"count": 1}}, "gpu.count"),
    "a part of no requests": (
        CASES["an HPA"] | {"resourcesPreset": "none"},
        "autoscaling.targetCPUUtilizationPercentage",
    ),
    "the chart's own label": (
        {"podLabels": {"app.kubernetes.io/component": "x"}},
        "podLabels: app.kubernetes.io/component",
    ),
    "a monitor's own label": (
        {"metrics": {"serviceMonitor": {"labels": {"app.kubernetes.io/name": "x"}}}},
        "metrics.serviceMonitor.labels: app.kubernetes.io/name",
    ),
    "a label that is none": ({"commonLabels": {"team": "ours, theirs"}}, "commonLabels.team"),
    "a variable that is written twice": (
        {"extraEnv": [{"name": "FORWARDPASS_HOST", "value": "x"}]},
        "FORWARDPASS_HOST",
    ),
    "a probe of another field": ({"probes": {"liveness": {"perodSeconds": 3}}}, "perodSeconds"),
    "a window of more than an hour": (
        {"autoscaling": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 9999}}}},
        "stabilizationWindowSeconds",
    ),
    "resources of another field": ({"resources": {"limit": {"cpu": 3}}}, "limit"),
    "an amount that is none": ({"resources": {"limits": {"memory": "4 GB"}}}, "memory"),
    "a secret that can't be": ({"tls": {"secretName": "Our_Certificate"}}, "tls.secretName"),
    "an image with a tag in its name": ({"image": {"repository": "registry/forwardpass:1"}}, "image.repository"),
    "scraped all the time": ({"metrics": {"podMonitor": {"interval": "0s"}}}, "interval"),
    "a Prometheus of no scheme": (
        {"autoscaling": {"keda": {"prometheusAddress": "prometheus:9090"}}},
        "prometheusAddress",
    ),
    "a budget that allows and forbids": (
        {"podDisruptionBudget": {"minAvailable": 0}},
        "podDisruptionBudget: minAvailable or maxUnavailable",
    ),
    "nobody may ask": ({"settings": {"auth": {"insecure": False}}}, "nobody could show who he is"),
    "callers of a load balancer that is none": (
        {"service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}},
        "service.loadBalancerSourceRanges: needs service.type LoadBalancer",
    ),
    "a range that is none": (
        {"service": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.1"]}},
        "loadBalancerSourceRanges",
    ),
    "callers from outside of a ClusterIP": (
        {"service": {"externalTrafficPolicy": "Local"}},
        "service.externalTrafficPolicy",
    ),
    "two families of a single stack": (
        {"service": {"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"}},
        "service.ipFamilies",
    ),
    "an unknown value": ({"replica": 2}, "replica"),
    "an unknown setting": ({"settings": {"grpc": {"max_pings": 1}}}, "max_pings"),
    "a setting out of range": ({"settings": {"grpc": {"max_connections": 0}}}, "settings.grpc.max_connections"),
    "a port of the pod": ({"settings": {"http": {"port": 80}}}, "settings.http.port"),
    "an address of the pod": ({"settings": {"host": "127.0.0.1"}}, "settings.host"),
    "an engine past the chart": ({"settings": {"engine": {"kind": "triton"}}}, "settings.engine.kind"),
    "a certificate past the chart": (
        {"settings": {"http_tls": {"certificate": "/c", "key": "/k"}}},
        "settings.http_tls",
    ),
    "a scaler past the chart": (
        CASES["KEDA asks the server"] | {"settings": {"scaling": {"external_scaler": False}}},
        "settings.scaling.external_scaler",
    ),
    "a repository past the chart": ({"settings": {"repository": {"path": ["/mine"]}}}, "settings.repository.path"),
    "Tritons past the chart": (
        {"engine": "triton", "settings": {"triton": {"url": "grpc://a:8001"}}},
        "settings.triton.url",
    ),
    "no pod": ({"replicas": 0}, "replicas"),
    "an unknown kind of scaling": ({"autoscaling": {"kind": "cpu"}}, "autoscaling.kind"),
    "more pods than at most": ({"autoscaling": {"kind": "hpa", "minReplicas": 20}}, "autoscaling.minReplicas"),
    "an HPA to zero": ({"autoscaling": {"kind": "hpa", "minReplicas": 0}}, "keda"),
    "certificates of callers without TLS": (
        {"grpcBalancing": {"kind": "envoy", "envoy": {"requireClientCertificates": True}}},
        "grpcBalancing.envoy.requireClientCertificates",
    ),
    "a peak of an unknown kind": ({"capacity": {"peak": {"a": 1}}}, "capacity.peak"),
    "an HPA of Tritons": ({"engine": "triton", "autoscaling": {"kind": "hpa"}}, "use keda"),
    "more servers in front of the same Tritons": (
        CASES["Tritons that are there"] | {"autoscaling": {"kind": "keda"}},
        "autoscaling.kind",
    ),
    "nobody to be asked": (
        {"autoscaling": {"kind": "keda", "minReplicas": 0, "keda": {"trigger": "external"}}},
        "autoscaling.keda.trigger",
    ),
    "nobody to be asked of Tritons": (
        {"engine": "triton", "autoscaling": {"kind": "keda", "minReplicas": 0, "keda": {"trigger": "external"}}},
        "autoscaling.keda.trigger",
    ),
    "nobody to wake a Triton": (
        {"engine": "triton", "autoscaling": {"kind": "keda", "minReplicas": 0}},
        "grpcBalancing.kind envoy",
    ),
    "nobody to be asked while idle": (
        {"autoscaling": {"kind": "keda", "keda": {"trigger": "external", "idleToZero": True}}},
        "autoscaling.keda.trigger",
    ),
    "nobody to wake a Triton that is idle": (
        {"engine": "triton", "autoscaling": {"kind": "keda", "keda": {"idleToZero": True}}},
        "grpcBalancing.kind envoy",
    ),
    "to zero twice": (
        {"autoscaling": {"kind": "keda", "minReplicas": 0, "keda": {"idleToZero": True}}},
        "autoscaling.keda.idleToZero",
    ),
    "pods that show each other no token": (
        CASES["KEDA asks the server"] | {"settings": {"metrics": {"token_file": "/token"}}},
        "settings.metrics.token_file",
    ),
    "a GPU for a gateway": ({"engine": "triton", "resourcesPreset": "gpu"}, "triton.resources"),
    "an amount of no known unit": ({"modelRepository": {"remote": {"cacheSize": "10G"}}}, "cacheSize"),
    "a volume without its name": ({"modelRepository": {"kind": "pvc"}}, "modelRepository.pvc.existingClaim"),
    "no remote repository": ({"modelRepository": {"kind": "remote"}}, "modelRepository.remote.urls"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "image.digest"),
    "routes that a Gateway takes one of": (
        {"gateway": {"enabled": True, "parentRefs": [{"name": "a"}], "hostnames": ["a.example"]}} | {"settings": OPEN},
        "gateway.grpc",
    ),
    "an unknown route": ({"gateway": GATEWAY | {"routes": ["tcp"]}}, "gateway.routes"),
    "probes without a certificate": (
        {"settings": {"http_tls": {"client_ca": "/ca"}}},
        "settings.http_tls.client_ca",
    ),
    "nothing is scraped": (
        {"metrics": {"podMonitor": {"enabled": True}}, "settings": {"metrics": {"token_file": "/token"}}},
        "metrics.podMonitor.authorization",
    ),
    "a policy that keeps models away": (
        CASES["models from far away"] | {"networkPolicy": {"enabled": True}},
        "networkPolicy.egress",
    ),
    "a policy that keeps Tritons away": (
        CASES["Tritons that are there"] | {"networkPolicy": {"enabled": True}},
        "triton.placement external",
    ),
    "a test without a key": (
        {"test": {"model": "digits"}, "auth": {"keysSecret": "keys"}},
        "test.keySecret.name",
    ),
    "routes of no Gateway": ({"gateway": {"enabled": True}}, "gateway.parentRefs"),
    "a canary without a Service": ({"gateway": GATEWAY | {"canary": {"weight": 5}}}, "gateway.canary.serviceName"),
    "two certificates": ({"tls": {"secretName": "a", "certManager": CERT_MANAGER}}, "not both"),
    "a certificate of nobody": ({"tls": {"certManager": {"enabled": True}}}, "tls.certManager.issuerRef.name"),
    "Tritons of no address": ({"engine": "triton", "triton": {"placement": "external"}}, "triton.urls"),
    "two disruption budgets": ({"podDisruptionBudget": {"minAvailable": 1}}, "not both"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_value_that_is_wrong_is_named(case: str) -> None:
    """At render time, before anything is applied."""
    values, named = REFUSED[case]
    with pytest.raises(Refused, match=named):
        render(values)


@pytest.mark.parametrize("name", ["9lives", "our.app"])
def test_a_release_whose_services_no_cluster_would_take_is_refused(name: str) -> None:
    """Helm has such names, and Services have not."""
    with pytest.raises(Refused, match=f"fullnameOverride: the Services would be called {name}-forwardpass"):
        render(name=name)
    assert one(render({"fullnameOverride": "ours"}, name=name), "Service", "ours")


def test_every_value_of_the_chart_is_in_its_schema() -> None:
    """values.yaml alone would render without one: a key that the schema lacks is refused."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}


def test_keys_are_a_secret_that_is_mounted() -> None:
    """The server is told where they are; by default the chart says in so many words that everybody may ask."""
    documents = render(CASES["callers with keys"])
    pod = one(documents, "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["FORWARDPASS_AUTH__KEYS"] == "/keys"
    assert environment["FORWARDPASS_AUTH__INSECURE"] == "false"
    assert {"name": "keys", "mountPath": "/keys", "readOnly": True} in container["volumeMounts"]
    assert {"name": "keys", "secret": {"secretName": "keys"}} in pod["volumes"]
    [container] = one(render(), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert {"name": "FORWARDPASS_AUTH__INSECURE", "value": "true"} in container["env"]
