"""What the load tests promise, in short: a stall is seen, a slower server is told from the same one."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests import compare
from loadtests.cores import cores
from loadtests.proofs import gate, stall
from loadtests.scripted import scripted

pytestmark = pytest.mark.e2e


def test_a_stall_is_seen_by_the_open_loop_alone(tmp_path: Path) -> None:
    """One of 500 ms in every 3 s, both loops in one report."""
    assert stall.main(["--seconds", "3.5", "--out", str(tmp_path)]) == 0
    said = (tmp_path / "stall.md").read_text()
    assert "open loop" in said
    assert "closed loop" in said
    assert "<svg" in (tmp_path / "stall.svg").read_text()


def test_the_gate_is_never_wrong_about_a_slower_server(capsys: pytest.CaptureFixture[str]) -> None:
    """Twice as slow, for the suite's machines are busy, and may be too busy to tell; the command shows it for 30 %."""
    assert gate.main(["--repeats", "1", "--seconds", "1", "--slowed", "2"]) in (0, 2)
    assert "0 wrong verdicts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("codes", "verdict"),
    [([0], 0), ([1, 2, 0], 0), ([1, 1, 1, 1], 1), ([2, 1, 2, 1], 1), ([2, 1, 2, 2], 2), ([2, 2, 2, 2], 2)],
)
def test_one_run_that_holds_is_enough_and_one_that_breaks_is_not(codes: list[int], verdict: int) -> None:
    """What is invalid tells nothing."""
    assert gate.verdict_on(codes) == verdict


def test_two_servers_are_compared_by_their_urls(tmp_path: Path) -> None:
    """The second one takes ten times as long: below the limit; the first one beside it is not."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with scripted(tmp_path / "a", cores()[0], 4) as (a, repository), scripted(tmp_path / "b", cores()[0], 40) as (b, _):
        flags = ["--kind", "rest infer scripted", "--model-repository", str(repository), "--pairs", "3"]
        flags += ["--seconds", "0.2", "--fail-below", "0.6", "--judge", "answers/s", "--out", str(tmp_path)]
        one, other = f"http://{a.http}", f"http://{b.http}"
        # A busy machine may leave it undecided; then it is asked again.
        codes = [compare.main([one, other, *flags])]
        while codes[-1] == compare.UNDECIDED and len(codes) < 4:
            codes.append(compare.main([one, other, *flags]))
        assert codes[-1] == compare.LOWER
        assert "answers/s: below 0.6" in (tmp_path / "compare.md").read_text()
        assert compare.main([other, one, *flags]) == 0
