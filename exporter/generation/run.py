"""A run folder: from texts to a trained model, a built one, a certified and published one; each step is reported.

runs/<name>/config.yaml, checkpoint.pt     as of other recipes; a run that was killed goes on with --resume
            trained/                       the trained model, as transformers reads it
            built/                         the same, as the server reads it
            evaluation.json                perplexity on held-out text, beside a bigram table's
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import onnx
import yaml
from pydantic import ValidationError

from exporter.errors import RunError, UsageError
from exporter.generation.build import build, save
from exporter.generation.certify import Certified, certify, of_trained
from exporter.generation.config import GenerationConfig
from exporter.generation.corpus import read_corpus
from exporter.generation.measure import bigram_perplexity, perplexity
from exporter.generation.publish import publish, stage
from exporter.generation.task import GenerationTask, merged
from exporter.publish import Published
from exporter.recipes.base import Split, Task
from exporter.run import train
from server.repository.certificate import DataRecord, RowCounts, Tolerance, VersionRecord

CONFIG_FILE, DATA_FILE, EVALUATION_FILE = "config.yaml", "data.json", "evaluation.json"
_GOLDEN = 6
_GOLDEN_CHARACTERS = 60

Report = Callable[[str, Sequence[str]], None]


def make_config(**said: Any) -> GenerationConfig:
    """Raises UsageError: a value is out of range."""
    try:
        return GenerationConfig.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error


class GenerationRun:
    """A run folder with its data."""

    def __init__(self, folder: Path, config: GenerationConfig, report: Report, *, resume: bool) -> None:
        """Raises DataError, UsageError, RunError: the folder belongs to another configuration."""
        self.folder, self.config, self._report = folder, config, report
        self._open(resume=resume)
        self.corpus = read_corpus(config.data)
        self._hold_to(self.corpus.sha256)
        report("collect", [self.corpus.source, f"sha256 {self.corpus.sha256[:12]}"])
        self.task = GenerationTask(config, self.corpus)
        counted = ", ".join(f"{split.value} {len(tokens):,}" for split, tokens in self.task.tokens.items())
        report("prepare", [*self.corpus.lines, f"tokens: {counted}; vocabulary {len(self.task.tokenizer):,}"])

    def _open(self, *, resume: bool) -> None:
        path = self.folder / CONFIG_FILE
        if resume:
            if not path.exists():
                raise RunError(f"{self.folder} is no run folder: it has no {CONFIG_FILE}")
            if GenerationConfig.model_validate(yaml.safe_load(path.read_text())) != self.config:
                raise RunError(f"{self.folder} has another configuration; run without --resume")
            return
        if self.folder.exists() and any(self.folder.iterdir()) and not path.exists():
            raise RunError(f"{self.folder} is not empty and is no run folder; name another with --run-dir")
        if self.config.base and Path(self.config.base).resolve().is_relative_to(self.folder.resolve()):
            raise UsageError(f"--base {self.config.base} is in {self.folder}, which a new run empties: name another")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        path.write_text(yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))

    def _hold_to(self, sha256: str) -> None:
        """A run goes on with the texts that it began with."""
        path = self.folder / DATA_FILE
        if path.exists() and json.loads(path.read_text())["sha256"] != sha256:
            raise RunError(f"the texts at {self.config.data} are not what {self.folder} was trained on; train anew")
        path.write_text(json.dumps({"sha256": sha256}) + "\n")

    @cached_property
    def model(self) -> Any:
        """Trained, with its best weights, in evaluation mode."""
        config = self.config
        task = cast("Task", self.task)  # of which the loop uses what it trains by
        network = train(task, config.training, config.seed, self.folder, threads=config.threads)
        model = merged(network).eval()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        how = f"from {config.base}" if config.base else "from scratch"
        self._report("train", [f"{parameters:,} parameters, {how}; in {self.folder}"])
        return model

    @property
    def held_out(self) -> Any:
        return self.task.tokens[Split.TEST]

    def evaluate(self) -> tuple[float, float]:
        """Perplexity on the test split: of the model, and of a bigram table."""
        window = self.config.window
        own = perplexity(of_trained(self.model), self.held_out, window)
        table = bigram_perplexity(self.task.tokens[Split.TRAIN], self.held_out, len(self.task.tokenizer), window)
        told = {"perplexity": own, "bigram": table}
        (self.folder / EVALUATION_FILE).write_text(json.dumps(told, indent=2) + "\n")
        self._report(
            "evaluate", [f"perplexity {own:.2f} on {len(self.held_out):,} held-out tokens (bigram: {table:.2f})"]
        )
        return own, table

    def export(self) -> Path:
        """Raises ExportError."""
        trained, built = self.folder / "trained", self.folder / "built"
        for folder in (trained, built):
            shutil.rmtree(folder, ignore_errors=True)
        save(self.model, self.task.tokenizer, trained)
        build(trained, built, self.config.precision)
        shutil.rmtree(built / ".cache", ignore_errors=True)
        size = sum(path.stat().st_size for path in built.iterdir())
        self._report("export", [f"{built}: {size:,} bytes, {self.config.precision}"])
        return built

    def verify(self) -> Certified:
        """In a folder of its own. Raises VerifyError."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            folder = Path(place) / self.config.name
            folder.mkdir()
            stage(folder, self.folder / "built", self.config.name)
            return self._certify(folder, "1")[0]

    def publish(self, repository: Path, *, replace: bool) -> Published:
        """Raises PublishError, VerifyError."""
        built = self.folder / "built"
        published = publish(built, self.config.name, repository, self._certify, replace=replace)
        self._report("publish", [f"{published.folder}, version {published.version}"])
        return published

    def _certify(self, folder: Path, version: str) -> tuple[Certified, VersionRecord]:
        prompts = [text[:_GOLDEN_CHARACTERS] for text in self.corpus.passages[Split.TEST][:_GOLDEN]]
        found = certify(folder, version, self.config, self.model, prompts, self.held_out)
        own, table = self.evaluate()
        self._report(
            "verify",
            [
                f"{found.same_tokens:.0%} of {len(prompts)} golden prompts get transformers' tokens",
                f"perplexity {found.perplexity:.2f} at {self.config.precision}, {found.perplexity / own - 1:+.2%}",
            ],
        )
        return found, self._record(folder / version, found, own, table)

    def _record(self, folder: Path, found: Certified, own: float, table: float) -> VersionRecord:
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        sizes = {split.value: self.task.size(split) for split in Split}
        return VersionRecord(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            opset=max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx")),
            ir_version=model.ir_version,
            seed=self.config.seed,
            data=DataRecord(source=self.corpus.source, sha256=self.corpus.sha256, rows=RowCounts(**sizes)),
            metrics={
                "perplexity": found.perplexity,
                "perplexity_trained": own,
                "same_tokens_as_transformers": found.same_tokens,
            },
            baseline={"name": "bigram table", "perplexity": table},
            environment={
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers", "onnxruntime", "onnxruntime-genai")},
                "precision": self.config.precision,
                # Also of what is for a GPU: golden texts and perplexity are those of ONNX Runtime's CPU kernels.
                "verified_on": "cpu",
                "machine": f"{platform.system()} {platform.machine()}",
            },
            tolerances={"text_output": Tolerance(atol=0, rtol=0)},
            errors={},
        )
