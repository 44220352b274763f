"""For all tests."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Whoever closes a model has the collector look through everything (`server.process.reclaim`). The ten thousand
    tests and what they import are not to be looked through each time: that is a second, hundreds of times."""
    gc.collect()
    gc.freeze()
