"""Pictures to tensors, by decoder and size, and how near `predict` comes to decoding and the forward pass alone.

    python -m loadtests.benchmarks.decode

Photos are drawn (coloured areas, texture, grain) and written as JPEGs of quality 85. "alone" is the decoder and the
resizing by themselves, to a plain array of bytes; "preprocess" is the pipeline, to the row of a tensor. "error" is in
grey levels against the whole picture, resized. "two threads" is how much more two threads do than one, 2.0 where
nothing holds the interpreter's lock. Packages that are no dependency (simplejpeg, OpenCV) have a line if installed.

End to end, a small CNN is served in this process on one core, callers call `DataPlane.predict`; the bound is a loop
that decodes, resizes and runs the model, and does nothing else. Both take turns.

Times are CPU time, of the thread or of the whole process, so that neighbours on the core do not count; two threads are
measured by the clock and need two quiet cores.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import io
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import uvloop
from PIL import Image

from loadtests.cores import cores
from loadtests.flags import counted, positive
from loadtests.models import photo_classifier
from loadtests.report import publish, table
from server.app import Server
from server.environment import load_settings
from server.pipeline.classification import LABELS, ClassificationSpec
from server.pipeline.image import ImageSteps
from server.pipeline.image_spec import Decode, ImageSpec, Normalize, Resize
from server.pipeline.load import write_spec
from server.tensor import Array
from server.types import Batch, ImageInput, PredictRequest

PHOTOS = ((640, 480), (1920, 1080), (4000, 3000))
MODEL_SIZES = (64, 224)
CALLERS = 16
DECODERS: dict[str, Decode] = {
    "pillow": Decode(),
    "pillow-draft": Decode(decoder="pillow-draft"),
    "pillow-draft, oversample 2": Decode(decoder="pillow-draft", oversample=2),
}
HEADER = ("JPEG", "model", "decoder", "alone ms", "preprocess ms", "over alone", "error", "two threads")
END_HEADER = ("JPEG", "model", "decoder", "bound/CPU s", "predict/CPU s", "predict/bound")

Alone = Callable[[bytes, int], Array]


def photo(width: int, height: int) -> bytes:
    rng = np.random.default_rng(0)

    def soft(cells: Array) -> Array:
        return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC), np.float32)

    areas = soft(rng.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), dtype=np.uint8))
    texture = soft(rng.integers(0, 256, (height // 4, width // 4), dtype=np.uint8))[..., None] - 128
    pixels = areas + 0.25 * texture + rng.normal(0, 4, (height, width, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def spec_of(decode: Decode, size: int) -> ImageSpec:
    return ImageSpec(
        input="x",
        mode="RGB",
        decode=decode,
        resize=Resize(height=size, width=size),
        normalize=Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        classification=ClassificationSpec(output="y"),
    )


def pillow_alone(decode: Decode, data: bytes, size: int) -> Array:
    picture = Image.open(io.BytesIO(data))
    if decode.decoder == "pillow-draft":
        side = int(size * decode.oversample)
        picture.draft(None, (side, side))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


def others() -> Iterator[tuple[str, Alone]]:
    """Decoders that are measured and not used."""
    if importlib.util.find_spec("simplejpeg"):
        simplejpeg = importlib.import_module("simplejpeg")

        def with_simplejpeg(data: bytes, size: int) -> Array:
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=size, min_width=size, min_factor=1)
            return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))

        yield "(simplejpeg, reduced)", with_simplejpeg
    if importlib.util.find_spec("cv2"):
        yield "(OpenCV, reduced by 2)", partial(_with_opencv, importlib.import_module("cv2"))


def _with_opencv(cv2: Any, data: bytes, size: int) -> Array:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)[:, :, ::-1]
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA))


def cpu_ms(work: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of this thread's CPU time."""
    work()
    times = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return median(times) * 1e3


def two_threads(work: Callable[[], object], repeats: int) -> float:
    """Work done by two threads over the work of one, in the same time; the best of five of each."""

    def run() -> None:
        for _ in range(repeats):
            work()

    def together() -> None:
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def best_s(what: Callable[[], None]) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            what()
            times.append(time.perf_counter() - began)
        return min(times)

    return 2 * best_s(run) / best_s(together)


def decoders(repeats: int) -> list[list[str]]:
    lines = []
    for width, height in PHOTOS:
        data = photo(width, height)
        few = max(5, repeats * 640 * 480 // (width * height))
        for size in MODEL_SIZES:
            whole = pillow_alone(Decode(), data, size).astype(np.float32)
            where = [f"{width}x{height}", f"{size}"]
            for name, decode in DECODERS.items():
                steps, item = ImageSteps(spec_of(decode, size)), ImageInput(data)
                bare = partial(pillow_alone, decode, data, size)
                row = partial(steps.row, item, "x")
                alone_ms, row_ms = cpu_ms(bare, few), cpu_ms(row, few)
                error = np.abs(bare().astype(np.float32) - whole).mean()
                cells = (alone_ms, row_ms, row_ms / alone_ms, error, two_threads(row, few))
                lines.append([*where, name, *(f"{value:.2f}" for value in cells)])
            for name, other in others():
                bare = partial(other, data, size)
                error = np.abs(bare().astype(np.float32) - whole).mean()
                alone_ms, threads = cpu_ms(bare, few), two_threads(bare, few)
                lines.append([*where, name, f"{alone_ms:.2f}", "", "", f"{error:.2f}", f"{threads:.2f}"])
    return lines


async def end_to_end(rounds: int, seconds: float) -> list[list[str]]:
    data = photo(640, 480)
    chosen = [(size, name) for size in MODEL_SIZES for name in ("pillow", "pillow-draft")]
    with tempfile.TemporaryDirectory() as folder:
        for size, name in chosen:
            write_model(Path(folder), f"{name}-{size}", spec_of(DECODERS[name], size), data)
        ports = {"http": {"port": 0}, "grpc": {"port": 0}, "metrics": {"port": 0}}
        server = Server(load_settings({**ports, "repository": {"path": folder}, "engine": {"threads": 1}}))
        await server.start()
        lines = []
        for size, name in chosen:
            model = f"{name}-{size}"
            bound, reached = [], []
            for _ in range(rounds):
                bound.append(alone_rate(server, model, DECODERS[name], data, size, seconds))
                reached.append(await predict_rate(server, model, data, seconds))
            ratio = median(b / a for a, b in zip(bound, reached, strict=True))
            lines.append(["640x480", f"{size}", name, f"{median(bound):.0f}", f"{median(reached):.0f}", f"{ratio:.3f}"])
        await server.drain()
    return lines


def write_model(repository: Path, name: str, spec: ImageSpec, example: bytes) -> None:
    photo_classifier(spec.resize.height).save(repository, name)
    write_spec(spec, repository / name)
    LABELS.write(repository / name, tuple(f"class {index}" for index in range(10)))
    Image.open(io.BytesIO(example)).save(repository / name / spec.example)


def alone_rate(server: Server, model: str, decode: Decode, data: bytes, size: int, seconds: float) -> float:
    """Pictures a second by a loop that does nothing but decode, resize and run the model."""
    instance = server.models.resolve(model).model.engine_model.instances[0]
    began, done = time.process_time(), 0
    while time.process_time() - began < seconds:
        pixels = pillow_alone(decode, data, size)
        instance.run(Batch(model, "1", 1, {"x": pixels.transpose(2, 0, 1)[None].astype(np.float32)}))
        done += 1
    return done / (time.process_time() - began)


async def predict_rate(server: Server, model: str, data: bytes, seconds: float) -> float:
    began, done = time.process_time(), 0

    async def caller() -> None:
        nonlocal done
        while time.process_time() - began < seconds:
            await server.dataplane.predict(PredictRequest(model, [ImageInput(data)]))
            done += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return done / (time.process_time() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=counted, default=40, help="of a 640x480 picture; larger ones have less")
    parser.add_argument("--rounds", type=counted, default=5, help="end to end (default: 5)")
    parser.add_argument("--seconds", type=positive, default=1.0, help="of a round (default: 1)")
    parser.add_argument("--only", choices=("decoders", "end"), help="one of the two tables")
    parser.add_argument("--out", type=Path, help="also write decode.md into this folder")
    options = parser.parse_args(arguments)
    text = ""
    if options.only != "end":
        text += "# Decoders\n\n" + table(HEADER, decoders(options.repeats)) + "\n"
    if options.only != "decoders":
        os.sched_setaffinity(0, {cores()[0]})
        lines = uvloop.run(end_to_end(options.rounds, options.seconds))
        text += f"# JPEG to label on one core, {CALLERS} callers\n\n" + table(END_HEADER, lines)
    publish(text, "decode.md", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
