"""Both servers asked the same, and their answers side by side.

metadata, config     equal but for what names the engine
infer                golden rows in batches and alone, then seeded random requests; within a tolerance
statistics           what those requests added, counted alike
refusals             requests with one fault each: the same code
predict              the raw golden inputs, where both sides have a pipeline
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from server.client import ClientError
from server.comparison.lines import Line, told
from server.comparison.questions import Question, faulty_questions, golden_questions, random_questions
from server.comparison.side import Counts, Side
from server.proto.triton import model_config_pb2 as pb
from server.repository.certificate import DEFAULT_TOLERANCE, Manifest, Tolerance, read_manifest
from server.repository.golden import read_golden, read_raw
from server.repository.replay import compare
from server.tensor import Array, TensorSpec
from server.types import ModelMetadata

_NO_SCHEDULING = "none: requests are not merged"
_COUNTED = ("requests answered", "rows", "passes")
_PATIENCE_S = 5.0
"""How long counts that differ are looked at again, every so often."""
_LOOK_S = 0.05


@dataclass(frozen=True)
class Comparison:
    """The model of `folder` on both sides. `tolerance`: of all outputs; None: the manifest's, else the default one."""

    folder: Path
    embedded: Side
    triton: Side
    seed: int = 0
    num_random: int = 20
    tolerance: Tolerance | None = None

    def lines(self) -> Iterator[Line]:
        """What is found, one by one.

        Raises:
            ClientError, grpc.RpcError: a side does not answer.
            ModelLoadFailed: the golden files or the manifest are damaged.
        """
        model = self.folder.name
        ours, theirs = (side.metadata(model) for side in self._sides)
        yield from _metadata_lines(ours, theirs)
        for version in ours.versions:
            if version in theirs.versions:
                yield from self._version_lines(version, ours)

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self.embedded, self.triton

    def _version_lines(self, version: str, metadata: ModelMetadata) -> Iterator[Line]:
        model = self.folder.name
        ours, theirs = (side.config(model, version) for side in self._sides)
        yield from _config_lines(f"version {version}: config", ours, theirs)
        golden, most = read_golden(self.folder, version), ours.max_batch_size
        known = list(golden_questions(golden, most)) if golden else []
        made = list(random_questions(metadata.inputs, most, golden, self.seed, self.num_random, model))
        before = self._counts(version)
        yield from [self._infer_line(version, question) for question in known]
        yield from self._random_lines(version, made)
        yield from _statistics_lines(version, self._added(version, before))
        for question in faulty_questions((known or made)[0], most) if known or made else ():
            answers = [side.infer(model, version, question) for side in self._sides]
            yield told(f"version {version}: refused, {question.what}", *(_outcome(answer) for answer in answers))

    def _random_lines(self, version: str, questions: Sequence[Question]) -> Iterator[Line]:
        """One line for all that agree, and one for each that does not."""
        lines = [self._infer_line(version, question) for question in questions]
        alike = [line for line in lines if line.verdict == "same"]
        if alike:
            refused = sum(line.embedded.startswith("error") for line in alike)
            what = f"version {version}: {len(alike)} random requests, seed {self.seed}"
            yield Line(what, f"{len(alike) - refused} answered, {refused} refused", alike[-1].triton, "same")
        yield from (line for line in lines if line.verdict != "same")

    def _infer_line(self, version: str, question: Question) -> Line:
        what = f"version {version}: {question.what}"
        ours, theirs = (side.infer(self.folder.name, version, question) for side in self._sides)
        if isinstance(ours, ClientError) or isinstance(theirs, ClientError) or set(ours) != set(theirs):
            return told(what, _outcome(ours), _outcome(theirs))
        found = {name: compare(theirs[name], ours[name], self._tolerance(version, name)) for name in ours}
        problems = [f"{name} {problem.replace('golden', 'embedded')}" for name, problem in found.items() if problem]
        if problems:
            return Line(what, _outcome(ours), "; ".join(problems), "DIFFERS")
        return Line(what, _outcome(ours), f"off by {_farthest(theirs, ours):.1e} at most", "same")

    def _tolerance(self, version: str, output: str) -> Tolerance:
        if self.tolerance is not None:
            return self.tolerance
        if self._manifest is None or version not in self._manifest.versions:
            return DEFAULT_TOLERANCE
        return self._manifest.versions[version].tolerances.get(output, DEFAULT_TOLERANCE)

    @cached_property
    def _manifest(self) -> Manifest | None:
        return read_manifest(self.folder)

    def _added(self, version: str, before: Sequence[Counts]) -> list[list[int]]:
        """To the counts of either side, once they agree. Triton answers first and counts then, maybe a while later."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            both = zip(before, self._counts(version), strict=True)
            added = [[late - early for early, late in zip(*pair, strict=True)] for pair in both]
            if added[0] == added[1] or time.monotonic() > until:
                return added
            time.sleep(_LOOK_S)

    def _counts(self, version: str) -> list[Counts]:
        return [side.counts(self.folder.name, version) for side in self._sides]


def predict_lines(folder: Path, embedded: Side, over_triton: Side) -> Iterator[Line]:
    """The raw golden inputs of the model, through a gateway with each engine behind it."""
    for index, raw in enumerate(read_raw(folder)):
        yield told(
            f"predict: raw golden input {index}", *(s.predict(folder.name, raw) for s in (embedded, over_triton))
        )


def _metadata_lines(ours: ModelMetadata, theirs: ModelMetadata) -> Iterator[Line]:
    yield told("metadata: platform", ours.platform, theirs.platform, may_differ=True)
    yield told("metadata: versions", ", ".join(ours.versions), ", ".join(theirs.versions))
    for name in ("inputs", "outputs"):
        yield told(f"metadata: {name}", _tensors(getattr(ours, name)), _tensors(getattr(theirs, name)))


def _tensors(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.dims)}" for spec in specs)


def _config_lines(where: str, ours: pb.ModelConfig, theirs: pb.ModelConfig) -> Iterator[Line]:
    """Not the whole of it: a server writes into what it tells what it takes for granted."""
    yield told(f"{where}, max_batch_size", ours.max_batch_size, theirs.max_batch_size)
    for name in ("input", "output"):
        yield told(f"{where}, {name}", *(_in_a_line(getattr(config, name)) for config in (ours, theirs)))
    chosen = [config.WhichOneof("scheduling_choice") or _NO_SCHEDULING for config in (ours, theirs)]
    yield told(f"{where}, scheduling", *chosen)


def _in_a_line(messages: Iterable[object]) -> str:
    return "; ".join(" ".join(str(message).split()) for message in messages)


def _statistics_lines(version: str, added: Sequence[Sequence[int]]) -> Iterator[Line]:
    for what, one, other in zip(_COUNTED, *added, strict=True):
        yield told(f"version {version}: statistics, {what}", one, other)


def _outcome(answer: Mapping[str, Array] | ClientError) -> str:
    if isinstance(answer, ClientError):
        return f"error {answer.code}"
    return ", ".join(f"{name} {list(array.shape)}" for name, array in sorted(answer.items()))


def _farthest(theirs: Mapping[str, Array], ours: Mapping[str, Array]) -> float:
    """The largest difference between two numbers that are finite; strings and flags are equal by now."""
    farthest = 0.0
    for name, array in ours.items():
        if array.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                off = np.abs(theirs[name].astype(np.float64) - array.astype(np.float64))
            farthest = max(farthest, float(np.nanmax(off, initial=0.0, where=np.isfinite(off))))
    return farthest
