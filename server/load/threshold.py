"""What windows that held, and windows that broke, say of the rate up to which they hold.

A window that nothing disturbs holds below a rate and breaks above it, more surely the further away it is; how sharp
that is, is the machine's doing, whose speed wanders. And whatever disturbs a machine for a moment breaks windows at any
rate. So three things are not known: the rate, the width of the step, and the part of the windows that breaks anyhow.
Bayes' rule weighs all of them at once, on a grid. It is how psychophysics finds the faintest tone that somebody hears
who does not always listen (Kontsevich and Tyler, 1999, "Bayesian adaptive estimation of psychometric slope and
threshold"), with the lapses as a third unknown.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]

_STEP = 0.01
_BELOW, _ABOVE = 7.0, 4.0
"""How far from the first guess rates are thought of: e to that power."""
_PRIOR = 1.0
"""The guess is off by e-fold, typically: a distribution with long tails, for guesses can be far off."""
_WIDTHS = (0.006, 0.012, 0.025, 0.05, 0.1)
"""Of the logarithm of the rate: from three of four windows that hold to one of two, about."""
_LAPSES = (0.02, 0.1, 0.2, 0.35, 0.5)
"""None is never: one window that breaks far below would be the end of it."""
_PLACES = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95)
"""Quantiles of what is believed of the rate, among which the next window is chosen. High ones are among them: where
half of the windows break at any rate, only those far above tell that from a step that is here."""
_NEVER = 1e-12


class Threshold:
    """What is believed of one rate, in requests a second."""

    def __init__(self, guess: float) -> None:
        self._rates = math.log(guess) + np.arange(-_BELOW, _ABOVE, _STEP)
        self._threshold = self._rates[:, None, None]
        self._width = np.array(_WIDTHS)[None, :, None]
        self._lapse = np.array(_LAPSES)[None, None, :]
        prior = -np.abs(self._threshold - math.log(guess)) / _PRIOR
        self._believe(np.broadcast_to(prior, (len(self._rates), len(_WIDTHS), len(_LAPSES))))

    def learn(self, rate: float, held: bool) -> None:
        """From one window."""
        holds = self._holds(math.log(rate))
        self._believe(self._logs + np.log(np.maximum(holds if held else 1 - holds, _NEVER)))

    def quantile(self, part: float) -> float:
        """The rate is below this with that probability."""
        return math.exp(self._log_quantile(part))

    def most_telling(self) -> float:
        """Where one more window is expected to leave the least doubt of the rate, by its entropy."""
        return math.exp(min(map(self._log_quantile, _PLACES), key=self._doubt_after))

    def _believe(self, logs: Weights) -> None:
        self._logs = logs - logs.max()
        weights = np.exp(self._logs)
        self._weights = weights / weights.sum()
        self._of_rate = self._weights.sum((1, 2))
        self._up_to = np.cumsum(self._of_rate)

    def _log_quantile(self, part: float) -> float:
        return float(np.interp(part, self._up_to, self._rates))

    def _holds(self, log_rate: float) -> Weights:
        """How probably a window at that rate holds, whatever is the case."""
        off = np.clip((log_rate - self._threshold) / self._width, -50, 50)
        holds: Weights = (1 - self._lapse) / (1 + np.exp(off))
        return holds

    def _doubt_after(self, log_rate: float) -> float:
        held = (self._weights * self._holds(log_rate)).sum((1, 2))
        return _doubt(held) + _doubt(self._of_rate - held)


def _doubt(weights: Weights) -> float:
    """The entropy of what is believed if that is what is seen, times how probable that is."""
    whole = float(weights.sum())
    parts = weights[weights > _NEVER]
    return whole * math.log(whole) - float((parts * np.log(parts)).sum()) if whole > _NEVER else 0.0
