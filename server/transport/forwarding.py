"""What of a caller's metadata goes along with its requests, where another server runs the models: by an allow-list."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from server.types import Metadata

_visible = re.compile(r"[ -~]+").fullmatch
"""What gRPC takes for a value."""


def forwarded(names: Sequence[str], value_of: Callable[[str], str]) -> Metadata:
    """Those of `names` that the caller gave. `value_of` gives the value of a name in lower case, empty for none.

    A value that gRPC does not have stays behind.
    """
    return tuple((name, value) for name in names if _visible(value := value_of(name)))
