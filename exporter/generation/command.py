"""``exporter text-generation``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from exporter.reporting import report, reported


def text_generation(
    data: Annotated[str, typer.Option(help="A file or folder of texts (.txt, .md, .rst), or handbook.")],
    name: Annotated[str, typer.Option(help="The model's name in the repository.")],
    base: Annotated[str, typer.Option(help="A folder of a causal model to fine-tune; from scratch if empty.")] = "",
    lora_rank: Annotated[int, typer.Option(help="Fine-tune matrices of this rank beside the weights; 0: all.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32, int4 or int8 for the CPU, fp16 for CUDA.")] = "fp32",
    most_worse: Annotated[float, typer.Option(help="By how much of itself the perplexity may grow by that.")] = 0.1,
    run_dir: Annotated[Path | None, typer.Option(help="Where checkpoints go; runs/NAME if not given.")] = None,
    repository: Annotated[Path, typer.Option(help="The repository to publish into.")] = Path("model_repository"),
    seed: Annotated[int, typer.Option(help="Decides the first weights and all else that is random.")] = 0,
    threads: Annotated[int, typer.Option(help="PyTorch's threads on the CPU; part of what decides the result.")] = 1,
    window: Annotated[int, typer.Option(help="Tokens of a row of a training batch.")] = 128,
    vocabulary: Annotated[int | None, typer.Option(help="Tokens of a new model.")] = None,
    layers: Annotated[int | None, typer.Option(help="Of a new model.")] = None,
    width: Annotated[int | None, typer.Option(help="Of a new model's layers.")] = None,
    heads: Annotated[int | None, typer.Option(help="Of attention, in a new model.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="Of its keys and values.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens that a new model looks back on.")] = None,
    epochs: Annotated[int | None, typer.Option(help="At most this many.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a training batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The peak of the schedule.")] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without improvement before training stops.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in its folder.")] = False,
    publish: Annotated[bool, typer.Option(help="Publish the model once it is verified.")] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a model that is there.")] = False,
) -> None:
    """Train a model that writes text, or fine-tune one; evaluate, build, verify and publish it.

    Exit codes: 2 usage, 3 data, 4 run folder, 5 export, 6 verification failed, 7 the repository refused.
    """
    with reported():
        from exporter.generation.config import GenerationConfig
        from exporter.generation.run import GenerationRun, make_config

        defaults = GenerationConfig(data=data, name="m")
        sizes = _said(
            vocabulary=vocabulary, layers=layers, width=width, heads=heads, kv_heads=kv_heads, context=context
        )
        training = _said(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, patience=patience)
        config = make_config(
            data=data,
            name=name,
            base=base,
            lora_rank=lora_rank,
            precision=precision,
            most_worse=most_worse,
            seed=seed,
            threads=threads,
            window=window,
            sizes={**defaults.sizes.model_dump(), **sizes},
            training={**defaults.training.model_dump(), **training},
        )
        run = GenerationRun(run_dir or Path("runs") / name, config, report, resume=resume)
        run.export()
        if publish:
            run.publish(repository, replace=replace)
        else:
            run.verify()


def _said(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
