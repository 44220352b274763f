"""Run by the Python of `make helm-tools`: charts rendered by Helm 4's library, and held against Kubernetes' schemas.

Standard input: {"chart": folder, "cases": {name: values}, "versions": [...]}. Standard output: {name: {"documents":
[...], "problems": [...]}}.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

import kubernetes_validate
import kubernetes_validate.utils
import yaml
from helm_python import Chart

# It reads the definitions of a version, some megabytes, anew for each document.
for each in ("schema_contents", "all_versions"):
    setattr(kubernetes_validate.utils, each, functools.cache(getattr(kubernetes_validate.utils, each)))

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def problems(text: str, versions: tuple[str, ...]) -> list[str]:
    """What the schema of each version of Kubernetes says; a kind that is not Kubernetes' own has none. `text`: JSON, of
    which many are the same in case after case."""
    document: dict[str, Any] = json.loads(text)
    found = []
    for version in versions:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            if "." in document["apiVersion"].split("/")[0].removesuffix(".k8s.io"):
                continue
            found.append(f"{version}: no such kind: {document['kind']}")
        except kubernetes_validate.ValidationError as error:
            found.append(f"{version}: {document['kind']}: {error}")
    return found


def main() -> None:
    asked = json.load(sys.stdin)
    answer = {}
    with Chart.load(asked["chart"]) as chart:
        for name, values in asked["cases"].items():
            rendered = chart.render(values=values, name="r", namespace="ns")
            texts = [text for path, text in sorted(rendered.items()) if path.endswith(".yaml")]
            documents = [one for text in texts for one in yaml.load_all(text, LOADER) if one]
            versions = tuple(asked["versions"])
            found = [problem for one in documents for problem in problems(json.dumps(one), versions)]
            answer[name] = {"documents": documents, "problems": found}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
