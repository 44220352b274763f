"""The commands of the exporter. `forwardpass` mounts them; ``python -m exporter`` has them alone.

PyTorch is imported by the commands, not by this module: help is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from exporter.errors import UsageError
from exporter.generation.command import text_generation
from exporter.reporting import report as _report
from exporter.reporting import reported as _reported

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
Processing = Annotated[Path | None, typer.Option(help="A processing.yaml for it; without one it is infer only.")]
Beside = Annotated[
    list[Path] | None,
    typer.Option("--file", help="What processing.yaml names, labels.txt for example; again for more."),
]
MaxBatchSize = Annotated[int, typer.Option(min=1, help="Rows of a batch, where the model has a free batch dimension.")]
DEFAULT_MAX_BATCH_SIZE = 64
DEFAULT_REPOSITORY = Path("model_repository")


@commands.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="For example tabular-classification; an unknown one is answered with all.")
    ] = "",
    data: Annotated[
        str, typer.Option(help="A bundled data set's name (digits, fraud, ...), or the path of a folder or file.")
    ] = "",
    name: Annotated[str, typer.Option(help="The model's name in the repository.")] = "",
    from_run: Annotated[
        Path | None, typer.Option(help="Repeat this run, in runs/NAME-again; what it was trained with is not given.")
    ] = None,
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
    encoder: Annotated[str | None, typer.Option(help="Texts: a pretrained encoder's local folder, or minilm.")] = None,
    tuning: Annotated[str | None, typer.Option(help="Texts: full, partial or frozen: what of it is trained.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Texts: tokens that are seen; more are cut.")] = None,
    vocabulary: Annotated[int | None, typer.Option(help="Texts: tokens of a tokenizer trained on the data.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Of the rate: one-cycle, cosine or constant.")] = None,
    gradient_clip: Annotated[float | None, typer.Option(help="The largest norm of a gradient; 0: as it is.")] = None,
    class_weights: Annotated[str | None, typer.Option(help="balanced: rare labels count as much as others.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed, or on a GPU 16-mixed.")] = None,
    devices: Annotated[int | None, typer.Option(help="GPUs, or processes, that share each batch.")] = None,
    tensorboard: Annotated[bool | None, typer.Option("--tensorboard", help="Keep logs for TensorBoard.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in its folder.")] = False,
    publish: Annotated[bool, typer.Option(help="Publish the model once it is verified.")] = True,
    replace: Replace = False,
) -> None:
    """Train a recipe on data, evaluate it, export, verify and publish the model.

    Exit codes: 2 usage, 3 data, 4 run folder, 5 export, 6 verification failed, 7 the repository refused.
    """
    with _reported():
        from exporter.config import make_config
        from exporter.folder import read_config
        from exporter.steps import Run

        given = {"recipe": recipe, "data": data, "name": name, "target": target, "seed": seed, "threads": threads}
        given |= {"split": split, "split_column": split_column, "interval": interval}
        training = _given(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            patience=patience,
            schedule=schedule,
            gradient_clip=gradient_clip,
            class_weights=class_weights,
            precision=precision,
            devices=devices,
            tensorboard=tensorboard,
        )
        text = _given(encoder=encoder, tuning=tuning, max_length=max_length, vocabulary=vocabulary)
        if from_run is not None:
            _refuse_beside_from_run(
                {"RECIPE": recipe, "--data": data, "--name": name, "--target": target, "--split-column": split_column},
                training | text,
            )
            again = run_dir or Path("runs") / f"{read_config(from_run).name}-again"
            run = Run.repeat(from_run, again, _report, resume=resume)
        else:
            _require({"RECIPE": recipe, "--data": data, "--name": name})
            config = make_config(given | {"text": text or None}, training)
            run = Run.start(run_dir or Path("runs") / config.name, config, _report, resume=resume)
        run.train()
        run.write_report()
        run.export()
        if publish:
            run.publish(repository, replace=replace)
        else:
            run.verify()


@commands.command()
def export(
    what: Annotated[str, typer.Argument(help="A run's folder, or module:callable, which gives a PyTorch module.")],
    example_inputs: Annotated[
        str, typer.Option(help="Of a module: FILE.npz, module:function, or like image=FP32[2,3,32,32].")
    ] = "",
    name: Annotated[str, typer.Option(help="Of a module: the model's name in the repository.")] = "",
    processing: Processing = None,
    beside: Beside = None,
    max_batch_size: MaxBatchSize = DEFAULT_MAX_BATCH_SIZE,
    repository: Repository = DEFAULT_REPOSITORY,
    replace: Replace = False,
) -> None:
    """Export the trained network of a run to ONNX; or any PyTorch module, and publish it."""
    with _reported():
        if ":" not in what or Path(what).exists():
            if example_inputs or name or processing or beside:
                raise UsageError(
                    "--example-inputs, --name, --processing, --file: for module:callable; a run has its own"
                )
            from exporter.steps import Run

            run = Run.open(Path(what), _report)
            run.train()
            run.export()
            return
        if not example_inputs or not name:
            raise UsageError("--example-inputs and --name: a module needs both")
        from exporter import brought, callables

        given = brought.Processing(processing, tuple(beside or ()))
        callables.export_callable(
            what,
            example_inputs,
            name,
            repository,
            _report,
            processing=given,
            max_batch_size=max_batch_size,
            replace=replace,
        )


@commands.command("import")
def import_model(
    path: Annotated[Path, typer.Argument(help="An .onnx file, or a local folder of Hugging Face's form.")],
    name: Annotated[str, typer.Option(help="The model's name in the repository.")],
    example_inputs: Annotated[
        Path | None, typer.Option(help="Of an .onnx: golden inputs by name, an .npz; made up if not given.")
    ] = None,
    processing: Processing = None,
    beside: Beside = None,
    max_batch_size: MaxBatchSize = DEFAULT_MAX_BATCH_SIZE,
    repository: Repository = DEFAULT_REPOSITORY,
    replace: Replace = False,
) -> None:
    """Publish a model that was made elsewhere: a ready ONNX file, or a folder by the task that its files name."""
    with _reported():
        if path.suffix != ".onnx":
            if example_inputs or processing or beside:
                raise UsageError("--example-inputs, --processing, --file: for an .onnx file; a folder says it itself")
            from exporter.importing import import_path

            import_path(path, name, repository, _report, replace=replace)
            return
        from exporter import brought, ready

        given = brought.Processing(processing, tuple(beside or ()))
        ready.import_onnx(
            path,
            name,
            repository,
            _report,
            processing=given,
            examples=example_inputs,
            max_batch_size=max_batch_size,
            replace=replace,
        )


@commands.command()
def card(folder: Annotated[Path, typer.Argument(help="A published model's folder.")]) -> None:
    """Write README.md of a published model anew, from its manifest."""
    with _reported():
        from exporter.card import write_card
        from exporter.errors import DataError
        from server.errors import ServingError

        try:
            _report("card", [str(write_card(folder))])
        except ServingError as error:
            raise DataError(str(error)) from error


@commands.command()
def certify(
    folder: Annotated[Path, typer.Argument(help="A published model's folder.")],
    data: Annotated[str, typer.Option(help="What it was trained on, as for train.")] = "",
    target: Annotated[str, typer.Option(help="The column that it predicts, as for train.")] = "",
    from_run: Annotated[
        Path | None, typer.Option(help="Its run, where it was trained with more options than these two.")
    ] = None,
) -> None:
    """Write the certificate of a model that was published before anew, with all that one has by now."""
    with _reported():
        from exporter.folder import read_config
        from exporter.recertify import Trained, certify_again

        if from_run is not None:
            _refuse_beside_from_run({"--data": data, "--target": target}, {})
        else:
            _require({"--data": data})
        certify_again(folder, read_config(from_run) if from_run else Trained(data, target), _report)


@commands.command()
def verify(run_dir: RunFolder) -> None:
    """Compare the exported model of a run with the trained network, in ONNX Runtime."""
    with _reported():
        from exporter.steps import Run

        Run.open(run_dir, _report).verify()


@commands.command()
def publish(
    run_dir: RunFolder,
    repository: Repository = DEFAULT_REPOSITORY,
    accelerator: Annotated[
        list[str] | None,
        typer.Option(help="Of GPUs, into config.pbtxt: tensorrt, cuda, or tensorrt:precision_mode=FP16,..."),
    ] = None,
    replace: Replace = False,
) -> None:
    """Verify the exported model of a run and publish it: a new model, or a further version of one."""
    with _reported():
        from exporter import publish as publishing
        from exporter.steps import Run

        wanted = tuple(publishing.accelerator(text) for text in accelerator or ())
        Run.open(run_dir, _report).publish(repository, replace=replace, accelerators=wanted)


@commands.command()
def quantize(
    run_dir: RunFolder,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="optimized, int8-dynamic, int8-static or fp16; again for more. All if none."),
    ] = None,
    max_metric_drop: Annotated[
        float, typer.Option(min=0, help="How much of the recipe's first metric may be lost.")
    ] = 0.01,
    publish: Annotated[
        str, typer.Option(help="A variant to publish, or best: the quickest of those within it, if quicker than fp32.")
    ] = "",
    name: Annotated[str, typer.Option("--as", help="The model to publish it as; NAME-VARIANT if not given.")] = "",
    repository: Repository = DEFAULT_REPOSITORY,
    replace: Replace = False,
) -> None:
    """Make smaller and faster copies of a run's model, measure them beside it, and publish one that loses little."""
    with _reported():
        from exporter import variants
        from exporter.quantize import VARIANTS
        from exporter.steps import Run

        run = Run.open(run_dir, _report)
        comparison = variants.compare(run, variant or list(VARIANTS), max_metric_drop)
        _report("quantize", [*variants.table(comparison), f"with a plot in {run_dir / variants.FOLDER}"])
        if publish:
            variants.publish(run, comparison, publish, repository, name=name, replace=replace)


@commands.command()
def tensorrt(
    run_dir: RunFolder,
    repository: Annotated[
        Path, typer.Option(help="Where the run's model is published: its config.pbtxt has the batches.")
    ] = DEFAULT_REPOSITORY,
    fp16: Annotated[bool, typer.Option("--fp16", help="Of the FP16 copy of the model.")] = False,
    workspace_mib: Annotated[int, typer.Option(min=16, help="Memory that TensorRT may use to build, in MiB.")] = 2048,
) -> None:
    """Build a TensorRT plan of a run's model, on the kind of GPU that will serve it."""
    with _reported():
        from exporter.folder import read_config
        from exporter.tensorrt import build_for

        plan, served = build_for(
            run_dir, repository / read_config(run_dir).name, half=fp16, workspace_mib=workspace_mib
        )
        _report("tensorrt", [f"{plan}: {plan.stat().st_size:,} bytes", f"in config.pbtxt: {served}"])


def _require(values: dict[str, str]) -> None:
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise UsageError(f"{', '.join(missing)}: missing; or repeat an earlier run with --from-run")


def _refuse_beside_from_run(values: dict[str, str], more: dict[str, Any]) -> None:
    told = [name for name, value in values.items() if value]
    told += [f"--{name.replace('_', '-')}" for name in more]
    if told:
        raise UsageError(f"{', '.join(told)}: not beside --from-run, which repeats what the run was trained with")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


commands.command()(text_generation)
