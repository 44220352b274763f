"""REST from its own OpenAPI document, for as long as one likes: ``make fuzz-rest``.

    python -m tests.fuzz.rest --examples 1000

Starts a server of the committed models. The suite makes a few calls of each operation, seeded (e2e/test_openapi.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.e2e.conftest import end, start
from tests.support.rest_fuzz import explore


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=500, help="valid and invalid calls of each operation (500)")
    parser.add_argument("--seed", type=int, help="the same calls again; left out, others each time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder) / "server.log")
        try:
            statuses = explore(server.http, options.examples, options.seed)
            assert server.process.poll() is None, server.log.read_text()
        finally:
            end(server)
    sys.stdout.write("".join(f"{status}: {count}\n" for status, count in sorted(statuses.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
