"""The share of the cores, asked directly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.scheduler.share import Lease, Share
from server.types import NO_DEADLINE
from tests.support.scheduler import MS


class Models:
    """Some models in one share, and whom it called."""

    def __init__(self, tokens: int, *names: str) -> None:
        self.share = Share(tokens)
        self.called: list[str] = []
        self.seats = {name: self.share.join(name, 4, self._turn(name)) for name in names}
        self.now_ns = 1_000 * MS

    def _turn(self, name: str) -> Callable[[], None]:
        return lambda: self.called.append(name)

    def take(self, name: str, ms: float | None = 10, tokens: int = 1, urgent_ns: int = NO_DEADLINE) -> Lease | None:
        pass_ns = None if ms is None else int(ms * MS)
        return self.seats[name].take(tokens, pass_ns, urgent_ns, self.now_ns)

    def begin(self, name: str, ms: float = 10, tokens: int = 1) -> Lease:
        lease = self.take(name, ms, tokens)
        assert lease is not None
        return lease

    def end(self, name: str, lease: Lease) -> None:
        self.now_ns = max(self.now_ns, lease.ends_ns)
        self.seats[name].give(lease, self.now_ns)


def test_a_share_has_a_token() -> None:
    """Without one nothing could ever begin."""
    with pytest.raises(ValueError, match="0 tokens"):
        Share(0)


def test_a_model_alone_is_not_held_back() -> None:
    """However many threads its instances have: as if there were no share."""
    models = Models(2, "a", "b")
    for _ in range(5):
        models.begin("a", tokens=2)
    assert models.share.used == 10


def test_who_was_here_lately_still_counts() -> None:
    """A model that is asked again and again is not met each time by all the instances of another."""
    models = Models(1, "a", "b")
    models.end("b", models.begin("b"))
    models.begin("a")
    assert models.take("a") is None
    models.seats["a"].withdraw(models.now_ns)
    models.now_ns += 60_000 * MS
    models.begin("a")


def test_a_token_is_taken_for_each_thread_and_given_back_once() -> None:
    """What a session of two threads takes is free again at its end, however often it is given."""
    models = Models(4, "a", "b")
    first, second = models.begin("a", tokens=2), models.begin("b", tokens=2)
    assert (models.share.used, models.take("b")) == (4, None)
    models.end("a", first)
    models.end("a", first)
    assert models.share.used == 2
    models.end("b", second)
    assert models.share.used == 0


def test_more_threads_than_cores_take_all_the_tokens() -> None:
    """A session of eight threads on two cores takes two tokens."""
    models = Models(2, "a", "b")
    models.begin("a", tokens=8)
    assert models.share.used == 2


def test_the_one_who_waits_is_called_when_a_token_is_free() -> None:
    """Once, and not before."""
    models = Models(1, "a", "b")
    lease = models.begin("a")
    assert models.take("b") is None
    assert models.called == []
    models.end("a", lease)
    assert models.called == ["b"]
    assert models.take("b") is not None


def test_the_one_who_was_called_goes_before_the_one_who_asks() -> None:
    """The end of a pass does not let its own model jump in while another is on its way."""
    models = Models(1, "a", "b")
    lease = models.begin("a")
    models.take("b")
    models.end("a", lease)
    assert models.take("a") is None
    assert models.take("b") is not None


def test_who_attained_least_goes_first() -> None:
    """Of those that wait, the one whose passes have taken least, by their threads."""
    models = Models(1, "a", "b", "c")
    models.end("a", models.begin("a", 10))
    models.end("b", models.begin("b", 30))
    lease = models.begin("c", 5)
    assert (models.take("b", 10), models.take("a", 10)) == (None, None)
    models.end("c", lease)
    assert models.called == ["a"]
    assert models.take("b", 10) is None


def test_of_equals_the_most_urgent_goes_first() -> None:
    """Two that have attained nothing: the earlier deadline."""
    models = Models(1, "a", "b", "c")
    lease = models.begin("c")
    models.take("a", urgent_ns=9)
    models.take("b", urgent_ns=8)
    models.end("c", lease)
    assert models.called == ["b"]


def test_who_was_idle_has_no_credit() -> None:
    """After a long time alone of another, a newcomer does not have all that time for itself."""
    models = Models(1, "a", "b")
    for _ in range(100):
        models.end("a", models.begin("a", 10))
    lease, name, order = models.begin("a", 10), "a", []
    assert models.take("b", 10) is None
    for _ in range(6):
        models.end(name, lease)
        models.take(name, 10)
        name = models.called[-1]
        order.append(name)
        lease = models.begin(name, 10)
    assert sorted(order) == ["a"] * 3 + ["b"] * 3


def test_a_short_pass_does_not_wait_for_a_long_one() -> None:
    """With nothing running it begins beside it, for sharing the core costs it less than waiting."""
    models = Models(1, "a", "b")
    models.begin("a", 200)
    models.begin("b", 2)
    assert models.share.used == 2
    assert models.take("b", 2) is None, "one at a time"


def test_a_long_pass_waits_for_a_short_one() -> None:
    """Beside it, it would end later than behind it."""
    models = Models(1, "a", "b")
    models.begin("a", 2)
    assert models.take("b", 200) is None


def test_on_more_cores_sharing_them_costs_less() -> None:
    """Three threads on two cores: half a pass more, so that a wait of six tenths of a pass is too long."""
    models = Models(2, "a", "b")
    models.begin("a", 6)
    models.begin("a", 6)
    assert models.take("b", 13) is None
    models.begin("b", 10)


def test_a_pass_that_does_not_end_holds_up_nobody() -> None:
    """Whoever waits for it asks again once it is overdue by as much as sharing the core costs, and begins."""
    models = Models(1, "a", "b")
    models.begin("a", 10)
    assert models.take("b", 10) is None
    again_ns = models.seats["b"].again_ns
    assert again_ns == models.now_ns + 20 * MS + 1
    models.now_ns = again_ns
    assert models.take("b", 10) is not None


def test_what_is_unknown_is_not_taken_for_short() -> None:
    """Without a measured cost a pass is taken to be long, and gets its turn in the end all the same."""
    models = Models(1, "a", "b")
    models.begin("a", 50)
    assert models.take("b", None) is None
    models.now_ns = models.seats["b"].again_ns
    assert models.take("b", None) is not None


def test_a_pass_of_several_threads_is_content_with_one_token() -> None:
    """If it had to find all of them free at once, passes of one thread each would keep it out for ever."""
    models = Models(2, "a", "b")
    first, second = models.begin("b"), models.begin("b")
    assert models.take("a", tokens=2) is None
    models.end("b", first)
    models.begin("a", tokens=2)
    models.end("b", second)
    assert models.take("b", 30) is None


def test_who_withdraws_lets_the_next_one_pass() -> None:
    """The requests of the one who was called have expired: the next one is called."""
    models = Models(1, "a", "b", "c")
    lease = models.begin("c")
    models.take("a")
    models.take("b")
    models.end("c", lease)
    models.seats["a"].withdraw(models.now_ns)
    assert models.called == ["a", "b"]
    models.seats["a"].withdraw(models.now_ns)
    assert models.called == ["a", "b"]


def test_who_leaves_gives_everything_back() -> None:
    """Passes, the place in the line, and the memory of the model; what it gives later changes nothing."""
    models = Models(1, "a", "b")
    lease = models.begin("a")
    models.take("b")
    models.seats["a"].leave(models.now_ns)
    assert (models.share.used, models.called) == (0, ["b"])
    models.seats["a"].give(lease, models.now_ns)
    models.seats["b"].leave(models.now_ns)
    assert (models.share.used, models.share._accounts, models.share._waiting) == (0, {}, {})


def test_versions_of_a_model_have_one_share() -> None:
    """While an old version drains beside its successor, both together get what one model gets."""
    models = Models(1, "a", "b")
    second = models.share.join("a", 1, lambda: models.called.append("a, version 2"))
    lease = models.begin("a", 10)
    assert models.take("b", 10) is None
    assert second.take(1, 10 * MS, NO_DEADLINE, models.now_ns) is None
    models.end("a", lease)
    assert models.called == ["b"]
    assert models.take("b", 10) is not None


def test_a_pass_on_the_loop_is_charged() -> None:
    """It takes no token and can't wait, and counts all the same."""
    models = Models(1, "a", "b", "c")
    lease = models.begin("c")
    models.seats["a"].charge(30 * MS, models.now_ns)
    models.take("a")
    models.take("b")
    models.end("c", lease)
    assert models.called == ["b"]


def test_a_wrong_prediction_is_put_right_at_the_end() -> None:
    """Charged is what a pass took."""
    models = Models(1, "a", "b")
    lease = models.begin("a", 10)
    models.now_ns += 70 * MS
    models.end("a", lease)
    assert models.seats["a"].rank()[0] == pytest.approx(70 * MS)


# --- what admission is told ----------------------------------------------------------------------


def busy(models: Models, name: str, cores: int, ms: int = 5_000) -> None:
    """Its passes keep so many cores busy for a long time."""
    for _ in range(ms // 10):
        leases = [models.begin(name, 10) for _ in range(cores)]
        for lease in leases:
            models.end(name, lease)


def test_work_takes_no_longer_where_nobody_else_is() -> None:
    """A model alone foresees as if there were no share."""
    models = Models(2, "a", "b")
    busy(models, "a", 2)
    models.begin("a")
    assert models.seats["a"].outlook(models.now_ns)[1] == 1.0
    assert models.seats["a"].outlook(models.now_ns)[0] == 0


def test_work_takes_as_much_longer_as_others_use_the_cores() -> None:
    """It gets what the others leave, and its equal share at least: four instances get three cores, or two."""
    models = Models(4, "a", "b")
    busy(models, "b", 1)
    assert models.seats["a"].outlook(models.now_ns)[1] == pytest.approx(4 / 3, rel=0.01)
    busy(models, "b", 4)
    assert models.seats["a"].outlook(models.now_ns)[1] == pytest.approx(2, rel=0.01)
    models.now_ns += 60_000 * MS
    assert models.seats["a"].outlook(models.now_ns)[1] == 1.0


def test_the_wait_for_a_token_is_foreseen() -> None:
    """The pass that ends first, and of several that have to end the last of those."""
    models = Models(2, "a", "b", "c")
    models.begin("a", 10)
    assert models.seats["b"].outlook(models.now_ns)[0] == 0
    models.begin("a", 30)
    assert models.seats["b"].outlook(models.now_ns)[0] == 10 * MS
    models.begin("b", 1)
    assert models.seats["c"].outlook(models.now_ns)[0] == 10 * MS


def test_a_pass_about_to_end_does_not_hold_its_token() -> None:
    """The next one begins behind it, so that the core does not idle while the loop hears of the end."""
    models = Models(1, "a", "b")
    models.begin("a", 0.4)
    models.begin("b", 10)
    assert models.take("a", 10) is None
    models.now_ns += 60_000 * MS
    assert models.share._taken(models.now_ns) == 2, "what is long overdue is not about to end"


def test_a_model_is_not_stuck_behind_its_own_pass_that_hangs() -> None:
    """Given up, it counts as not running: another instance of the model goes on beside it."""
    models = Models(1, "a", "b")
    models.end("b", models.begin("b", 10))
    models.begin("a", 10)
    assert models.take("a", 10) is None
    again_ns = models.seats["a"].again_ns
    assert again_ns == models.now_ns + (10 + 10 + 100) * MS
    models.now_ns = again_ns
    assert models.take("a", 10) is not None


def test_idle_models_cost_nothing() -> None:
    """Only those that used the cores of late are looked at."""
    models = Models(2, *(f"m{number}" for number in range(100)))
    models.end("m1", models.begin("m1", 30))
    models.end("m2", models.begin("m2", 30))
    assert len(models.share._lately) == 2
    models.now_ns += 60_000 * MS
    models.begin("m3")
    assert not models.share._lately
