"""What `make mutants` draws, and what a mutant is."""

from __future__ import annotations

import logging

import pytest

from tests.mutants.mutate import mutants

SOURCE = '''
"""A module."""
from typing import TYPE_CHECKING

_CAP = 16 * 1024
LIMIT = 3
if TYPE_CHECKING:
    WORD = 1

class Box:
    __slots__ = ("a",)

    def __repr__(self) -> str:
        return f"{1 + 1}"

def most(a: int | None, b: int = 2) -> int:
    log.info("more than %d", 5)
    if a is None or (
        b > LIMIT
    ):
        raise ValueError(a + 1)
    return a + b

def no() -> bool:
    return False
'''


def test_what_no_test_is_to_pin_is_not_drawn() -> None:
    """Texts, logs, annotations, what is raised, slots, and the private numbers of a module."""
    drawn = [str(mutant).partition(": ")[2] for mutant in mutants("m", SOURCE)]
    assert drawn == [
        "3  ->  4",
        "2  ->  3",
        "a is None  ->  a is not None",
        "a is None or b > LIMIT  ->  a is None and b > LIMIT",
        "b > LIMIT  ->  b >= LIMIT",
        "a + b  ->  a - b",
        "return a + b  ->  return None",
        "False  ->  True",
    ]


def test_a_mutant_knows_the_lines_that_lead_to_it() -> None:
    """Of a condition those that it stands on, not those of what it decides."""
    lines = {str(mutant).partition(": ")[2]: mutant.lines for mutant in mutants("m", SOURCE)}
    assert lines["a is None or b > LIMIT  ->  a is None and b > LIMIT"] == (18, 19, 20)
    assert lines["b > LIMIT  ->  b >= LIMIT"] == (19,)


@pytest.mark.parametrize(("number", "found"), [(5, 3), (6, None)])
def test_a_mutant_is_its_module_with_one_change(number: int, found: int | None) -> None:
    """Compiled as if it stood in the file."""
    mutant = mutants("m", SOURCE)[number]
    told: dict[str, object] = {"log": logging.getLogger(__name__)}
    exec(mutant.code(SOURCE, "/m.py"), told)  # noqa: S102 - the source above
    most = told["most"]
    assert callable(most)
    assert most(5) == found
    assert most.__code__.co_filename == "/m.py"
