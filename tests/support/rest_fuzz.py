"""Calls made by schemathesis from the server's own OpenAPI document, valid and not, against a real server."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks

from tests.support.grpc_fuzz import CONTROL_IS_OFF

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
REAL = {"model": ("digits", "breast_cancer", "fraud"), "version": ("1",)}
"""Names that made-up calls would never hit; every other call is given them."""


def explore(base_url: str, examples: int, seed: int | None) -> Counter[int]:
    """Each operation with so many valid calls and so many invalid ones; how often each status was answered.

    Raises an AssertionError, or a failure of schemathesis, for a fault of the server or an answer not in the document.
    `seed`: None for other calls each time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = schemathesis.openapi.from_url(f"{base_url}/v2/docs/openapi.json")
        statuses: Counter[int] = Counter()
        for found in schema.get_all_operations():
            for mode in schemathesis.GenerationMode:
                _explore(found.ok(), mode, examples, seed, statuses)
        return statuses


def _explore(operation: Any, mode: Any, examples: int, seed: int | None, statuses: Counter[int]) -> None:
    if mode is schemathesis.GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.headers):
        return

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=False,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode), real=st.booleans(), data=st.data())
    def calls(case: Any, real: bool, data: Any) -> None:
        for name, values in REAL.items() if real else ():
            if name in (case.path_parameters or {}):
                case.path_parameters[name] = data.draw(st.sampled_from(values))
        response = case.call(timeout=30)
        statuses[response.status_code] += 1
        fault = response.status_code >= 500 and response.status_code != 501 and CONTROL_IS_OFF not in response.text
        assert not fault, (case.as_curl_command(), response.text)
        case.validate_response(response, checks=CHECKS)

    (hypothesis.seed(seed)(calls) if seed is not None else calls)()
