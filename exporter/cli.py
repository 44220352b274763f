"""The commands of the exporter. `forwardpass` mounts them; ``python -m exporter`` has them alone.

PyTorch is imported by the commands, not by this module: help is quick.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from exporter.errors import ExporterError

commands = typer.Typer(
    help="Train a model, export it to ONNX, verify it, and publish it into a model repository.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunFolder = Annotated[Path, typer.Argument(help="The run's folder, for example runs/digits.")]
Repository = Annotated[Path, typer.Option(help="The model repository to publish into.")]
Replace = Annotated[bool, typer.Option("--replace", help="Take the place of a model that is there, all versions.")]
INTERRUPTED = 130
DEFAULT_REPOSITORY = Path("model_repository")


@commands.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="For example tabular-classification; an unknown one is answered with all.")
    ],
    data: Annotated[
        str, typer.Option(help="A bundled data set's name (digits, fraud, ...), or the path of a folder or file.")
    ],
    name: Annotated[str, typer.Option(help="The model's name in the repository.")],
    target: Annotated[str, typer.Option(help="The column to predict, for a CSV or Parquet file.")] = "",
    split: Annotated[str, typer.Option(help="random, time or group; the last two with --split-column.")] = "random",
    split_column: Annotated[str, typer.Option(help="The column of times or groups to split by; no feature.")] = "",
    interval: Annotated[
        float | None, typer.Option(help="Regression: the share of rows that intervals are for.")
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where checkpoints go; runs/NAME if not given.")] = None,
    repository: Repository = DEFAULT_REPOSITORY,
    seed: Annotated[int, typer.Option(help="Decides the split, the first weights and all else that is random.")] = 0,
    threads: Annotated[int, typer.Option(help="PyTorch's threads on the CPU; part of what decides the result.")] = 1,
    epochs: Annotated[int | None, typer.Option(help="At most this many; the recipe's own if not given.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a training batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The peak of the schedule.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without improvement before training stops.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in its folder.")] = False,
    publish: Annotated[bool, typer.Option(help="Publish the model once it is verified.")] = True,
    replace: Replace = False,
) -> None:
    """Train a recipe on data, evaluate it, export, verify and publish the model.

    Exit codes: 2 usage, 3 data, 4 run folder, 5 export, 6 verification failed, 7 the repository refused.
    """
    with _reported():
        from exporter.steps import Run, make_config

        changes = {"recipe": recipe, "data": data, "name": name, "target": target, "seed": seed, "threads": threads}
        changes |= {"split": split, "split_column": split_column, "interval": interval}
        training: dict[str, Any] = {
            key: value
            for key, value in (
                ("epochs", epochs),
                ("batch_size", batch_size),
                ("learning_rate", learning_rate),
                ("patience", patience),
            )
            if value is not None
        }
        config = make_config(changes, training)
        run = Run.start(run_dir or Path("runs") / config.name, config, _report, resume=resume)
        run.train()
        run.export()
        if publish:
            run.publish(repository, replace=replace)
        else:
            run.verify()


@commands.command()
def export(run_dir: RunFolder) -> None:
    """Export the trained network of a run to ONNX."""
    with _reported():
        from exporter.steps import Run

        run = Run.open(run_dir, _report)
        run.train()
        run.export()


@commands.command()
def verify(run_dir: RunFolder) -> None:
    """Compare the exported model of a run with the trained network, in ONNX Runtime."""
    with _reported():
        from exporter.steps import Run

        Run.open(run_dir, _report).verify()


@commands.command()
def publish(run_dir: RunFolder, repository: Repository = DEFAULT_REPOSITORY, replace: Replace = False) -> None:
    """Verify the exported model of a run and publish it: a new model, or a further version of one."""
    with _reported():
        from exporter.steps import Run

        Run.open(run_dir, _report).publish(repository, replace=replace)


def _report(step: str, lines: Sequence[str]) -> None:
    for index, line in enumerate(lines):
        typer.echo(f"{step if index == 0 else '':<10}{line}")


@contextmanager
def _reported() -> Iterator[None]:
    """An error of ours becomes one line and its exit code; Ctrl-C leaves a run that can be resumed."""
    try:
        yield
    except ExporterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.echo("interrupted; go on with the same command and --resume", err=True)
        raise typer.Exit(INTERRUPTED) from None
