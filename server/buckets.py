"""Length buckets: requests of like length share a batch, each padded to the length of its bucket.

A model opts in, in its config.pbtxt, since only a model that masks what was added gives the answers that it would
give without. Each of its inputs has one dimension of any size or none, and those that have one say one length.

How long a pass is: on a CPU as long as its longest request, which is less work, and there a shape that comes for the
first time costs no more than one that came before (`loadtests.benchmarks.padding` measures both). Elsewhere a pass has
the length of its bucket: an accelerator picks kernels, plans memory or builds an engine by shape, and the few shapes of
the buckets are warmed up before the first caller comes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Buckets:
    """The buckets of one model, and where its tensors have their length."""

    lengths: tuple[int, ...]
    """Ascending, 1 or more each."""
    inputs: Mapping[str, int]
    """Of each input that has a length, which of its dims that is (the batch dimension is not counted)."""
    outputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of each output that follows the length, in which of its dims."""
    pad_values: Mapping[str, float | int] = field(default_factory=dict)
    """By input; 0 where there is none."""

    def padded(self, length: int) -> int:
        """The bucket of a request of `length`. Beyond the largest one each length is a bucket of its own."""
        place = bisect_left(self.lengths, length)
        return self.lengths[place] if place < len(self.lengths) else length

    def length(self, tensor: Tensor) -> int | None:
        """The length that an input of a request has; None if it is one without."""
        position = self.inputs.get(tensor.name)
        return None if position is None else tensor.shape[position + 1]
