"""How loads went: how often, how long, and whether what was loaded still gives its golden outputs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from server.errors import ModelLoadFailed, UnknownModel
from server.repository.golden import GOLDEN_FOLDER

if TYPE_CHECKING:
    from server.repository.loading import ServedModel


class Stopwatch:
    """Seconds by the phases of one load."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


class LoadCounts:
    """Of one server, on its event loop."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """By model and `loaded` or `failed`."""
        self.swaps: Counter[str] = Counter()
        self._unlike: dict[str, str] = {}
        """Versions whose last load failed for it did not give its golden outputs, by model."""

    def loaded(self, name: str, *, replaces: bool) -> None:
        self.outcomes[name, "loaded"] += 1
        self.swaps[name] += replaces
        self._unlike.pop(name, None)

    def failed(self, name: str, error: BaseException) -> None:
        """A name that no repository has is its asker's invention, and there is no end of those: it is nobody's load."""
        if isinstance(error, UnknownModel):
            return
        self.outcomes[name, "failed"] += 1
        folder, _, file = error.where.partition("/") if isinstance(error, ModelLoadFailed) else ("", "", "")
        if folder == GOLDEN_FOLDER and file.removesuffix(".npz").isdigit():
            self._unlike[name] = file.removesuffix(".npz")

    def rows(self, serving: Iterable[ServedModel]) -> Mapping[str, Sequence[tuple[Sequence[str], float]]]:
        """Samples by metric, of all loads and of those models that are in service."""
        served = list(serving)
        parity = {(m.name, m.version): 1.0 for m in served if "golden" in m.load_s}
        parity |= dict.fromkeys(self._unlike.items(), 0.0)
        return {
            "forwardpass_model_loads_total": [(list(key), count) for key, count in self.outcomes.items()],
            "forwardpass_model_swaps_total": [([name], count) for name, count in self.swaps.items()],
            "forwardpass_model_load_seconds": [
                ((m.name, m.version, phase), seconds) for m in served for phase, seconds in m.load_s.items()
            ],
            "forwardpass_model_parity": [(list(key), value) for key, value in parity.items()],
        }
