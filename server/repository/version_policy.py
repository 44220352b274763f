"""`version_policy` of config.pbtxt: which versions of a model are served."""

from __future__ import annotations

from dataclasses import dataclass

from server.proto.triton import model_config_pb2 as pb
from server.repository.refuse import Refuse


@dataclass(frozen=True, slots=True)
class Latest:
    """The `num_versions` highest versions. Source: ModelVersionPolicy.Latest."""

    num_versions: int = 1


@dataclass(frozen=True, slots=True)
class All:
    """Every version."""


@dataclass(frozen=True, slots=True)
class Specific:
    """Just these versions, ascending; one that is not there is reported as failed."""

    versions: tuple[int, ...]


VersionPolicy = Latest | All | Specific

LATEST = Latest()
"""Of a config that says nothing."""


def read_version_policy(message: pb.ModelConfig, refuse: Refuse) -> VersionPolicy:
    policy = message.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return All()
    if choice == "specific":
        versions = tuple(sorted(set(policy.specific.versions)))
        if not versions or versions[0] < 1:
            refuse("version_policy.specific.versions", "needs at least one version, each 1 or more")
        return Specific(versions)
    return Latest(policy.latest.num_versions or 1)
