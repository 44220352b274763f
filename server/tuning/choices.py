"""What is tried: a point of the space of configurations, and the config.pbtxt that it makes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.proto.triton import model_config_pb2 as pb

_THREADS = "intra_op_thread_count"
_DELAYS_US = (-1, 500, 2_000)
_CAPS, _STEP = 4, 2
"""So many batch sizes, each by so many powers of two smaller than the one before."""


@dataclass(frozen=True, order=True)
class Choice:
    workers: int
    """Of the server: `--workers`, which no config.pbtxt holds."""
    instances: int
    """For each instance group."""
    threads: int
    """Of one forward pass; 0: the server's choice."""
    max_batch_size: int
    delay_us: int
    """max_queue_delay_microseconds; -1: left to the server."""

    def __str__(self) -> str:
        threads = self.threads or "auto"
        delay = "auto" if self.delay_us < 0 else f"{self.delay_us} us"
        return (
            f"workers {self.workers}, instances {self.instances}, threads {threads}, batch {self.max_batch_size}, "
            f"delay {delay}"
        )


def present(config: pb.ModelConfig) -> Choice:
    """What a config says."""
    groups = [group.count for group in config.instance_group if group.count]
    threads = config.parameters[_THREADS].string_value if _THREADS in config.parameters else ""
    delay = config.dynamic_batching.max_queue_delay_microseconds
    return Choice(
        workers=1,
        instances=max(groups, default=1),
        threads=int(threads) if threads.isdecimal() else 0,
        max_batch_size=config.max_batch_size,
        delay_us=delay or -1,
    )


def applied(config: pb.ModelConfig, choice: Choice) -> pb.ModelConfig:
    """`config` with the choice in it, and all else as it was."""
    made = pb.ModelConfig()
    made.CopyFrom(config)
    before = present(config)
    made.max_batch_size = choice.max_batch_size
    if choice.instances != before.instances:
        if not made.instance_group:
            made.instance_group.add()
        for group in made.instance_group:
            group.count = choice.instances
    if choice.threads != before.threads:
        if _THREADS in made.parameters:
            del made.parameters[_THREADS]
        if choice.threads:
            made.parameters[_THREADS].string_value = str(choice.threads)
    if choice.delay_us != before.delay_us:
        made.dynamic_batching.ClearField("max_queue_delay_microseconds")
        if choice.delay_us >= 0:
            made.dynamic_batching.max_queue_delay_microseconds = choice.delay_us
    if choice.max_batch_size != before.max_batch_size and made.HasField("dynamic_batching"):
        fitting = [size for size in made.dynamic_batching.preferred_batch_size if size <= choice.max_batch_size]
        del made.dynamic_batching.preferred_batch_size[:]
        made.dynamic_batching.preferred_batch_size.extend(fitting)
    return made


def axes(first: Choice, cores: int, batches: bool) -> Mapping[str, Sequence[int]]:
    """The values of each field that are tried. `first` is the config's own, whose batch is the largest that the model
    allows. `batches`: the config has dynamic_batching."""
    counts = _doubling(cores)
    found: dict[str, Sequence[int]] = {"workers": counts, "instances": [*counts, cores + 1], "threads": [0, *counts]}
    if batches and first.max_batch_size > 1:
        caps = {max(1, first.max_batch_size >> (_STEP * power)) for power in range(_CAPS)}
        found["max_batch_size"] = sorted(caps, reverse=True)
        found["delay_us"] = _DELAYS_US
    return found


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... and the most."""
    return sorted({*(1 << power for power in range(most.bit_length())), most})
