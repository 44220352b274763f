"""How well rows are classified, measured for the network and for what it must beat by the same code.

Where the labels are balanced enough, accuracy and macro-F1. Where one of two labels is rare, accuracy says
nothing (never finding it is nearly always right), so: the area under the precision-recall curve, the recall
that can be had at a precision of `TARGET_PRECISION`, and precision and recall at the one threshold that will
be served. That threshold is chosen on the validation rows; the test rows only measure it.

Shapes: B rows, C labels. `probabilities` are [B, C], `targets` are indices [B].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_recall_curve

TARGET_PRECISION = 0.80
RARE_SHARE = 0.10
"""One of two labels with less than this share of the rows is rare."""

Floats = NDArray[np.float64]
Targets = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scored:
    """Some rows with what a model says of them."""

    targets: Targets
    probabilities: Floats


def rare_label(targets: Targets, num_labels: int) -> int | None:
    """The label that is to be found rather than told apart, None where labels are balanced enough."""
    counts = np.bincount(targets, minlength=num_labels)
    return int(counts.argmin()) if num_labels == 2 and counts.min() < RARE_SHARE * counts.sum() else None


def balanced_metrics(test: Scored) -> dict[str, float]:
    chosen = test.probabilities.argmax(axis=1)
    return {
        "accuracy": float(accuracy_score(test.targets, chosen)),
        "macro_f1": float(f1_score(test.targets, chosen, average="macro", zero_division=0)),
    }


def chance_metrics(test_targets: Targets, num_labels: int, rare: int | None) -> dict[str, float]:
    """What needs no model: always the most frequent label, or for a rare one the rows in random order."""
    shares = np.bincount(test_targets, minlength=num_labels) / len(test_targets)
    if rare is not None:
        return {"pr_auc": float(shares[rare])}
    constant = np.tile(shares, (len(test_targets), 1))
    return balanced_metrics(Scored(test_targets, constant))


def rare_metrics(validation: Scored, test: Scored, positive: int) -> tuple[dict[str, float], float]:
    """Metrics on the test rows, and the threshold that the validation rows chose."""
    threshold = choose_threshold(validation.targets == positive, validation.probabilities[:, positive])
    wanted = test.targets == positive
    scores = test.probabilities[:, positive]
    precision, recall, _ = precision_recall_curve(wanted, scores)
    metrics = {
        "pr_auc": float(average_precision_score(wanted, scores)),
        f"recall_at_precision_{TARGET_PRECISION:.2f}": float(recall[precision >= TARGET_PRECISION].max()),
    }
    return metrics | threshold_metrics(test, positive, threshold), threshold


def threshold_metrics(test: Scored, positive: int, threshold: float) -> dict[str, float]:
    """Precision and recall at a threshold, whoever chose it."""
    wanted = test.targets == positive
    chosen = test.probabilities[:, positive] >= threshold
    hits = int((chosen & wanted).sum())
    return {
        "precision_at_threshold": hits / max(1, int(chosen.sum())),
        "recall_at_threshold": hits / max(1, int(wanted.sum())),
    }


def choose_threshold(wanted: NDArray[np.bool_], scores: Floats) -> float:
    """The lowest score that, as a threshold, keeps `TARGET_PRECISION`; where none does, the one of the best F1."""
    precision, recall, thresholds = precision_recall_curve(wanted, scores)
    # The curve's last point is precision 1 at recall 0, and has no threshold.
    precision, recall = precision[:-1], recall[:-1]
    good = np.flatnonzero((precision >= TARGET_PRECISION) & (recall > 0))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[good[0] if good.size else f1.argmax()])
