"""Which Tritons may be told that nobody waits for a call any more.

From 2.39 (23.10), which brought the cancellation of requests, until 2.57 (25.04) a Triton ends by SIGSEGV when a
ModelInfer is cancelled, by its caller or its grpc-timeout, at the moment in which it is answered or taken up: 2.51 once
in 900 to 7,500 cancelled calls, on a busy machine. Streams are cancelled safely; other methods know no cancellation.
Source: triton-inference-server/server, issues 7368 and 8034, pull requests 7840 and 8078.
"""

from __future__ import annotations

import re

_BROUGHT, _MENDED = (2, 39), (2, 57)
_VERSION = re.compile(r"(\d+)\.(\d+)")


def survives_cancelled_calls(name: str, version: str) -> bool:
    """Of what it says of itself; one that is no Triton, or tells no version, does."""
    found = _VERSION.match(version)
    if name != "triton" or found is None:
        return True
    return not _BROUGHT <= (int(found[1]), int(found[2])) < _MENDED
