"""Whether a web page may ask: a browser sends requests of any page to any server, and says whose page it was.

A page of another origin could not read the answer, but it could load a model, or use up the cores. It is refused before
its body is read. A name is no proof that the page is ours: whoever owns a name can let it point here (DNS rebinding),
so that names other than localhost must be listed.

Source: RFC 6454 (Origin), Fetch's "Origin header".
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from server.security.addresses import is_address

_SAFE = ("GET", "HEAD")


def is_foreign(method: str, origin: str, host: str, allowed: Collection[str]) -> bool:
    """Whether a request of that method, with these `Origin` and `Host` fields, is of a page that may not send it.

    An empty `origin` is of no page, or of one that only reads. `allowed`: origins, as in https://console.example.com.
    """
    if not origin or method in _SAFE or origin.lower() in allowed:
        return False
    try:
        parts = urlsplit(origin.lower())
        name = parts.hostname or ""
    except ValueError:
        return True
    # "null" is a page that hides its origin.
    if parts.scheme not in ("http", "https") or parts.netloc != host.lower():
        return True
    return not (is_address(name) or name == "localhost" or name.endswith(".localhost"))
