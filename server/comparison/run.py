"""A comparison from its parts: the two servers, their clients, the lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from server.comparison.compare import Comparison, predict_lines
from server.comparison.lines import Line
from server.comparison.servers import NotServed, embedded, local_triton, over_triton
from server.comparison.side import connected
from server.local_triton.program import find
from server.pipeline.base import PROCESSING_FILE
from server.repository.certificate import Tolerance


def compare_model(
    folder: Path,
    triton_url: str,
    tritonserver: Path | None,
    *,
    seed: int,
    num_random: int,
    tolerance: Tolerance | None,
) -> list[Line]:
    """The model of `folder` on the embedded engine and on the Triton at `triton_url`; empty: on one that is started.

    Raises:
        NotServed: one of them does not serve the model.
        TritonMissing: there is none to start.
        ClientError: the URL is of another form, or a server does not answer.
        ModelLoadFailed: the golden files or the manifest are damaged.
    """
    with ExitStack() as stack:
        ours = stack.enter_context(embedded(folder.parent, folder.name))
        theirs = triton_url or stack.enter_context(local_triton(find(tritonserver), folder.parent, folder.name))
        one, other = (stack.enter_context(connected(url)) for url in (ours, theirs))
        stack.enter_context(_reached(theirs))
        lines = list(Comparison(folder, one, other, seed, num_random, tolerance).lines())
        if (folder / PROCESSING_FILE).exists():
            gateway = stack.enter_context(over_triton(folder.parent, folder.name, theirs))
            lines += predict_lines(folder, one, stack.enter_context(connected(gateway)))
        return lines


@contextmanager
def _reached(url: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise NotServed(f"{url}: {error.code().name}: {error.details()}") from error
