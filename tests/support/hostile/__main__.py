"""Writes server/security/HOSTILE.md: what each bad input is answered, as a server on this machine says it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.e2e.conftest import end, start
from tests.support.hostile import run

PAGE = Path(__file__).parents[3] / "server" / "security" / "HOSTILE.md"
TITLE = """\
# What bad input is answered

Made by `python -m tests.support.hostile`, which sends each of these to one real server, with a good request right
behind it. `tests/e2e/test_hostile.py` sends them all twice, and holds status and message against this page; the time is
that of the machine on which the page was made. The limits are small there: 1 MiB for a body or a message, half a
second of patience.

No 5xx is the server's fault: 501 is what it does not have, 505 a version of HTTP, UNAVAILABLE a client's own word for a
connection that was ended. 200 and OK are harmless. `closed` and `GOAWAY` are HTTP/2's ends of a connection.

"""


def main() -> None:
    os.environ.update(run.ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        keys = run.write_keys(Path(folder))
        server = start(Path(folder) / "server.log", "--auth-keys", f"{folder}/keys.yaml", *run.FLAGS)
        try:
            lines = run.send_all(run.all_cases(), server.port("REST"), server.port("gRPC"), keys)
        finally:
            end(server)
    PAGE.write_text(TITLE + run.table(lines))


if __name__ == "__main__":
    main()
