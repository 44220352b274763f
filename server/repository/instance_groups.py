"""`instance_group` of config.pbtxt: how many copies of a model run, and where."""

from __future__ import annotations

from server.engine.base import InstanceGroup
from server.proto.triton import model_config_pb2 as pb
from server.repository.refuse import Refuse


def read_instance_groups(message: pb.ModelConfig, refuse: Refuse) -> tuple[InstanceGroup, ...]:
    groups = []
    for index, group in enumerate(message.instance_group):
        path = f"instance_group[{index}]"
        kinds = pb.ModelInstanceGroup.Kind
        kind = kinds.Name(group.kind) if group.kind in kinds.values() else str(group.kind)
        if kind not in ("KIND_AUTO", "KIND_CPU", "KIND_GPU"):
            refuse(f"{path}.kind", f"{kind} is not served here; write KIND_CPU, KIND_GPU or KIND_AUTO")
        if group.count < 0:
            refuse(f"{path}.count", f"is {group.count}, it must be 1 or more")
        if group.gpus and kind == "KIND_CPU":
            refuse(f"{path}.gpus", "is set on a group of KIND_CPU")
        if any(gpu < 0 for gpu in group.gpus):
            refuse(f"{path}.gpus", "has a negative device number")
        groups.append(InstanceGroup(kind, group.count or 1, tuple(group.gpus), group.name))
    return tuple(groups) or (InstanceGroup(),)
