"""The repository of a soak: one network under three names, so that the counts of each tell what was asked of it."""

from __future__ import annotations

from pathlib import Path

from loadtests.models import Network, between, tiny_mlp

STEADY, SPOILT, ABRUPT, PICTURES = "steady", "spoilt", "abrupt", "digits"
"""Asked as it should be; by requests that arrive for certain, but whose callers do not stay; by requests of which
nobody knows whether they arrive; and the shipped classifier of pictures."""

SHIPPED = Path(__file__).parents[2] / "model_repository"


def save(repository: Path, *, tiny: bool = False) -> Network:
    """Write it. `tiny`: passes of microseconds in place of about half a millisecond."""
    network = tiny_mlp() if tiny else between(layers=1, channels=16, width=256)
    repository.mkdir(parents=True)
    for name in (STEADY, SPOILT, ABRUPT):
        network.save(repository, name)
    (repository / PICTURES).symlink_to(SHIPPED / PICTURES)
    return network
