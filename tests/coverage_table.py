"""The coverage of each package, by line and branch together, from the file that ``coverage json`` writes.

python -m tests.coverage_table build/coverage/coverage.json --least 0.9
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

_COVERED, _ALL = ("covered_lines", "covered_branches"), ("num_statements", "num_branches")


def by_package(files: Mapping[str, Mapping[str, Mapping[str, int]]]) -> dict[str, tuple[int, int]]:
    """What was reached, and what there is, of each folder."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for path, file in files.items():
        package, summary = str(PurePosixPath(path).parent), file["summary"]
        reached, there = found[package]
        found[package] = (
            reached + sum(summary[name] for name in _COVERED),
            there + sum(summary[name] for name in _ALL),
        )
    return dict(sorted(found.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--least", type=float, default=0.9, help="of all together; below it the status is 1 (0.9)")
    options = parser.parse_args(arguments)
    found = by_package(json.loads(options.file.read_text())["files"])
    reached, there = (sum(each[part] for each in found.values()) for part in (0, 1))
    lines = [f"| {package} | {part[1]} | {part[0] / max(1, part[1]):.3f} |" for package, part in found.items()]
    table = ["| package | lines and branches | covered |", "|---|---:|---:|", *lines]
    sys.stdout.write("\n".join([*table, f"| all | {there} | {reached / max(1, there):.3f} |", ""]))
    return 0 if reached >= options.least * there else 1


if __name__ == "__main__":
    sys.exit(main())
