"""All servers that are measured, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from loadtests.benchmarks.peers import bentoml, kserve, litserve, mlserver, mosec, ours, ray, triton
from loadtests.benchmarks.peers.environments import REQUIREMENTS
from loadtests.benchmarks.peers.peer import Peer
from server.local_triton import program

PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        *ours.PEERS,
        triton.PEER,
        mosec.PEER,
        mlserver.PEER,
        kserve.PEER,
        bentoml.PEER,
        litserve.PEER,
        ray.PEER,
    )
}

PACKAGES = {
    "triton": (program.REQUIREMENTS, "nvidia-pytriton"),
    **{
        name: (REQUIREMENTS / f"{name}.txt", name)
        for name in ("mosec", "mlserver", "kserve", "bentoml", "litserve", "ray")
    },
}
"""The requirements file and the package whose version names a peer's."""


def chosen(only: str | None) -> dict[str, Peer]:
    """Those whose name, or the part before its hyphen, is in the list that commas separate; None: all.

    Raises:
        ValueError: a name is not known.
    """
    if only is None:
        return dict(PEERS)
    found: dict[str, Peer] = {}
    for name in only.split(","):
        matching = {key: peer for key, peer in PEERS.items() if name in (key, key.partition("-")[0])}
        if not matching:
            raise ValueError(f"{name!r} is none of {', '.join([*PEERS, 'ours'])}")
        found.update(matching)
    return found


def versions() -> dict[str, str]:
    """The pinned version of each peer."""
    found = {}
    for name, (file, package) in PACKAGES.items():
        match = re.search(rf"^{re.escape(package)}==(\S+)$", file.read_text(), re.MULTILINE)
        found[name] = f"{package} {match[1]}" if match else package
    return found
