"""`make recipes`: every recipe on an example, from the command to an answer of the served model, as a table.

    python -m exporter.examples --out build/recipes             run all, and write the table into exporter/README.md
    python -m exporter.examples --only regression               run one; the others' results are kept from before
    python -m exporter.examples --only nothing                  only write the table anew

Commands are run as a person would run them, in processes of their own; the models go into a repository of their own,
which a server then serves. What is in the table is what they printed, or what stands in the manifests.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from exporter.card import asked_with
from exporter.recipes import RECIPES
from server.repository.certificate import read_manifest

README = Path(__file__).with_name("README.md")
MARKERS = ("<!-- recipes: made by make recipes -->", "<!-- end of recipes -->")
NAMES = {
    "image-classification": "digits",
    "tabular-classification": "fraud",
    "tabular-trees": "fraud_trees",
    "regression": "progression",
    "recommendation": "shop",
    "text-classification": "support",
    "text-embedding": "sentences",
}
DATA = {"tabular-classification": "fraud", "tabular-trees": "fraud"}
"""Where it is not the first of the recipe's bundled sets."""
MORE = {"image-classification": ["--epochs", "8"], "text-embedding": ["--encoder", "minilm"]}
"""Further options of an example, which is for a look and not for service."""
MOST_METRICS = 2
MOST_ANSWER = 110
START_S = 120.0
MOST_S = 900.0
"""For each command: one that takes longer is ended, and so is the whole."""


def commands() -> dict[str, list[str]]:
    """The arguments of `train` for each recipe that is there."""
    from exporter.recipes import find

    found = {}
    for recipe in RECIPES:
        data = DATA.get(recipe) or next(iter(find(recipe).bundled), "")
        if data:
            found[recipe] = [recipe, "--data", data, *MORE.get(recipe, []), "--name", NAMES.get(recipe, recipe)]
    return found


def run(recipe: str, arguments: Sequence[str], out: Path) -> dict[str, str]:
    """Train, export, verify and publish; the row's cells but the answer. Raises CalledProcessError."""
    name = arguments[-1]
    repository = out / "model_repository"
    places = ["--run-dir", str(out / "runs" / name), "--repository", str(repository), "--replace"]
    began = time.monotonic()
    python(["-m", "exporter", "train", *arguments, *places])
    took = time.monotonic() - began
    manifest = read_manifest(repository / name)
    assert manifest is not None
    record = manifest.versions[max(manifest.versions, key=int)]
    shown = list(record.metrics.items())[:MOST_METRICS]
    errors = ", ".join(f"`{output}` {error.max_abs:.1e}" for output, error in record.errors.items())
    baseline = ", ".join(f"{record.baseline[metric]:.4f}" for metric, _ in shown if metric in record.baseline)
    return {
        "recipe": recipe,
        "command": shlex.join(["forwardpass", "train", *arguments]),
        "metric": ", ".join(f"{metric} {value:.4f}" for metric, value in shown),
        "baseline": f"{baseline} ({record.baseline.get('name', 'baseline')})",
        "certificate": f"{errors} at most",
        "seconds": f"{took:.0f}",
        "synthetic": "yes" if manifest.synthetic else "",
        "model": name,
    }


def python(arguments: Sequence[str]) -> str:
    """Run Python with the arguments; what it printed. Raises CalledProcessError, its errors on ours, TimeoutExpired."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=MOST_S)  # noqa: S603
    return done.stdout


@contextmanager
def served(repository: Path) -> Iterator[str]:
    """A server over the repository; the URL of its REST port."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "server", "serve", "--model-repository", str(repository), *ports]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
    try:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"REST\s+\S*?:(\d+)", line)
            if found:
                yield f"http://127.0.0.1:{found[1]}"
                return
        raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.wait(START_S)


def answer(url: str, folder: Path) -> str:
    """What `forwardpass predict` prints first for the model's own example, and the cells of a long answer cut."""
    given = asked_with(folder)
    printed = python(["-m", "server", "predict", folder.name, given, "--url", url]).strip().splitlines()
    text = "; ".join(" ".join(line.split()) for line in printed)
    return text if len(text) <= MOST_ANSWER else f"{text[:MOST_ANSWER]} ..."


def table(rows: Sequence[dict[str, str]]) -> str:
    """The table between the markers, as Markdown."""
    lines = ["| recipe and command | test metric | baseline | ONNX Runtime is off by | predict, of its example |"]
    lines += ["|---|---|---|---|---|"]
    for row in rows:
        command = row["command"] + (" (synthetic data)" if row["synthetic"] else "")
        cells = (f"`{row['recipe']}`: `{command}`", row["metric"], row["baseline"], row["certificate"])
        lines.append(f"| {' | '.join(cells)} | `{row['answer']}` |")
    return "\n".join(lines)


def write(text: str, readme: Path = README) -> None:
    """Put the table between the markers. Raises ValueError where they are not there."""
    content = readme.read_text(encoding="utf-8")
    start, end = content.index(MARKERS[0]) + len(MARKERS[0]), content.index(MARKERS[1])
    readme.write_text(f"{content[:start]}\n\n{text}\n\n{content[end:]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/recipes"))
    parser.add_argument("--only", nargs="*", help="recipes to run; all if not given")
    options = parser.parse_args()
    results = options.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    there = commands()
    for recipe in there if options.only is None else [one for one in there if one in options.only]:
        row = run(recipe, there[recipe], options.out)
        (results / f"{recipe}.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        sys.stdout.write(f"{recipe}: {row['seconds']} s\n")
    done = [results / f"{recipe}.json" for recipe in there]
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in done if path.exists()]
    repository = options.out / "model_repository"
    kept = {row["model"] for row in rows}
    for folder in repository.iterdir():
        if folder.name not in kept:
            shutil.rmtree(folder)
    with served(repository) as url:
        for row in rows:
            row["answer"] = answer(url, repository / row["model"])
    write(table(rows))


if __name__ == "__main__":
    main()
