"""Which addresses are this machine's alone."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether whoever reaches `host` is on this machine. A name other than localhost may be anybody's."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_address(host: str) -> bool:
    """An IP address, and no name."""
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
