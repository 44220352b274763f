"""Instances on devices of different speed, through the batcher."""

from __future__ import annotations

import pytest

from server.scheduler.cost import CostModel
from server.scheduler.costs import CostsByDevice
from server.scheduler.fleet import Fleet
from tests.support.scheduler import MS, Bench


def bench(max_batch_size: int = 4, devices: tuple[str, ...] = ("cpu", "gpu0", "cpu")) -> Bench:
    """A pass takes 1 ms on the GPU and 10 ms on the CPU, whatever its rows."""
    costs = {"cpu": CostModel({1: 10 * MS, 4: 10 * MS}), "gpu0": CostModel({1: MS, 4: MS})}
    return Bench(max_batch_size, devices=devices, cost=CostsByDevice(costs, max_batch_size))


def busy(made: Bench) -> list[bool]:
    return [runner.job is not None for runner in made.runners]


def test_the_idle_instance_that_answers_first_goes_first() -> None:
    """The GPU before a CPU, wherever it stands in the list; then what is left of the instances."""
    made = bench()
    seen = []
    for _ in range(3):
        made.submit(made.caller.request([1]))
        made.loop.run()
        seen.append(busy(made))
    assert seen[0] == [False, True, False]
    assert sum(seen[1]) == 2
    assert seen[2] == [True, True, True]


def test_each_device_learns_from_its_own_passes() -> None:
    """A slow pass on a CPU says nothing of the GPU."""
    made = bench()
    for _ in range(2):
        made.submit(made.caller.request([1]))
        made.loop.run()
    slow = next(runner for runner in made.runners if runner.job and runner.instance.device == "cpu")
    run = slow.instance.run

    def disturbed(batch: object) -> object:
        made.clock.now_ns += 14 * MS
        return run(batch)

    slow.instance.run = disturbed
    slow.complete()
    made.loop.run()
    costs = made.batcher._instances._costs
    assert (costs.on("cpu").for_signature(1).predict_ns(1) or 0) > 11 * MS
    assert costs.on("gpu0").for_signature(1).predict_ns(1) == MS


def test_a_request_that_only_the_fast_device_can_answer_in_time_waits_for_it() -> None:
    """An idle CPU would be late; the GPU, busy for a moment, is not."""
    made = bench(devices=("cpu", "gpu0"))
    made.submit(made.caller.request([1]))
    made.loop.run()
    urgent = made.caller.request([2], deadline_ns=made.clock.now_ns + 5 * MS)
    made.submit(urgent)
    made.loop.run()
    assert busy(made) == [False, True]
    made.clock.now_ns += MS
    made.runners[1].complete()
    made.loop.run()
    assert busy(made) == [False, True]
    made.runners[1].complete()
    made.loop.run()
    assert made.caller.answer(urgent) == [4]


def test_admission_foresees_with_the_rates_of_all() -> None:
    """One GPU and a CPU of a tenth of its speed do the work of 1.1 GPUs, in what is under way too."""
    made = bench(max_batch_size=1, devices=("cpu", "gpu0"))
    for _ in range(2):
        made.submit(made.caller.request([1]))
        made.loop.run()
    outlook = made.batcher._door.look_out(made.clock.now_ns)
    assert outlook.instances == pytest.approx(1.1)
    assert outlook.left_ns == pytest.approx(MS + 10 * MS * 0.1)
    # Eleven passes of the GPU are 10 ms of both.
    waiting = [made.caller.request([1], deadline_ns=made.clock.now_ns + 100 * MS) for _ in range(11)]
    made.submit(*waiting)
    made.loop.run()
    last = made.caller.request([1], deadline_ns=made.clock.now_ns + 200 * MS)
    made.submit(last)
    made.loop.run()
    foreseen_ms = (last.predicted_ns - made.clock.now_ns) / MS
    assert foreseen_ms == pytest.approx(13 / 1.1 + 1.2, rel=0.02)


@pytest.mark.parametrize(("runners", "speed"), [(["a"], 1.0), (["a", "b"], 1.1), (["b"], 0.1)])
def test_the_speed_of_some_instances(runners: list[str], speed: float) -> None:
    """In instances of the fastest device, one of which counts as one."""
    costs = CostsByDevice({"cpu": CostModel({1: 10 * MS}), "gpu0": CostModel({1: MS})}, 1)
    assert Fleet({"a": "gpu0", "b": "cpu"}, costs).speed(runners) == pytest.approx(speed)
    assert Fleet({"a": "cpu", "b": "cpu"}, CostModel()).speed(runners) == len(runners)
