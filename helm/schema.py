"""The chart's values.schema.json: the shape of values.yaml, with the server's own settings below `settings`.

python helm/schema.py    write it; a test holds the committed file equal to what this gives
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from server.scheduler.histogram import DURATION_BOUNDS_NS
from server.settings import Settings

FILE = Path(__file__).parent / "forwardpass" / "values.schema.json"

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
LABEL: Schema = {"type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"}
LABELS: Schema = {"type": "object", "additionalProperties": LABEL}
PREFIX: Schema = {"type": "string", "pattern": "^([a-z]([-a-z0-9]*[a-z0-9])?)?$"}
"""Of objects' names, Services' among them."""
NAME: Schema = {"type": "string", "maxLength": 253, "pattern": "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"}
"""Of an object that is there."""
PATH: Schema = {"type": "string", "pattern": "^/"}
ANYTHING: Schema = {"type": "object"}
OBJECTS: Schema = {"type": "array", "items": ANYTHING}
LIST_OF_TEXTS: Schema = {"type": "array", "items": TEXT}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
PODS: Schema = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+%$"}]}
"""A number of pods, or a percentage."""
PODS_OR_NOTHING: Schema = {"anyOf": [*PODS["anyOf"], {"type": "string", "enum": [""]}]}
QUANTITY: Schema = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"},
        {"type": "null"},
    ]
}
"""Of a resource; null takes one away that is there by default."""
CIDR = "^[0-9A-Fa-f.:]+/[0-9]{1,3}$"
BYTES: Schema = {"type": "string", "pattern": "^[1-9][0-9]*(Ki|Mi|Gi|Ti)$"}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def whole(minimum: int, maximum: int | None = None) -> Schema:
    return {"type": "integer", "minimum": minimum} | ({} if maximum is None else {"maximum": maximum})


def number(above: float, maximum: float | None = None) -> Schema:
    return {"type": "number", "exclusiveMinimum": above} | ({} if maximum is None else {"maximum": maximum})


def section(**properties: Schema) -> Schema:
    """An object with these keys and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


RESOURCES: Schema = section(
    requests={"type": "object", "additionalProperties": QUANTITY},
    limits={"type": "object", "additionalProperties": QUANTITY},
    claims=OBJECTS,
)
PROBE: Schema = section(
    initialDelaySeconds=whole(0),
    periodSeconds=whole(1),
    timeoutSeconds=whole(1),
    failureThreshold=whole(1),
    successThreshold=whole(1),
    terminationGracePeriodSeconds=whole(1),
)
DIRECTION: Schema = section(
    stabilizationWindowSeconds=whole(0, 3600),
    selectPolicy=one_of("Max", "Min", "Disabled"),
    policies={
        "type": "array",
        "minItems": 1,
        "items": section(type=one_of("Pods", "Percent"), value=whole(1), periodSeconds=whole(1, 1800))
        | {"required": ["type", "value", "periodSeconds"]},
    },
    tolerance=QUANTITY,
)
SCHEDULING: dict[str, Schema] = {
    "nodeSelector": TEXTS,
    "tolerations": OBJECTS,
    "affinity": ANYTHING,
    "priorityClassName": NAME,
    "runtimeClassName": NAME,
    "topologySpreadConstraints": OBJECTS,
}
IMAGE: Schema = section(
    repository={
        "type": "string",
        "pattern": "^([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*$",
    },
    tag={"type": "string", "pattern": "^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"},
    digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
)


def image(**more: Schema) -> Schema:
    return section(**IMAGE["properties"], **more)


def monitor() -> Schema:
    return section(
        enabled=FLAG,
        interval={"type": "string", "pattern": "^[1-9][0-9]*(ms|s|m)$"},
        labels=LABELS,
        authorization=ANYTHING,
    )


def values() -> Schema:
    """Every key of values.yaml."""
    return section(
        **{"global": ANYTHING},  # Helm's own, which it merges into the values of every chart.
        nameOverride=PREFIX,
        fullnameOverride=PREFIX,
        image=image(pullPolicy=one_of("Always", "IfNotPresent", "Never")),
        imagePullSecrets=OBJECTS,
        replicas=whole(1),
        settings=settings(),
        engine=one_of("onnxruntime", "triton"),
        triton=section(
            placement=one_of("deployment", "sidecar", "external"),
            urls=LIST_OF_TEXTS,
            image=IMAGE,
            replicas=whole(1),
            resources=RESOURCES,
            shmSize=BYTES,
            flags=LIST_OF_TEXTS,
            extraEnv=OBJECTS,
            extraVolumes=OBJECTS,
            extraVolumeMounts=OBJECTS,
            updateStrategy=section(maxSurge=PODS, maxUnavailable=PODS),
            scheduling=section(**SCHEDULING),
        ),
        auth=section(keysSecret=NAME),
        extraEnv=OBJECTS,
        extraEnvFrom=OBJECTS,
        modelRepository=section(
            kind=one_of("image", "pvc", "remote"),
            image=image(path=PATH),
            pvc=section(existingClaim=NAME, subPath={"type": "string", "pattern": "^[^/]|^$"}),
            remote=section(urls=LIST_OF_TEXTS, cacheSize=BYTES),
        ),
        resourcesPreset=one_of("cpu-small", "cpu-medium", "cpu-large", "gpu", "none"),
        resources=RESOURCES,
        gpu=section(resource={"type": "string", "pattern": "^[a-z0-9.-]+/[A-Za-z0-9._-]+$"}, count=whole(0)),
        capacity=section(
            kinds={
                "type": "object",
                "additionalProperties": section(requestsPerSecond=number(0), slo=TEXT)
                | {"required": ["requestsPerSecond"]},
            },
            peak={"type": "object", "additionalProperties": number(0)},
        ),
        autoscaling=autoscaling(),
        service=section(
            type=one_of("ClusterIP", "NodePort", "LoadBalancer"),
            annotations=TEXTS,
            httpPort=PORT,
            grpcPort=PORT,
            ipFamilyPolicy=one_of("", "SingleStack", "PreferDualStack", "RequireDualStack"),
            ipFamilies={"type": "array", "items": one_of("IPv4", "IPv6"), "uniqueItems": True, "maxItems": 2},
            externalTrafficPolicy=one_of("", "Cluster", "Local"),
            loadBalancerClass=TEXT,
            loadBalancerSourceRanges={"type": "array", "items": {"type": "string", "pattern": CIDR}},
        ),
        grpcBalancing=section(
            kind=one_of("client", "envoy"),
            envoy=section(
                image=IMAGE,
                replicas=whole(1),
                drainSeconds=whole(1, 600),
                requireClientCertificates=FLAG,
                resources=RESOURCES,
                scheduling=section(**SCHEDULING),
            ),
        ),
        tls=section(
            secretName=NAME,
            certManager=section(
                enabled=FLAG,
                issuerRef=section(name=TEXT, kind=one_of("Issuer", "ClusterIssuer"), group=TEXT),
                extraDnsNames=LIST_OF_TEXTS,
            ),
        ),
        ingress=section(
            enabled=FLAG,
            className=NAME,
            annotations=TEXTS,
            hosts={"type": "array", "items": section(host=TEXT, path=PATH) | {"required": ["host"]}},
            tls=OBJECTS,
        ),
        gateway=section(
            enabled=FLAG,
            parentRefs=OBJECTS,
            hostnames=LIST_OF_TEXTS,
            routes={"type": "array", "items": one_of("http", "grpc"), "uniqueItems": True, "minItems": 1},
            grpc=section(parentRefs=OBJECTS, hostnames=LIST_OF_TEXTS),
            canary=section(serviceName=NAME, weight=whole(0, 100)),
        ),
        metrics=section(
            serviceMonitor=monitor(),
            podMonitor=monitor(),
            prometheusRule=section(
                enabled=FLAG,
                labels=LABELS,
                availability=number(0, 1),
                # Only a bound of the histogram's buckets can be asked for.
                latencySeconds={"type": "number", "enum": [bound / 1e9 for bound in DURATION_BOUNDS_NS]},
                latencyRatio=number(0, 1),
                runbookUrl={"type": "string", "pattern": "^(https?://[^ #]+)?$"},
            ),
            dashboards=section(enabled=FLAG, labels=LABELS, annotations=TEXTS),
        ),
        podDisruptionBudget=section(minAvailable=PODS_OR_NOTHING, maxUnavailable=PODS_OR_NOTHING),
        networkPolicy=section(enabled=FLAG, **{"from": OBJECTS}, metricsFrom=OBJECTS, egress=OBJECTS),
        serviceAccount=section(create=FLAG, name=NAME, annotations=TEXTS),
        probes=section(startup=PROBE, readiness=PROBE, liveness=PROBE),
        updateStrategy=section(maxSurge=PODS, maxUnavailable=PODS),
        terminationMarginSeconds=whole(0),
        podAnnotations=TEXTS,
        podLabels=LABELS,
        commonLabels=LABELS,
        **SCHEDULING,
        extraVolumes=OBJECTS,
        extraVolumeMounts=OBJECTS,
        extraContainers=OBJECTS,
        test=section(model=TEXT, body=TEXT, keySecret=section(name=NAME, key=TEXT)),
    )


def autoscaling() -> Schema:
    return section(
        kind=one_of("none", "hpa", "keda"),
        minReplicas=whole(0),
        maxReplicas=whole(1),
        targetSaturation=number(0, 1),
        behavior=section(scaleUp=DIRECTION, scaleDown=DIRECTION),
        targetCPUUtilizationPercentage=whole(0, 100),
        hpa=section(adapterRule=FLAG, adapterNamespace=NAME),
        keda=section(
            trigger=one_of("prometheus", "external"),
            extraTriggers=OBJECTS,
            prometheusAddress={"type": "string", "pattern": "^https?://."},
            pollingInterval=whole(1),
            cooldownPeriod=whole(0),
            activationSaturation={"type": "number", "minimum": 0},
            idleToZero=FLAG,
            fallback=section(failureThreshold=whole(0), replicas=whole(0)),
            authenticationRef=NAME,
            authModes={"type": "string", "pattern": "^((bearer|basic|tls|custom)(,(bearer|basic|tls|custom))*)?$"},
        ),
    )


def settings() -> Schema:
    """The server's tree, with its limits; what holds between two settings is the server's to say."""
    return _inlined(Settings.model_json_schema())


def _inlined(schema: Schema) -> Schema:
    """Without references, titles and defaults: values.yaml says what is set, the server what is not."""
    sections = schema.pop("$defs", {})

    def clean(part: Any) -> Any:
        if isinstance(part, dict):
            if "$ref" in part:
                return clean(sections[part["$ref"].rpartition("/")[2]])
            names = part.get("properties", {})
            kept = {key: clean(value) for key, value in part.items() if key not in ("title", "default", "flag")}
            return kept | ({"properties": {name: clean(value) for name, value in names.items()}} if names else {})
        return [clean(item) for item in part] if isinstance(part, list) else part

    cleaned: Schema = clean(schema)
    return cleaned


def text() -> str:
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **values()}, indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
