"""Fuzz what reads the bytes of strangers, led by coverage: ``make fuzz-bytes``.

    python -m tests.fuzz.coverage http2 --seconds 600

Needs the package atheris (the extra `fuzz`). What breaks a rule is written to `--out`, and fed again by

    python -m tests.fuzz.coverage http2 --again FILE

What led to something new is gathered in `--corpus`. The smallest inputs that take the server's code all the ways that
those do go into the repository (tests/fuzz/corpus), to begin with the next time, by

    python -m tests.fuzz.coverage http2 --keep

The suite feeds the same targets seeded mutations, and what is kept (unit/test_fuzz_targets.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

from tests.support import fuzz_corpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from tests.support.fuzz_targets import Target

FILE_TARGETS = ("onnx", "picture", "tokens", "tokenizer", "config", "processing", "keys")
_LED_BY = ("server.transport", "server.security", "server.pipeline", "PIL", "yaml")
_MEMORY_MB = 1024
_SERVER = "/server/"
Step = tuple[str, int, int]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("http2", "hpack", "heads", "http1", "json", "wire", *FILE_TARGETS))
    parser.add_argument("--seconds", type=int, default=600, help="how long (600)")
    parser.add_argument("--hang", type=int, default=10, help="seconds that one input may take by the clock (10)")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="where findings are written (build/fuzz)")
    parser.add_argument("--corpus", type=Path, help="where inputs are gathered (a folder of the target in --out)")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--again", type=Path, help="feed this file once, and nothing else")
    ways.add_argument("--keep", action="store_true", help="choose from --corpus what the repository keeps; don't fuzz")
    options = parser.parse_args()
    with atheris.instrument_imports(include=list(_LED_BY)):
        from tests.support.fuzz_files import FILES
        from tests.support.fuzz_targets import TARGETS, Target

        if options.target in FILE_TARGETS:
            one, seeds = FILES[options.target]
            target = Target(one, seeds())
        else:
            target = TARGETS[options.target]
        for seed in target.seeds:
            target.one(seed)  # What is imported only now is led by as well.
    if options.again is not None:
        target.one(options.again.read_bytes())
        return 0
    corpus = options.corpus or options.out / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    if options.keep:
        return _keep(options.target, target, corpus)
    for index, seed in enumerate((*target.seeds, *fuzz_corpus.kept(options.target))):
        (corpus / f"seed-{index}").write_bytes(seed)
    prefix = f"-artifact_prefix={options.out / options.target}-"
    limits = (f"-max_total_time={options.seconds}", f"-rss_limit_mb={_MEMORY_MB}", f"-timeout={options.hang}")
    atheris.Setup([sys.argv[0], str(corpus), *limits, prefix, "-print_final_stats=1", "-max_len=4096"], target.one)
    atheris.Fuzz()
    return 0


def _keep(name: str, target: Target, corpus: Path) -> int:
    reached: set[Step] = set()
    chosen = []
    for data in sorted((file.read_bytes() for file in corpus.iterdir()), key=len):
        new = _steps(target.one, data) - reached
        if new:
            reached |= new
            chosen.append(data)
    sys.stdout.write(f"{fuzz_corpus.keep(name, chosen)} inputs of {len(chosen)} are kept of '{name}'\n")
    return 0


def _steps(one: Callable[[bytes], None], data: bytes) -> set[Step]:
    """From which line to which the server's code went."""
    found: set[Step] = set()

    def enter(frame: FrameType, _event: str, _arg: object) -> object:
        if _SERVER not in frame.f_code.co_filename:
            return None
        last = 0

        def step(frame: FrameType, _event: str, _arg: object) -> object:
            nonlocal last
            found.add((frame.f_code.co_filename, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    sys.settrace(enter)
    try:
        one(data)
    finally:
        sys.settrace(None)
    return found


if __name__ == "__main__":
    sys.exit(main())
