"""Fuzz what reads the bytes of strangers, led by coverage: ``make fuzz-bytes``.

    python -m tests.fuzz.coverage http2 --seconds 600

Needs the package atheris (the extra `fuzz`). What is found is written to `--out`, and fed again by

    python -m tests.fuzz.coverage http2 --again FILE

The suite feeds the same targets seeded mutations (unit/test_fuzz_targets.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

FILE_TARGETS = ("onnx", "picture", "tokens", "tokenizer", "config", "processing", "keys")
_MEMORY_MB = 1024
_HANG_S = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("http2", "hpack", "heads", "http1", "json", "wire", *FILE_TARGETS))
    parser.add_argument("--seconds", type=int, default=600, help="how long (600)")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="where findings are written (build/fuzz)")
    parser.add_argument("--again", type=Path, help="feed this file once, and nothing else")
    options = parser.parse_args()
    with atheris.instrument_imports(include=["server.transport", "server.security", "server.pipeline"]):
        from tests.support.fuzz_files import FILES
        from tests.support.fuzz_targets import TARGETS, Target
    if options.target in FILE_TARGETS:
        one, seeds = FILES[options.target]
        target = Target(one, seeds())
    else:
        target = TARGETS[options.target]
    if options.again is not None:
        target.one(options.again.read_bytes())
        return
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for index, seed in enumerate(target.seeds):
            (Path(corpus) / str(index)).write_bytes(seed)
        limits = [f"-max_total_time={options.seconds}", f"-rss_limit_mb={_MEMORY_MB}", f"-timeout={_HANG_S}"]
        prefix = f"-artifact_prefix={options.out / options.target}-"
        atheris.Setup([sys.argv[0], corpus, *limits, prefix, "-print_final_stats=1", "-max_len=4096"], target.one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
