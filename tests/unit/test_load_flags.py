"""Numbers on the command lines of the load tests."""

from __future__ import annotations

import argparse

import pytest

from loadtests.flags import counted, positive


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much", ""])
def test_what_is_no_number_above_0_is_refused(text: str) -> None:
    """argparse names the flag."""
    with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
        positive(text)
    assert positive("0.5") == 0.5


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_what_can_not_be_counted_is_refused(text: str) -> None:
    """A half of a round, or none at all."""
    with pytest.raises(argparse.ArgumentTypeError, match="whole number from 1 on"):
        counted(text)
    assert counted("3") == 3
