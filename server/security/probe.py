"""What a TLS listener accepts, asked from outside with OpenSSL: `python -m server.security.probe HOST:PORT`.

Each line is a handshake: what was offered, what is to come of it, what came. Exit status 1 if any differs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

_WEAK = (
    ("no encryption", "NULL:eNULL"),
    ("no authentication", "aNULL"),
    ("export", "EXPORT"),
    ("RC4", "RC4"),
    ("3DES", "3DES"),
    ("MD5", "MD5"),
    ("no forward secrecy", "kRSA"),
)
_CUT_OFF = ("alert certificate required", "alert handshake failure", "unexpected eof", "errno=")
"""How OpenSSL says that the other side did not go on."""
_TIMEOUT_S = 10


class Offer(NamedTuple):
    """One handshake. `wanted`: what is to be in OpenSSL's report; empty: it is to be refused."""

    name: str
    flags: tuple[str, ...]
    wanted: str


class Outcome(NamedTuple):
    offer: Offer
    found: str
    """What came: protocol, cipher and ALPN of a handshake, or `refused`."""

    @property
    def good(self) -> bool:
        return self.offer.wanted in self.found if self.offer.wanted else self.found == "refused"


def offers(protocols: Sequence[str], client: Sequence[str] = ()) -> list[Offer]:
    """What to try at a listener of these ALPN protocols; `client`: flags of a certificate, if one is wanted."""
    legacy = (("TLS 1.0", "-tls1"), ("TLS 1.1", "-tls1_1"))
    old = [Offer(name, (flag, "-cipher", "ALL:@SECLEVEL=0"), "") for name, flag in legacy]
    new = [Offer(f"TLS 1.{n}", (f"-tls1_{n}", *client), f"TLSv1.{n}") for n in (2, 3)]
    weak = [Offer(name, ("-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0", *client), "") for name, cipher in _WEAK]
    spoken = [Offer(f"ALPN {each}", ("-alpn", each, *client), f"ALPN {each}") for each in protocols]
    # In TLS 1.3 the refusal comes when the client thinks that all is well: it is waited for.
    bare = [Offer(f"TLS 1.{n}, no certificate", (f"-tls1_{n}", "-ign_eof"), "") for n in (2, 3)] if client else []
    return [*old, *new, *weak, *spoken, *bare]


def probe(address: str, protocols: Sequence[str], client: Sequence[str] = (), trust: str = "") -> list[Outcome]:
    """Try every offer at `address`. `trust`: PEM file of the authority of the server's certificate; empty: any.

    Raises:
        OSError: there is no openssl.
    """
    return [Outcome(offer, _try(address, offer, trust)) for offer in offers(protocols, client)]


def _try(address: str, offer: Offer, trust: str) -> str:
    checked = ("-CAfile", trust, "-verify_return_error") if trust else ()
    command = ["openssl", "s_client", "-connect", address, *checked, *offer.flags]
    try:
        done = subprocess.run(  # noqa: S603 - the program is named, its arguments are no shell's
            command, input=b"", capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "let in, and waited for"
    text = done.stdout.decode("latin-1") + done.stderr.decode("latin-1")
    line = next((each for each in text.splitlines() if each.startswith("New, TLS")), "")
    if not line or "(NONE)" in line or any(sign in text for sign in _CUT_OFF):
        return "refused"
    alpn = next((each.split(": ")[1] for each in text.splitlines() if each.startswith("ALPN protocol: ")), "none")
    return f"{line.removeprefix('New, ')}, ALPN {alpn}"


def main(arguments: Sequence[str]) -> int:
    if not 1 <= len(arguments) <= 3:
        sys.stderr.write("usage: python -m server.security.probe HOST:PORT [CLIENT_CERTIFICATE CLIENT_KEY]\n")
        return 2
    client = ("-cert", arguments[1], "-key", arguments[2]) if len(arguments) == 3 else ()
    outcomes = probe(arguments[0], (), client)
    for outcome in outcomes:
        wanted = outcome.offer.wanted or "refused"
        verdict = "ok " if outcome.good else "BAD"
        sys.stdout.write(f"{verdict} {outcome.offer.name}: {outcome.found} (wanted: {wanted})\n")
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
