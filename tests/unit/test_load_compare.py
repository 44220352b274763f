"""The comparison of two servers: the ratio, its interval, and the exit code."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from loadtests import compare
from loadtests.compare import Ratio, verdict
from server.load.http1 import Http1Wire
from server.load.payloads import payloads

REPOSITORY = Path(__file__).parents[2] / "model_repository"


def ratio(quantity: str, factor: float, noise: float = 0.02, pairs: int = 8) -> Ratio:
    """Of windows where B's figure is `factor` times A's, but for the noise."""
    rng = np.random.default_rng(0)
    made = [(100 * np.exp(rng.normal(0, noise)), 100 * factor * np.exp(rng.normal(0, noise))) for _ in range(pairs)]
    return Ratio.of("rest infer m", quantity, made)


def test_more_answers_are_better_and_less_latency_is() -> None:
    """Above 1 either way."""
    assert ratio("answers/s", 1.3).ratio == pytest.approx(1.3, rel=0.03)
    assert ratio("p50", 0.5).ratio == pytest.approx(2, rel=0.03)


def test_the_interval_has_the_truth_nineteen_times_of_twenty() -> None:
    """Over a thousand comparisons of a server with itself."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(1000):
        pairs = [tuple(np.exp(rng.normal(0, 0.1, 2))) for _ in range(8)]
        one = Ratio.of("k", "p50", pairs)
        inside += one.low <= 1 <= one.high
    assert 930 <= inside <= 970


@pytest.mark.parametrize(
    ("factor", "noise", "code"),
    [(1.0, 0.02, 0), (0.7, 0.02, compare.LOWER), (0.8, 0.3, compare.UNDECIDED), (1.4, 0.3, 0)],
    ids=["the same", "slower by 30 %", "too noisy to tell", "faster, though noisy"],
)
def test_the_exit_code_is_of_the_interval(factor: float, noise: float, code: int) -> None:
    """With --fail-below 0.95."""
    assert verdict([ratio("answers/s", factor, noise)], ["answers/s"], 0.95) == code


def test_what_was_not_measured_is_not_decided() -> None:
    """And no reason to let a change pass."""
    nothing = Ratio.of("k", "p50", [(1.0, math.nan), (1.0, 1.0)])
    assert verdict([ratio("answers/s", 1.0), nothing], ["answers/s", "p50"], 0.95) == compare.UNDECIDED


def test_a_window_in_which_nothing_was_due_is_a_fault() -> None:
    """It has no median."""
    wire = Http1Wire("http://127.0.0.1:1")
    with pytest.raises(compare.Fault, match="B, rest infer m: no request was due in a window"):
        compare.Sided("B, rest infer m", wire, payloads("rest", "infer", "fraud", REPOSITORY)).open(1e-6, 1, 0)
    wire.close()


@pytest.mark.parametrize("flag", ["--seconds", "--load", "--fail-below"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "x"])
def test_a_number_that_can_not_be_is_refused(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By the flag's name."""
    with pytest.raises(SystemExit):
        compare.main([".", ".", f"{flag}={value}"])
    assert f"argument {flag}: must be a number above 0, and not '{value}'" in capsys.readouterr().err


def test_only_what_is_judged_counts() -> None:
    """p99 is noisy, and stays out unless it is asked for."""
    slow = ratio("p99", 2.0)
    assert verdict([slow], ["answers/s", "p50"], 0.95) == 0
    assert verdict([slow], ["p99"], 0.95) == compare.LOWER


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "."], "neither a URL nor a folder"),
        (["http://127.0.0.1:1", "http://127.0.0.1:1", "--kind", "grpc infer fraud"], "is not asked by grpc"),
        (["http://127.0.0.1:1", "http://127.0.0.1:1", "--kind", "sing"], "must be a transport"),
        (["http://127.0.0.1:1", "http://127.0.0.1:1", "--kind", "rest infer fraud", "--seconds", "0.1"], "refused"),
    ],
)
def test_a_side_that_can_not_be_asked_is_named(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and no traceback."""
    assert compare.main(arguments) == 2
    assert said in capsys.readouterr().err
