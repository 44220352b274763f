"""Which versions of Triton a cancelled call may end."""

from __future__ import annotations

import pytest

from server.engine.triton.cancellation import survives_cancelled_calls


@pytest.mark.parametrize(
    ("name", "version", "survives"),
    [
        ("triton", "2.38.0", True),
        ("triton", "2.39.0", False),
        ("triton", "2.51.0", False),
        ("triton", "2.56.0", False),
        ("triton", "2.57.0", True),
        ("triton", "2.100.0", True),
        ("triton", "3.0.0", True),
        ("triton", "2.56.0-rc1", False),
        ("triton", "", True),
        ("triton", "nightly", True),
        ("mlserver", "2.51.0", True),
    ],
)
def test_a_triton_of_23_10_to_25_03_may_not(name: str, version: str, survives: bool) -> None:
    """Versions are compared as numbers; who is none of them is not meant."""
    assert survives_cancelled_calls(name, version) is survives
