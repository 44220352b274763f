"""Numbers on a command line; what can't be one is refused by argparse, which names the flag."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> float:
    """Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, and not {text!r}")
    return value


def counted(text: str) -> int:
    """Raises ArgumentTypeError."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, and not {text!r}")
    return int(text)
