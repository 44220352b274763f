"""What a run was made with: what may differ where it is repeated."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import sklearn
import torch

_SOURCE = Path(__file__).parent


def environment() -> dict[str, str]:
    """Versions of what computes, and the machine."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "scikit-learn": str(sklearn.__version__),
        "onnxruntime": str(onnxruntime.__version__),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def revision() -> str:
    """Of this source in git, with ``-changed`` where it was changed since; empty if it stands in no git."""
    git = shutil.which("git")
    if git is None:
        return ""
    told = [_git(git, "rev-parse", "HEAD"), _git(git, "status", "--porcelain", "--", str(_SOURCE))]
    if told[0] is None:
        return ""
    return f"{told[0].strip()}{'-changed' if told[1] else ''}"


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What is another now, in words."""
    return [
        f"{name} was {before.get(name) or 'unknown'}, is {now.get(name) or 'unknown'}"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]


def _git(git: str, *arguments: str) -> str | None:
    command = [git, "-C", str(_SOURCE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    return done.stdout if done.returncode == 0 else None
