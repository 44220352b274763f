"""For all tests."""

from __future__ import annotations

import gc
import sys
from functools import cache

import hypothesis

if hypothesis.settings.get_current_profile_name() in ("default", "ci"):
    # How long an example takes, and how long it takes to make one up, is the machine's affair.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=slow)
    hypothesis.settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Whoever closes a model has the collector look through everything (`server.process.reclaim`). The ten thousand
    tests and what they import are not to be looked through each time: that is a second, hundreds of times."""
    gc.collect()
    gc.freeze()
    _remember_translations()


def _remember_translations() -> None:
    """torch.onnx reads the sources of its 500 translations anew for each export: a second, and there are dozens."""
    if "exporter.onnx" not in sys.modules:
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign, assignment]
