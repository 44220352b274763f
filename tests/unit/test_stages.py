"""Which requests are looked at for where their time goes, and for how many of them each counts."""

from __future__ import annotations

import pytest

from server.explain import Explanation
from server.observability.stages import PER_S, Stages
from server.scheduler.statistics import ModelStatistics
from server.types import InferRequest, PredictRequest

SECOND_NS = 1_000_000_000


def arriving(received_ns: int, count: int) -> list[InferRequest]:
    return [InferRequest("m", [], on_settle=lambda *_: None, received_ns=received_ns) for _ in range(count)]


def let_by(stages: Stages, requests: list[InferRequest]) -> list[InferRequest]:
    """As the data plane does; those that were chosen, answered."""
    stages.left -= len(requests)
    if stages.left < 0:
        stages.choose(requests)
    chosen = [request for request in requests if request.explanation is not None]
    for request in chosen:
        assert request.explanation is not None
        request.explanation.mark("queue")
        assert request.explanation.finish() == ""
    return chosen


def test_few_requests_are_looked_at_one_by_one() -> None:
    """Below the rate that is wanted nothing is left to chance: ten a second are ten samples of one each."""
    statistics = ModelStatistics("m", "1")
    stages = Stages(statistics)
    for turn in range(100):
        assert len(let_by(stages, arriving(turn * SECOND_NS // 10, 1))) == 1
    assert statistics.stages["queue"].count == 100
    assert statistics.stages["preprocess"].count == 0


@pytest.mark.parametrize("together", [1, 32, 700])
def test_samples_stand_for_all(together: int) -> None:
    """At 14,000 requests a second some hundreds are looked at in ten seconds, and count for all but for chance."""
    statistics = ModelStatistics("m", "1")
    stages = Stages(statistics)
    chosen = 0
    for received_ns in range(0, 10 * SECOND_NS, SECOND_NS * together // 14_000):
        chosen += len(let_by(stages, arriving(received_ns, together)))
    assert 5 * PER_S < chosen < 30 * PER_S
    assert statistics.stages["decode"].count == pytest.approx(140_000, rel=0.15)


def test_a_burst_after_quiet_is_not_looked_at_whole() -> None:
    """Ten thousand that come in one second after none did: the share of those looked at halves, again and again."""
    statistics = ModelStatistics("m", "1")
    stages = Stages(statistics)
    let_by(stages, arriving(5 * SECOND_NS, 1))
    chosen = sum(len(let_by(stages, arriving(6 * SECOND_NS + turn, 10))) for turn in range(1000))
    assert 2 * PER_S <= chosen < 1000
    assert statistics.stages["decode"].count == pytest.approx(10_000, rel=0.3)


def test_a_call_is_chosen_as_requests_are() -> None:
    """predict asks for one at a time, out of the same count."""
    stages = Stages(ModelStatistics("m", "1"))

    def chosen(received_ns: int) -> bool:
        call = PredictRequest("m", [], received_ns=received_ns)
        stages.one(call)
        return call.explanation is not None and not call.explanation.asked

    assert chosen(SECOND_NS)
    for turn in range(20_000):
        chosen(SECOND_NS + turn)
    assert sum(chosen(SECOND_NS + 20_000 + turn) for turn in range(1000)) < 100


def test_who_asked_is_counted_and_still_told() -> None:
    """An explanation that the caller asked for stays its own, and is one of the sample like any other."""
    statistics = ModelStatistics("m", "1")
    stages = Stages(statistics)
    [request] = arriving(0, 1)
    request.explanation = Explanation(0)
    request.explanation.mark("decode")
    stages.left -= 1
    stages.choose([request])
    assert request.explanation.finish().startswith("decode;dur=")
    assert statistics.stages["decode"].count == 1
